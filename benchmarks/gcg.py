"""Searches for a suffix on a small trained language model: ours beside nanoGCG 0.3.0, random search and beam search at equal forwards.

Quality: ten seeds, each another beginning of a story and another sentence that the model is to say next; the best loss (nats per token)
within the same number of forwards. A gradient counts as one forward. Cost: CPU seconds per candidate behind a prompt of 150 tokens.

    pip install --no-deps nanogcg==0.3.0 && python benchmarks/gcg.py     resumable run by run; writes benchmarks/results/gcg.json
    python benchmarks/gcg.py --dev                                       settings are chosen like this: four other seeds, printed
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from common import about, cpu_hours, mean_sd, once, paired, save
from prepare_rule_lm import sentences, source

from advalign import attacks
from advalign.models import Network, load, scratch
from advalign.models.encode import Encoder
from advalign.targets import CachedPrefix, GeneratorTarget
from advalign.types import Budget, Example

OUT = Path("out/bench/gcg")
SEEDS, DEV = range(10), range(100, 104)
FORWARDS = 1536  # per search
LENGTH, WIDTH, TOP = 10, 64, 64
STEPS = 400  # of training the model
CONTEXT = 256
# The template ends in one token, because nanoGCG cannot tokenise an empty end.
TEMPLATE = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"

SEARCHES: dict[str, Any] = {
    "tokens": attacks.TokenSearch(length=LENGTH, steps=10_000, candidates=WIDTH, top=TOP, initial="x"),
    "gcg": attacks.GCG(length=LENGTH, steps=10_000, candidates=WIDTH, top=TOP, initial="x"),
    "gcg_16": attacks.GCG(length=LENGTH, steps=10_000, candidates=16, top=TOP, initial="x"),
    "random_search": attacks.RandomSearch(length=LENGTH, steps=100_000, candidates=4, initial="x"),
    "beast": attacks.Beast(length=LENGTH, beams=12, branches=12),
}
TRIED: dict[str, Any] = {
    f"gcg m{m:g} b{b}": attacks.GCG(length=LENGTH, steps=10_000, candidates=WIDTH, top=TOP, initial="x", momentum=m, buffer=b)
    for m in (0.0, 0.4, 0.7)
    for b in (0, 1)
}


def model() -> Network:
    """A small Llama that has read stories; trained once."""
    folder = OUT / "model"
    if not (folder / "advalign.json").exists():
        train(folder)
    network = load(str(folder), head="policy")
    # Both sides are to score the same tokens: nanoGCG puts no end behind what is to be said.
    network.encoder.tokenizer.eos_token = None
    return network.eval()


def train(folder: Path) -> None:
    lines = sentences(source())
    text = " ".join(lines[: int(len(lines) * 0.9)])
    tokenizer = scratch.train_tokenizer("bpe", lines, size=1024)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(OUT / "tokenizer")
    torch.manual_seed(0)
    network = load("scratch:small", head="policy", tokenizer=str(OUT / "tokenizer"), max_length=CONTEXT)
    ids = torch.tensor(tokenizer(text[:3_000_000])["input_ids"])
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=STEPS)
    generator, losses = torch.Generator().manual_seed(0), []
    for _ in range(STEPS):
        starts = torch.randint(len(ids) - 193, (8,), generator=generator)
        rows = torch.stack([ids[s : s + 192] for s in starts])
        loss = network.model(input_ids=rows, labels=rows).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    network.save_pretrained(folder)
    save(OUT / "training.json", {"steps": STEPS, "loss": sum(losses[-20:]) / 20, "tokens": STEPS * 8 * 192})


def example(encoder: Encoder, seed: int, prompt_tokens: int = 24, response_tokens: int = 8) -> Example:
    """The beginning of a held-out story, and a sentence from elsewhere in the held-out part."""
    lines = sentences(source())
    held, rng = lines[int(len(lines) * 0.9) :], random.Random(f"gcg/{seed}")
    start = rng.randrange(len(held) - 60)
    prompt = encoder.decode(encoder.tokenizer(" ".join(held[start : start + 60]))["input_ids"][:prompt_tokens])
    wanted = next(s for s in rng.sample(held, 200) if len(encoder.tokenizer(s)["input_ids"]) >= response_tokens)
    response = encoder.decode(encoder.tokenizer(wanted)["input_ids"][:response_tokens])
    return Example(prompt=prompt, answer=response, id=str(seed))


def searched(attack: Any, network: Network, case: Example, seed: int, forwards: int = FORWARDS) -> dict[str, Any]:
    """One of our searches, with its losses by forwards."""
    target = GeneratorTarget(network)
    (found,) = attack.search(target, [case], Budget(queries=forwards), random.Random(seed))
    again = float(target.nll([Example(prompt=found.text, answer=case.answer)]))
    spent = {"forwards": found.queries, "note": found.note, "trace": found.trace}
    return {"loss": found.loss, "retyped": again, "says": found.elicits, **spent}


def nano(network: Network, case: Example, seed: int, forwards: int = FORWARDS, steps: int | None = None) -> dict[str, Any]:
    """nanoGCG as it runs (its prefix cache does not); what it sends is counted at the model. Its step k costs 1 + what its filter kept."""
    import nanogcg

    sent: list[int] = []
    hook = network.model.register_forward_pre_hook(lambda m, a, k: sent.append(len(k["inputs_embeds"])), with_kwargs=True)
    config = nanogcg.GCGConfig(
        num_steps=steps or math.ceil(forwards / (WIDTH + 1)) + 12,
        optim_str_init=" ".join(["x"] * LENGTH),
        search_width=WIDTH,
        topk=TOP,
        use_prefix_cache=False,
        seed=seed,
        verbosity="ERROR",
    )
    try:
        found = nanogcg.run(network.model, network.encoder.tokenizer, case.prompt, case.answer, config)
    finally:
        hook.remove()
        torch.use_deterministic_algorithms(False)
    trace, best, spent, text = [], math.inf, sent[0], ""
    for loss, string, pair in zip(found.losses, found.strings, zip(sent[1::2], sent[2::2], strict=True), strict=True):
        spent += sum(pair)
        if spent > forwards:
            break
        best, text = min((best, text), (float(loss), string))
        trace.append((spent, best))
    again = float(GeneratorTarget(network).nll([Example(prompt=case.prompt + text, answer=case.answer)]))
    return {"loss": best, "retyped": again, "forwards": trace[-1][0], "trace": trace}


def cost(network: Network, rounds: int = 3, width: int = 128) -> dict[str, Any]:
    """CPU seconds per candidate behind 150 tokens: scoring alone, and whole steps (gradient, proposals, tokenising, scoring)."""
    case = example(network.encoder, 0, prompt_tokens=150)
    target = GeneratorTarget(network)
    prompt, response = network.encoder.prompt(case.prompt), network.encoder.response(case.answer)
    generator = torch.Generator().manual_seed(0)
    tails = [[*torch.randint(300, 1000, (LENGTH,), generator=generator).tolist(), *prompt[-1:], *response] for _ in range(width)]
    ids = torch.tensor(response)
    read = lambda z: -z.log_softmax(-1).gather(2, ids.expand(len(z), -1)[..., None]).mean((1, 2))  # noqa: E731
    found: dict[str, list[float]] = {name: [] for name in ("cached", "whole", "nanogcg", "our steps", "nanogcg steps")}
    values: dict[str, torch.Tensor] = {}
    for _ in range(rounds):  # in turns, so that what else runs on the machine weighs on all alike
        for name, cached in (("cached", True), ("whole", False)):
            shared = CachedPrefix(target, prompt[:-1], cached=cached)
            shared.trusted = True
            start = time.process_time()
            values[name] = shared.read(tails, len(response), read)
            found[name].append((time.process_time() - start) / width)
        start = time.process_time()
        values["nanogcg"] = _nano_scores(network, prompt[:-1], tails, response)
        found["nanogcg"].append((time.process_time() - start) / width)
        found["our steps"].append(_our_steps(network, case, width))
        found["nanogcg steps"].append(_nano_steps(network, case, width))
    seconds = {name: sorted(times)[len(times) // 2] for name, times in found.items()}
    errors = {name: float((values[name] - values["whole"]).abs().max()) for name in ("cached", "nanogcg")}
    return {"prompt_tokens": len(prompt), "width": width, "rounds": rounds, "seconds": seconds, "all": found, "errors": errors}


def _nano_scores(network: Network, before: Sequence[int], tails: Sequence[Sequence[int]], response: Sequence[int]) -> torch.Tensor:
    """nanoGCG's own scoring of candidates, its cache off."""
    import nanogcg.gcg as theirs

    search = theirs.GCG(network.model, network.encoder.tokenizer, theirs.GCGConfig(use_prefix_cache=False, verbosity="ERROR"))
    search.target_ids = torch.tensor([list(response)])
    rows = torch.tensor([[*before, *tail] for tail in tails])
    with torch.no_grad():
        return search._compute_candidates_loss_original(len(rows), network.model.get_input_embeddings()(rows))


def _our_steps(network: Network, case: Example, width: int, steps: int = 2) -> float:
    attack = attacks.TokenSearch(length=LENGTH, steps=steps, candidates=width, top=TOP, initial="x")
    start = time.process_time()
    (found,) = attack.search(GeneratorTarget(network), [case], Budget(), random.Random(0))
    return (time.process_time() - start) / found.queries


def _nano_steps(network: Network, case: Example, width: int, steps: int = 2) -> float:
    import nanogcg

    sent: list[int] = []
    hook = network.model.register_forward_pre_hook(lambda m, a, k: sent.append(len(k["inputs_embeds"])), with_kwargs=True)
    config = nanogcg.GCGConfig(
        num_steps=steps,
        optim_str_init=" ".join(["x"] * LENGTH),
        search_width=width,
        topk=TOP,
        use_prefix_cache=False,
        seed=0,
        verbosity="ERROR",
    )
    start = time.process_time()
    nanogcg.run(network.model, network.encoder.tokenizer, case.prompt, case.answer, config)
    spent = time.process_time() - start
    hook.remove()
    torch.use_deterministic_algorithms(False)
    return spent / sum(sent)


def curve(trace: Sequence[Sequence[float]], budgets: Sequence[int]) -> list[float]:
    """Best loss within each budget; before anything was scored, nan."""
    return [min((loss for spent, loss in trace if spent <= b), default=math.nan) for b in budgets]


def summary(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Losses over seeds, at several budgets, and the difference to nanoGCG, paired over seeds."""
    budgets = [96, 192, 384, 768, FORWARDS]
    found: dict[str, Any] = {
        "budgets": budgets,
        "bare": mean_sd([row["trace"][0][1] for row in runs["tokens"]]) if "tokens" in runs else None,
    }
    for name, rows in runs.items():
        curves = [curve(row["trace"], budgets) for row in rows]
        found[name] = {
            "loss": mean_sd([row["loss"] for row in rows]),
            "retyped": mean_sd([row["retyped"] for row in rows]),
            "cpu_seconds": mean_sd([row["cpu_seconds"] for row in rows]),
            "curve": [sum(c[i] for c in curves) / len(curves) for i in range(len(budgets))],
        }
        if "nanogcg" in runs and name != "nanogcg":
            found[name]["minus_nanogcg"] = paired([r["loss"] for r in rows], [r["loss"] for r in runs["nanogcg"]])
    return found


def run(name: str, network: Network, seed: int) -> dict[str, Any]:
    case = example(network.encoder, seed)
    attack = (SEARCHES | TRIED).get(name)
    make = (lambda: nano(network, case, seed)) if attack is None else (lambda: searched(attack, network, case, seed))
    return once(OUT / f"{name.replace(' ', '_')}-{seed}.json", make)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dev", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    network = model()
    if given.dev:
        for name in TRIED:
            rows = [run(name, network, seed) for seed in DEV]
            print(f"{name:16s}", *(f"{x:.3f}" for x in summary({name: rows})[name]["curve"]), flush=True)
        return
    names = ("nanogcg", *SEARCHES)
    runs = {name: [run(name, network, seed) for seed in SEEDS] for name in names}
    measured = once(OUT / "cost.json", lambda: cost(network))
    every = [*(row for rows in runs.values() for row in rows), measured]
    found = {
        **about("python benchmarks/gcg.py", "nanogcg"),
        "training": json.loads((OUT / "training.json").read_text(encoding="utf-8")),
        "parameters": sum(p.numel() for p in network.parameters()),
        "settings": {"length": LENGTH, "width": WIDTH, "top": TOP, "forwards": FORWARDS, "seeds": len(SEEDS)},
        "searches": summary(runs),
        "cost": {key: measured[key] for key in ("prompt_tokens", "width", "rounds", "seconds", "errors")},
        "cpu_hours": cpu_hours(every),
    }
    save("benchmarks/results/gcg.json", found)
    print(json.dumps({"searches": found["searches"], "cost": found["cost"]}, indent=1))


if __name__ == "__main__":
    main()

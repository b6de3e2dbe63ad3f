"""Robustness to an unseen attacker: GRPO on clean prompts, on random distractions, on the worst of four, and in self-play.

A causal LM of two layers learns to write under constraints ("length 5 with red without blue :") from clean demonstrations alone. Then
every arm trains it further, from the same weights, by the task's own verifier: 32 prompts x 4 answers per step, the same learning rate.
Another text precedes the prompt: up to six words of the task's own vocabulary, then " : ". The last instruction counts.

    clean        nothing
    random       six random words before three quarters of the prompts (`adversarial_prompts` with one candidate: domain randomisation)
    adversarial  of four such distractions the one under which four probes of the policy do worst
    self-play    a second LM writes the words and earns the failures (sources `game` and `defender`)
    averaged     self-play, half of it against an average of the attacker

Measured on the 90 combinations that never occur in training, greedy answers: clean; under random words; under the arm's own attacker as
training left it; and under a FRESH attacker that is trained against the frozen final policy, a best response. Only this last number
measures robustness: the policy was trained against the co-trained attacker. Every attack writes eight texts a prompt;
`all 8` counts a prompt as answered if it withstands all of them.

    python benchmarks/self_play.py               three seeds; resumable run by run; writes benchmarks/results/self_play.json
    python benchmarks/self_play.py --tune 100    one seed, printed; the setting was chosen on seeds from 100 on
    python benchmarks/self_play.py --smoke       two steps of everything
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from common import about, cpu_hours, mean_sd, once, paired, save

from advalign import Distractors, Frozen, Injection, Learner, Opponents, Sampling, Trainer, TrainingArguments
from advalign import advantages as A
from advalign import data as loading
from advalign import objectives as obj
from advalign import rewards as rw
from advalign import sources as src
from advalign.models import Network, load
from advalign.rollout.hf import HF
from advalign.tasks import Constraints
from advalign.types import Example

SEEDS = (1, 2, 3)
DATA = "task:constraints"
WORDS = tuple(f"{word} " for word in Constraints().vocabulary() if word != ":")
LENGTH = 6  # words of a distraction, tokens of an attack
ATTACK, ANSWER = Sampling(max_new_tokens=LENGTH), Sampling(max_new_tokens=10)
INJECTION = Injection(separator=" : ", allowed="[^:]*")
RANDOM = Distractors(alphabet=WORDS, length=LENGTH, separator=": ")
ATTACKER_RATE, EXPLORE = 5e-4, 0.02  # of every attacker, co-trained or fresh: learning rate, coefficient of the entropy bonus
TEXTS = 8  # attacks per prompt that are measured
ARMS = ("clean", "random", "adversarial", "self-play", "averaged")


@dataclass(frozen=True)
class Size:
    """Steps of the start (SFT), of an arm, and of the attacker that answers it."""

    start: int = 150
    arm: int = 150
    response: int = 150
    out: Path = Path("out/bench/self_play")


FULL, SMOKE = Size(), Size(start=2, arm=2, response=2, out=Path("out/bench/self_play-smoke"))

# ------------------------------------------------------------------------------------------------------- training


def language_model(model: str | Path = "scratch:tiny?initializer_range=0.08", rate: float = 1e-3) -> Learner:
    tokenizer = {"kind": "words", "data": DATA} if str(model).startswith("scratch:") else None
    return Learner(model=str(model), tokenizer=tokenizer, max_length=32, learning_rate=rate)


def arguments(steps: int, seed: int, folder: Path) -> TrainingArguments:
    return TrainingArguments(max_steps=steps, seed=seed, output_dir=str(folder))


def start(seed: int, size: Size) -> Path:
    """The weights that every arm of a seed begins with."""
    folder = size.out / f"base-{seed}"

    def train() -> dict[str, Any]:
        trainer = Trainer(
            model=language_model(rate=3e-3),
            sources={"demos": src.Demos(data=DATA, batch_size=32)},
            objectives={"imitate": obj.SFT(source="demos")},
            args=arguments(size.start, seed, folder),
        )
        return {"nll": trainer.train(overwrite=True, progress=False)[-1]["imitate/nll"]}

    once(size.out / f"base-{seed}.json", train)
    return folder / "policy"


def game(**fields: Any) -> src.Game:
    given: dict[str, Any] = {"data": DATA, "rewards": [rw.ExactAnswer()], "group_size": 4, "sampling": ATTACK, "answers": 4}
    return src.Game(**given | {"answer_sampling": ANSWER, "injection": INJECTION, "advantage": A.Group(), **fields})


def attacker_objectives() -> dict[str, Any]:
    """With a bonus for entropy: without it an attacker settles on one phrase within twenty steps, and stops looking."""
    fields: dict[str, Any] = {"source": "game", "learner": "attacker"}
    return {"attack": obj.GRPO(**fields), "explore": obj.Entropy(**fields, coef=EXPLORE)}


def sources(arm: str) -> dict[str, Any]:
    """32 prompts of 4 answers each, 8 of them clean in every arm that attacks."""
    given: dict[str, Any] = {"data": DATA, "batch_size": 32, "group_size": 4, "sampling": ANSWER}
    given |= {"rewards": [rw.ExactAnswer()], "advantage": A.Group()}
    if arm == "clean":
        return {"write": src.Prompts(**given)}
    if arm in ("random", "adversarial"):
        chosen = {"candidates": 1, "probes": 0} if arm == "random" else {"candidates": 4, "probes": 4}
        return {"write": src.AdversarialPrompts(**given, **chosen, distract=RANDOM, clean=0.25)}
    opponents = Opponents(attackers={"slow": 0.5}) if arm == "averaged" else Opponents()
    return {
        "game": game(batch_size=6, opponents=opponents),
        "write": src.Defender(game="game", advantage=A.Group(), clean=0.25),
    }


def trained(arm: str, seed: int, size: Size) -> dict[str, Any]:
    """Train an arm; what it cost, and how the game went."""
    learners, objectives = {"policy": language_model(start(seed, size))}, {"policy": obj.GRPO(source="write")}
    if arm in ("self-play", "averaged"):
        learners |= {"attacker": language_model(rate=ATTACKER_RATE)}
        objectives |= attacker_objectives()
    trainer = Trainer(
        learners=learners,
        sources=sources(arm),
        objectives=objectives,
        frozen={"slow": Frozen(learner="attacker", ema=0.95)} if arm == "averaged" else {},
        args=arguments(size.arm, seed, size.out / f"{arm}-{seed}"),
    )
    trainer.start()
    begin = time.process_time()
    history = trainer.train(overwrite=True, progress=False)
    return {"training_cpu_seconds": round(time.process_time() - begin, 1), "curve": curve(history)}


def curve(history: Sequence[dict[str, Any]], parts: int = 10) -> dict[str, list[float]]:
    """Tenths of the run."""
    names = ("game/attack_success", "write/accuracy/attacked", "write/accuracy/clean", "write/reward", "write/probe_tokens")
    width = max(1, len(history) // parts)
    pieces = [history[i : i + width] for i in range(0, len(history), width)]
    return {n: [fmean(row[n] for row in piece) for piece in pieces] for n in names if all(n in row for row in history)}


def best_response(policy: Path, seed: int, size: Size, folder: Path) -> Path:
    """A fresh attacker against a policy that does not move; ten prompts, eight attacks each, two answers to each."""
    trainer = Trainer(
        learners={"attacker": language_model(rate=ATTACKER_RATE), "policy": language_model(policy)},
        sources={"game": game(batch_size=10, group_size=8, answers=2)},
        objectives=attacker_objectives(),
        args=arguments(size.response, seed + 1000, folder),
    )
    trainer.train(overwrite=True, progress=False)
    return folder / "attacker"


# ------------------------------------------------------------------------------------------------------ measuring


def run(arm: str, seed: int, size: Size) -> dict[str, Any]:
    """Train an arm ("start": nothing), answer it with a fresh attacker, and measure it."""
    folder = size.out / f"{arm}-{seed}"
    found = {} if arm == "start" else trained(arm, seed, size)
    weights = start(seed, size) if arm == "start" else folder / "policy"
    policy = load(str(weights))
    attackers = {"random": lambda e, rng: [RANDOM.text(rng).strip() for _ in range(TEXTS)]}
    response = best_response(weights, seed, size, size.out / f"response-{arm}-{seed}")
    texts = {"best response": written(load(str(response)), seed)}
    if (folder / "attacker").exists():
        texts["own attacker"] = written(load(str(folder / "attacker")), seed)
    right = {"clean": [[score] for score in answered(policy, [e.prompt for e in held_out()], held_out())]}
    rng = random.Random(f"random/{seed}")
    texts["random"] = [attackers["random"](e, rng) for e in held_out()]
    right |= {name: withstood(policy, attacks) for name, attacks in texts.items()}
    return found | {"right": right, "rates": rates(right), "examples": {name: attacks[0] for name, attacks in texts.items()}}


def held_out() -> list[Example]:
    return loading.examples(DATA, split="test", limit=90)


def written(attacker: Network, seed: int) -> list[list[str]]:
    """TEXTS attacks on every held-out prompt; one that is not allowed becomes empty."""
    examples = held_out()
    prompts = [INJECTION.ask(e) for e in examples]
    groups = HF().generate(attacker, prompts, TEXTS, ATTACK, torch.Generator().manual_seed(seed))
    pairs = zip(examples, groups, strict=True)
    return [[r.text if INJECTION.valid(r.text, e.prompt) else "" for r in group.rollouts] for e, group in pairs]


def withstood(policy: Network, attacks: Sequence[Sequence[str]]) -> list[list[float]]:
    """Per held-out prompt, whether it is answered under each of its attacks."""
    pairs = [(e, INJECTION.place(text, e.prompt)) for e, texts in zip(held_out(), attacks, strict=True) for text in texts]
    scores = answered(policy, [prompt for _, prompt in pairs], [e for e, _ in pairs])
    return [scores[i : i + TEXTS] for i in range(0, len(scores), TEXTS)]


def answered(policy: Network, prompts: Sequence[str], examples: Sequence[Example]) -> list[float]:
    greedy = replace(ANSWER, temperature=0.0)
    groups = HF().generate(policy, [replace(e, prompt=p) for e, p in zip(examples, prompts, strict=True)], 1, greedy, torch.Generator())
    return [g.example.verify(g.rollouts[0].text) for g in groups]


def rates(right: dict[str, list[list[float]]]) -> dict[str, float]:
    """Mean accuracy, and the fraction of prompts that withstand every text."""
    found = {name: fmean(fmean(row) for row in rows) for name, rows in right.items()}
    return found | {f"{name}, all {TEXTS}": fmean(min(row) for row in rows) for name, rows in right.items() if name != "clean"}


# -------------------------------------------------------------------------------------------------------- summing


def per_prompt(runs: Sequence[dict[str, Any]], name: str, combine: Callable[[Sequence[float]], float]) -> list[float]:
    """Averaged over seeds; every seed is asked the same held-out prompts."""
    return [fmean(combine(row) for row in rows) for rows in zip(*(r["right"][name] for r in runs), strict=True)]


def summary(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Per arm: rates over seeds, and the differences to `clean` and `random`, paired over prompts."""
    table: dict[str, Any] = {}
    for arm, found in runs.items():
        table[arm] = {"rates": {name: mean_sd([r["rates"][name] for r in found]) for name in found[0]["rates"]}}
        if "training_cpu_seconds" in found[0]:
            table[arm] |= {"training_cpu_seconds": mean_sd([r["training_cpu_seconds"] for r in found]), "curve": found[0]["curve"]}
        table[arm]["example"] = found[0]["examples"]
        for other in ("clean", "random"):
            if other in runs and arm != other:
                names = [n for n in found[0]["right"] if n in runs[other][0]["right"]]
                table[arm][f"minus_{other}"] = {n: paired(per_prompt(found, n, fmean), per_prompt(runs[other], n, fmean)) for n in names}
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tune", type=int, help="one seed, printed and not written to the results")
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    size, seeds = (SMOKE if args.smoke else FULL), SEEDS[: 1 if args.smoke else args.seeds] if args.tune is None else (args.tune,)
    runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ("start", *args.arms.split(","))}
    for seed in seeds:
        for arm in runs:
            runs[arm].append(once(size.out / f"{arm}-{seed}.json", lambda a=arm, s=seed: run(a, s, size)))
            print(seed, arm, {name: round(value, 3) for name, value in runs[arm][-1]["rates"].items()}, flush=True)
    if args.smoke or args.tune is not None:
        return
    bases = [once(size.out / f"base-{seed}.json", dict) for seed in seeds]
    save(
        "benchmarks/results/self_play.json",
        about("make bench-self-play")
        | {"seeds": list(seeds), "steps": {"start": size.start, "arm": size.arm, "response": size.response}}
        | {"prompts": len(held_out()), "texts": TEXTS, "arms": summary(runs)}
        | {"cpu_hours": cpu_hours([*bases, *(r for found in runs.values() for r in found)])},
    )


if __name__ == "__main__":
    main()

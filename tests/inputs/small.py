"""The configurations of the repository, made so small that a first step takes a moment: untrained models of one or two blocks, few rows of
built-in tasks; objectives, adversaries, schedules and options as they are."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from inputs.base import DATA, ROWS, WORDS

LABELLED, LEXICON = "rows.jsonl", "lexicon.json"
FILES = {LABELLED: ROWS, LEXICON: '{"good": ["fine"], "movie": ["plot"], "bad": ["dull"]}'}
"""What the small configurations read, by name in the current folder."""
KEPT_OPTIONS = ("lora", "num_labels", "dropout", "pooling")


def small(run: Mapping[str, Any]) -> dict[str, Any]:
    """A run of one step per stage."""
    tree = copy.deepcopy(dict(run))
    for name, learner in tree["learners"].items():
        _shrink_learner(learner, named=name)
    for source in tree["sources"].values():
        _shrink_source(source)
    for adversary in tree.get("adversaries", {}).values():
        _shrink_adversary(adversary)
    for objective in tree["objectives"].values():
        objective |= {"layers": [0, 1]} if "layers" in objective else {}
        objective |= {"site": "layer:1"} if "site" in objective else {}
    for evaluation in tree.get("evaluations", {}).values():
        labels = tree["learners"][evaluation.get("learner", "policy")].get("head") == "classifier"
        evaluation |= {"data": LABELLED if labels else DATA, "number": 2}
        evaluation.pop("columns", None)
        evaluation |= {"samples": 2} if "samples" in evaluation else {}
        evaluation |= {"sampling": evaluation["sampling"] | {"max_new_tokens": 4}} if "sampling" in evaluation else {}
    tree["stages"] = [stage | {"steps": 1} for stage in tree.get("stages", [])]
    tree["args"] = {"max_steps": 1, "token_budget": 2048}
    tree.pop("rollout", None)
    return tree


def _shrink_learner(learner: dict[str, Any], named: str) -> None:
    classes = learner.get("head") == "classifier"
    if learner["model"].startswith("latent:"):
        learner["model"] = "latent:policy?hidden_size=16&num_attention_heads=2&intermediate_size=32"
        learner.pop("tokenizer", None)
    else:
        reads = classes or learner["model"].startswith("scratch:encoder")
        learner["model"] = (
            "scratch:encoder-tiny?hidden_size=16&num_attention_heads=2" if reads else "scratch:tiny?hidden_size=16&num_attention_heads=2"
        )
        learner["tokenizer"] = {"kind": "words", "data": LABELLED} if classes else dict(WORDS)
    learner |= {"max_length": 32, "learning_rate": 1e-3, "warmup_steps": 0}
    options = {name: value for name, value in learner.get("options", {}).items() if name in KEPT_OPTIONS}
    if "layers_to_transform" in options.get("lora", {}):
        options["lora"]["layers_to_transform"] = [0, 1]
    learner["options"] = options


def _shrink_source(source: dict[str, Any]) -> None:
    source.pop("columns", None)
    if "split" in source:
        source["split"] = "train"
    if "perturb" in source:
        source["perturb"] = {"kind": "constraints", "insert": 0.0}
    source |= {"data": LABELLED if source["kind"] == "labels" else DATA} if "data" in source else {}
    source |= {
        name: value for name, value in (("batch_size", 4), ("group_size", 2), ("collect", 4), ("answers", 2), ("size", 4)) if name in source
    }
    for name in ("sampling", "answer_sampling"):
        source |= {name: source[name] | {"max_new_tokens": 4}} if name in source else {}
    for reward in source.get("rewards", ()):
        reward |= {"kind": "exact_answer"} if reward["kind"] == "math" else {}
    if "attack" in source:
        source["attack"] |= {"length": 4, "steps": 1, "candidates": 4, "top": 4}


def _shrink_adversary(adversary: dict[str, Any]) -> None:
    adversary |= {"sites": ["embedding", "layer:0"]} if len(adversary.get("sites", ())) > 1 else {}
    adversary |= {"lexicon": LEXICON, "budget": 0.5} if "lexicon" in adversary else {}
    adversary |= {"replace": "unknown"} if adversary["kind"] == "mask" else {}
    adversary |= {"steps": min(adversary["steps"], 2)} if "steps" in adversary else {}
    if adversary["kind"] == "refusal":
        adversary |= {"harmful": DATA, "harmless": {"task": "constraints", "split": "test"}, "number": 4, "probability": 1.0}
    for part in ("discrete", "continuous"):
        if isinstance(adversary.get(part), dict):
            _shrink_adversary(adversary[part])

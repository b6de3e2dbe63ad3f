"""What bad inputs are made of: a run and a suite that work, changed at one place."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import yaml

DROPPED = object()
"""As a value of a change: the key is left out."""

DATA = "task:constraints"
WORDS = {"kind": "words", "data": DATA}
TINY = {"model": "scratch:tiny-gpt2?n_embd=16&n_layer=1&n_head=2", "tokenizer": WORDS, "max_length": 32, "learning_rate": 1e-3}

RUN: dict[str, Any] = {
    "learners": {
        "policy": TINY,
        "discriminator": {
            **TINY,
            "model": "scratch:encoder-tiny?hidden_size=16&num_hidden_layers=1&num_attention_heads=2",
            "head": "score",
        },
    },
    "sources": {
        "chat": {"kind": "demos", "data": DATA, "limit": 12, "batch_size": 2},
        "write": {
            "kind": "prompts",
            "data": DATA,
            "limit": 12,
            "batch_size": 2,
            "group_size": 2,
            "sampling": {"max_new_tokens": 4},
            "rewards": [{"kind": "discriminator", "learner": "discriminator"}],
            "advantage": {"kind": "group", "scale": "none"},
        },
        "contrast": {"kind": "contrast", "real": "chat", "sampled": "write", "batch_size": 2},
    },
    "adversaries": {"pgd": {"kind": "pgd", "radius": 0.1, "steps": 1}},
    "objectives": {
        "imitate": {"kind": "sft", "source": "chat"},
        "policy": {"kind": "grpo", "source": "write"},
        "robust": {"kind": "sft", "source": "chat", "view": "pgd", "coef": 0.1},
        "discriminator": {"kind": "discriminate", "learner": "discriminator", "source": "contrast"},
    },
    "frozen": {"average": {"learner": "policy", "ema": 0.9}},
    "schedules": {"objectives.robust.coef": {"start": 0.1, "end": 0.2, "steps": 2}},
    "stages": [{"name": "first", "steps": 1, "objectives": ["imitate"]}, {"name": "mix", "steps": 1}],
    "gates": {"discriminator": {"metric": "discriminator/accuracy", "above": 0.9}},
    "evaluations": {"heldout": {"data": DATA, "split": "test", "number": 2, "sampling": {"max_new_tokens": 2}}},
    "rollout": {"kind": "hf"},
    "args": {"seed": 0, "token_budget": 512, "eval_steps": 2},
}
"""Every section, as small as it can be."""

SUITE: dict[str, Any] = {
    "data": "rows.jsonl",
    "examples": 4,
    "attacks": {
        "bugs": {"kind": "words", "style": "deepwordbug", "max_changed": 0.5},
        "pgd": {"kind": "embedding", "restarts": 1, "adversary": {"kind": "pgd", "radius": 3.0, "steps": 1}},
    },
    "budget": {"queries": 20},
}
"""A suite for a classifier of sentiments."""

ROWS = "".join(
    f'{{"text": "{text}", "label": {label}, "id": "s{number}"}}\n'
    for number, (text, label) in enumerate(
        [("the movie was good", 1), ("the plot was bad", 0), ("really great acting", 1), ("dull and poor", 0)]
    )
)
"""Its data."""


GENERATOR: dict[str, Any] = {
    "data": "sums.jsonl",
    "examples": 1,
    "attacks": {"prefill": {"kind": "prefill", "text": "one"}},
    "judge": {"kind": "prefix", "text": "two"},
}
"""A suite for a generator of sums."""

SUMS = """{"prompt": "one plus one =", "response": "two", "id": "a"}
{"prompt": "one plus two =", "response": "three", "id": "b"}
"""
"""Its data."""


def changed(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with values at paths: `{"learners.policy.max_length": -1}`. Keys that hold dots are given as tuples."""
    tree = copy.deepcopy(dict(base))
    for path, value in changes.items():
        *parents, last = path.split(".") if isinstance(path, str) else path
        node: Any = tree
        for name in parents:
            node = node[int(name)] if isinstance(node, list) else node.setdefault(name, {})
        if value is DROPPED:
            del node[int(last) if isinstance(node, list) else last]
        elif isinstance(node, list):
            node[int(last)] = value
        else:
            node[last] = value
    return tree


def yaml_key(path: str) -> str | tuple[str, ...]:
    """A written path: `a|b.c` has a key with a dot."""
    return tuple(path.split("|")) if "|" in path else path


def text(tree: Any) -> str:
    """The YAML text of a mapping."""
    return yaml.dump(tree, Dumper=_Plain, sort_keys=False, allow_unicode=True)


class _Plain(yaml.SafeDumper):
    """Without anchors for what is used twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

"""Preference pairs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from advalign.errors import ConfigError, unknown
from advalign.sources._responses import wrong
from advalign.sources._stream import ListSource
from advalign.types import Example, PairRows, Rows

__all__ = ["Pairs"]

DIFFER = ("response", "prompt")


@dataclass(frozen=True, kw_only=True)
class Pairs(ListSource):
    """(prompt, chosen, rejected) rows; `batch_size` pairs per draw. A `margin` column says by how much chosen is better.

    Without a `rejected` column and with a task, the chosen text is the task's demonstration for the prompt and the
    rejected one a demonstration for a perturbed prompt: right for something that was not asked. differ: "prompt" makes the preferential
    prompts of GAPO (arXiv:2503.20194) of it, the same text under its own prompt and under a perturbed one that it violates; a column
    `rejected_prompt` gives such pairs from data.
    """

    batch_size: int = 8
    differ: str = "response"

    row_type: ClassVar[type[Rows]] = PairRows

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.differ not in DIFFER:
            raise unknown("sources.pairs.differ", "part of a pair", self.differ, DIFFER)

    def complete(self, example: Example, number: int, task: Any, where: str) -> Example:
        if {"chosen", "rejected"} <= set(example.meta):
            return example if "margin" not in example.meta else replace(example, meta={**example.meta, "margin": _margin(example, where)})
        if task is None:
            raise ConfigError(f"{where}: row '{example.id}' needs the columns 'chosen' and 'rejected'; map them with columns.")
        rng = self.rng(number)
        chosen = task.demonstrate(example, rng)
        if self.differ == "prompt":
            other = task.perturb(example, chosen, rng).prompt
            return replace(example, meta={**example.meta, "chosen": chosen, "rejected": chosen, "rejected_prompt": other})
        rejected = wrong(example, chosen, task, rng, where)
        return replace(example, meta={**example.meta, "chosen": chosen, "rejected": rejected})

    def build(self, items: Sequence[Example], encoder: Any) -> PairRows:
        sides = ("chosen", "chosen_prompt"), ("rejected", "rejected_prompt")
        both = [(e.meta.get(asked, e.prompt), e.meta[side], i) for i, e in enumerate(items) for side, asked in sides]
        prompts, texts, group = (list(column) for column in zip(*both, strict=True))
        margins = [e.meta.get("margin") for e in items for _ in range(2)]
        given = any(m is not None for m in margins)
        return PairRows(
            # As a discriminator's rows: a scorer that reads both ways wants the pair template it scores with.
            tokens=encoder.scored_pairs(prompts, texts, [True] * len(texts), group),
            margin=torch.tensor([m or 0.0 for m in margins]) if given else None,
        )


def _margin(example: Example, where: str) -> float | None:
    value = example.meta.get("margin")
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{where}: row '{example.id}' has margin '{value}', which is no number.") from None

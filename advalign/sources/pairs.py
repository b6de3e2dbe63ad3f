"""Preference pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch

from advalign.errors import ConfigError
from advalign.interfaces import Task
from advalign.ranges import Count, OneOf
from advalign.sources._responses import check_sides, other_prompt, split_where_tokens_end, wrong_response
from advalign.sources._stream import ListSource
from advalign.types import Conversation, Example, PairRows, Prompt, Rows

if TYPE_CHECKING:
    from advalign.models.encode import Encoder

__all__ = ["Pairs"]

DIFFER = ("response", "prompt")


@dataclass(frozen=True, kw_only=True)
class Pairs(ListSource):
    """(prompt, chosen, rejected) rows; a `margin` column says by how much chosen is better.

    Without a `rejected` column and with a task, the chosen text is the task's demonstration for the prompt and the
    rejected one a demonstration for a perturbed prompt: right for another prompt.
    """

    batch_size: Count = 8
    """Pairs per draw."""
    differ: Annotated[str, OneOf(DIFFER, "part of a pair")] = "response"
    """In what the two sides of a task's pair differ. "prompt": the preferential prompts of GAPO (arXiv:2503.20194), the same text under
    its own prompt and under a perturbed one that it violates; a column `rejected_prompt` gives such pairs from data."""

    row_type: ClassVar[type[Rows]] = PairRows

    def complete(self, example: Example, index: int, task: Task | None, path: str) -> Example:
        if {"chosen", "rejected"} <= set(example.meta):
            check_sides(example, path, same_allowed="rejected_prompt" in example.meta)
            return example if "margin" not in example.meta else replace(example, meta={**example.meta, "margin": _margin(example, path)})
        if task is None:
            absent = " and ".join(f"'{side}'" for side in ("chosen", "rejected") if side not in example.meta)
            raise ConfigError(
                f"{path}: {example.described} needs the columns 'chosen' and 'rejected', and {absent} is not there or null; map them with "
                "columns."
            )
        rng = self.rng(index)
        chosen = task.demonstrate(example, rng)
        if self.differ == "prompt":
            rejected_prompt = task.perturb(example, chosen, rng).prompt
            return replace(example, meta={**example.meta, "chosen": chosen, "rejected": chosen, "rejected_prompt": rejected_prompt})
        rejected = wrong_response(example, chosen, task, rng, path)
        return replace(example, meta={**example.meta, "chosen": chosen, "rejected": rejected})

    def build(self, items: Sequence[Example], encoder: Encoder) -> PairRows:
        sides = ("chosen", "chosen_prompt"), ("rejected", "rejected_prompt")
        rows = []
        for i, e in enumerate(items):
            start, texts = split_where_tokens_end(e, [e.meta[text] for text, _ in sides], encoder)
            rows += [(_prompt(replace(e, prompt=start), column), text, i) for text, (_, column) in zip(texts, sides, strict=True)]
        prompts, responses, group = (list(column) for column in zip(*rows, strict=True))
        margins = [e.meta.get("margin") for e in items for _ in range(2)]
        return PairRows(
            # As a discriminator's rows: a bidirectional scorer reads the pair template it scores with.
            tokens=encoder.scored_pairs(prompts, responses, [True] * len(responses), group, sampled=False),
            margin=torch.tensor([m or 0.0 for m in margins]) if any(m is not None for m in margins) else None,
        )


def _prompt(example: Example, column: str) -> Prompt:
    """The prompt of one side, where the data gives it one of its own."""
    value = example.meta.get(column)
    if value is None or isinstance(value, Conversation):
        return example.prompt if value is None else value
    return other_prompt(example, value, f"sources.pairs: {column} of '{example.id}'")


def _margin(example: Example, path: str) -> float | None:
    value = example.meta.get("margin")
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{path}: {example.described} has margin '{value}', which is not a number.") from None

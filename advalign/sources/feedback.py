"""Single responses, labelled good or bad."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch

from advalign.errors import ConfigError
from advalign.interfaces import Task
from advalign.sources._responses import check_sides, split_where_tokens_end, with_response, wrong_response
from advalign.sources._stream import ListSource
from advalign.types import Example, FeedbackRows, Rows

if TYPE_CHECKING:
    from advalign.models.encode import Encoder

__all__ = ["Feedback"]


@dataclass(frozen=True, kw_only=True)
class Feedback(ListSource):
    """(prompt, response, label) rows, label 1 or true for desirable and 0 or false for undesirable, for `kto`.

    A row with `chosen` and `rejected` and no label is two rows. Without a label column and with a task: every other example has its
    demonstration, which is desirable, and the others a demonstration for a perturbed prompt, which is not. Each draw also pairs every
    prompt with the response of the next item: from these mismatched rows the reference point of KTO is computed, so a draw has at least
    two items.
    """

    row_type: ClassVar[type[Rows]] = FeedbackRows

    def __post_init__(self) -> None:
        if self.batch_size < 2:
            raise ConfigError(f"sources.feedback.batch_size: got {self.batch_size}, mismatched rows need at least 2.")

    def expand(self, example: Example) -> Sequence[Example]:
        return _unpaired(example, "sources.feedback")

    def complete(self, example: Example, index: int, task: Task | None, path: str) -> Example:
        if example.label is None and task is not None:
            example = self._labelled(example, index, task, path)
        if example.label not in (0, 1):
            value = example.meta.get("label") if example.label is None else example.label
            label = "no label" if value is None else f"label {value}"
            raise ConfigError(
                f"{path}: {example.described} has {label}; it must be 1 or 0, in a column named with columns: {{label: ...}}."
            )
        return with_response(example, task, self.rng(index), path)

    def _labelled(self, example: Example, index: int, task: Task, path: str) -> Example:
        """The example with the task's right response and label 1, or with a wrong one and label 0."""
        rng = self.rng(index)
        response = task.demonstrate(example, rng)
        if index % 2:
            response = wrong_response(example, response, task, rng, path)
        return replace(example, label=1 - index % 2, meta={**example.meta, "response": response})

    def build(self, items: Sequence[Example], encoder: Encoder) -> FeedbackRows:
        rows = [split_where_tokens_end(e, [e.meta["response"]], encoder) for e in items]
        prompts, texts = [prompt for prompt, _ in rows], [text for _, (text,) in rows]
        return FeedbackRows(
            tokens=encoder.demos(prompts, texts),
            desirable=torch.tensor([e.label == 1 for e in items]),
            # Each row fits, but not necessarily a prompt with another row's response, which then loses its end.
            mismatched=encoder.scored_pairs(prompts, texts[1:] + texts[:1], [True] * len(texts)),
        )


BOOLEANS = {"true": 1, "false": 0}


def _unpaired(example: Example, path: str) -> list[Example]:
    """The example with its label as a number; a preference without one as two examples, the chosen response first."""
    word = str(example.meta.get("label", "")).strip().lower()
    if example.label is None and word in BOOLEANS:
        return [replace(example, label=BOOLEANS[word])]
    if example.label is not None or not {"chosen", "rejected"} <= set(example.meta):
        return [example]
    check_sides(example, path)
    sides = (("chosen", 1), ("rejected", 0))
    return [replace(example, label=label, meta={**example.meta, "response": example.meta[side]}) for side, label in sides]

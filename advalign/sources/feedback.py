"""Single responses, judged good or bad."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from advalign.errors import ConfigError
from advalign.sources._responses import answered, wrong
from advalign.sources._stream import ListSource
from advalign.types import Example, FeedbackRows, Rows

__all__ = ["Feedback"]


@dataclass(frozen=True, kw_only=True)
class Feedback(ListSource):
    """(prompt, response, label) rows, label 1 or true for desirable and 0 or false for undesirable, for `kto`.

    Without a label column and with a task: of every two examples one has its demonstration, which is desirable, and the other
    a demonstration for a perturbed prompt, which is not. Each draw also pairs every prompt with the response of the next item:
    from these mismatched rows the reference point of KTO is computed, so a draw has at least two items.
    """

    row_type: ClassVar[type[Rows]] = FeedbackRows

    def __post_init__(self) -> None:
        if self.batch_size < 2:
            raise ConfigError(f"sources.feedback.batch_size: got {self.batch_size}, mismatched rows need at least 2.")

    def complete(self, example: Example, number: int, task: Any, where: str) -> Example:
        if example.label is None and task is not None:
            example = self._made(example, number, task, where)
        if example.label not in (0, 1):
            what = "no label" if example.label is None else f"label {example.label}"
            raise ConfigError(f"{where}: row '{example.id}' has {what}; it must be 1 or 0, in a column named with columns: {{label: ...}}.")
        return answered(example, task, self.rng(number), where)

    def _made(self, example: Example, number: int, task: Any, where: str) -> Example:
        rng = self.rng(number)
        response = task.demonstrate(example, rng)
        if number % 2:
            response = wrong(example, response, task, rng, where)
        return replace(example, label=1 - number % 2, meta={**example.meta, "response": response})

    def build(self, items: Sequence[Example], encoder: Any) -> FeedbackRows:
        prompts, texts = [e.prompt for e in items], [e.meta["response"] for e in items]
        return FeedbackRows(
            tokens=encoder.demos(prompts, texts),
            desirable=torch.tensor([e.label == 1 for e in items]),
            mismatched=encoder.demos(prompts, texts[1:] + texts[:1]),
        )

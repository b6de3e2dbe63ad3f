"""Demonstrations."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from advalign.sources._responses import answered
from advalign.sources._stream import ListSource
from advalign.types import DemoRows, Example, Rows

__all__ = ["Demos"]


@dataclass(frozen=True, kw_only=True)
class Demos(ListSource):
    """(prompt, response) pairs: a file, a hub id, or a task, which demonstrates its own examples.

    `limit` keeps that many examples, chosen by the data's seed; `batch_size` rows per draw.
    """

    row_type: ClassVar[type[Rows]] = DemoRows

    def complete(self, example: Example, number: int, task: Any, where: str) -> Example:
        return answered(example, task, self.rng(number), where)

    def build(self, items: Sequence[Example], encoder: Any) -> DemoRows:
        return DemoRows(tokens=encoder.demos([e.prompt for e in items], [e.meta["response"] for e in items]))

"""Demonstrations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from advalign.interfaces import Task
from advalign.sources._responses import is_plain_text, with_response
from advalign.sources._stream import ListSource
from advalign.types import DemoRows, Example, Rows

if TYPE_CHECKING:
    from advalign.models.encode import Encoder

__all__ = ["Demos"]


@dataclass(frozen=True, kw_only=True)
class Demos(ListSource):
    """(prompt, response) pairs: a file, a hub id, or a task, which demonstrates its own examples.

    A row with a `text` and neither response nor answer is a text without prompt: all of its tokens are the target, outside of any chat
    template, as in TRL's language modelling format."""

    row_type: ClassVar[type[Rows]] = DemoRows

    def complete(self, example: Example, index: int, task: Task | None, path: str) -> Example:
        if is_plain_text(example) and task is None:
            return replace(example, prompt="", meta={**example.meta, "response": example.prompt})
        return with_response(example, task, self.rng(index), path)

    def build(self, items: Sequence[Example], encoder: Encoder) -> DemoRows:
        return DemoRows(tokens=encoder.demos([e.prompt for e in items], [e.meta["response"] for e in items]))

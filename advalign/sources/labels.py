"""Labelled texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from advalign import data as loading
from advalign.errors import ConfigError, located
from advalign.interfaces import Context, Task
from advalign.ranges import Count
from advalign.sources._stream import ListSource
from advalign.types import Example, LabelRows, Rows

if TYPE_CHECKING:
    from advalign.models.encode import Encoder

__all__ = ["Labels"]


@dataclass(frozen=True, kw_only=True)
class Labels(ListSource):
    """(text, label) rows for a classifier; a `pair` column is the second sentence (NLI).

    Labels are class indices or names. Names get the indices that the classifier's `id2label` has, else ClassLabel's, else their place in
    alphabetical order, and are saved as `id2label`."""

    batch_size: Count = 32
    """Texts per draw."""

    row_type: ClassVar[type[Rows]] = LabelRows

    def load(self, context: Context, name: str) -> tuple[list[Example], tuple[str, ...]]:
        with located(f"sources.{name}"):
            return loading.labelled(self.data, self.columns, self.split, self.limit, self.seed, context.class_names(name))

    def streamed(self, context: Context, name: str) -> loading.Streamed | None:
        if self.limit is not None:
            return None
        with located(f"sources.{name}"):
            return loading.streamed(self.data, self.columns, self.split, context.class_names(name))

    def num_classes(self) -> int:
        """The number of names, else the largest class index plus one; at least 2."""
        streamed = loading.streamed(self.data, self.columns, self.split, ()) if self.limit is None else None
        if streamed is not None:
            return len(streamed.class_names)
        examples, names = loading.labelled(self.data, self.columns, self.split, self.limit, self.seed)
        indices = {e.label for e in examples if e.label is not None}
        if not names and indices and 0 not in indices:
            raise ConfigError(
                f"data: its labels are {min(indices)} to {max(indices)} without 0, from which classes are counted; set num_labels of the "
                "classifier, or give labels from 0, or names."
            )
        return max(2, len(names) or max(indices, default=0) + 1)

    def complete(self, example: Example, index: int, task: Task | None, path: str) -> Example:
        return example

    def may_refuse(self, encoder: Encoder) -> bool:
        return encoder.truncation.mode == "error"

    def build(self, items: Sequence[Example], encoder: Encoder) -> LabelRows:
        pairs = [e.pair for e in items] if any(e.pair is not None for e in items) else None
        tokens = encoder.classify([e.prompt for e in items], pairs)
        return LabelRows(tokens=tokens, labels=torch.tensor([e.label for e in items]))

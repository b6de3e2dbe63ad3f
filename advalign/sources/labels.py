"""Labelled texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from advalign import data as loading
from advalign.errors import ConfigError
from advalign.protocols import Context
from advalign.sources._stream import ListRuntime
from advalign.types import Example, LabelRows, Rows

__all__ = ["Labels"]


@dataclass(frozen=True, kw_only=True)
class Labels:
    """(text, label) rows for a classifier; a `pair` column is the second sentence (NLI)."""

    data: Any
    split: str = "train"
    batch_size: int = 32
    limit: int | None = None
    columns: Mapping[str, str] | None = None
    seed: int = 0

    yields: ClassVar[type[Rows]] = LabelRows

    @property
    def after(self) -> tuple[str, ...]:
        return ()

    def start(self, context: Context, name: str) -> _Runtime:
        return _Runtime(self, context, name)


class _Runtime(ListRuntime[Example]):
    def __init__(self, config: Labels, context: Context, name: str) -> None:
        examples = loading.examples(config.data, columns=config.columns, split=config.split, limit=config.limit, seed=config.seed)
        for example in examples:
            if example.label is None:
                raise ConfigError(f"sources.{name}: row '{example.id}' has no label; name its column with columns: {{label: ...}}.")
        super().__init__(examples, config.batch_size, context, name)

    def rows(self, items: Sequence[Example], encoder: Any) -> LabelRows:
        pairs = [e.pair for e in items] if items[0].pair is not None else None
        tokens = encoder.classify([e.prompt for e in items], pairs)
        return LabelRows(tokens=tokens, labels=torch.tensor([e.label for e in items]))

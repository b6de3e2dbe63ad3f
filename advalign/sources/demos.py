"""Demonstrations."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from advalign import data as loading
from advalign.errors import ConfigError
from advalign.protocols import Context
from advalign.sources._stream import ListRuntime
from advalign.types import DemoRows, Example, Rows

__all__ = ["Demos"]


@dataclass(frozen=True, kw_only=True)
class Demos:
    """(prompt, response) pairs: a file, a hub id, or a task, which demonstrates its own examples.

    `limit` keeps that many examples, chosen by the data's seed; `batch_size` rows per draw.
    """

    data: Any
    split: str = "train"
    batch_size: int = 16
    limit: int | None = None
    columns: Mapping[str, str] | None = None
    seed: int = 0

    yields: ClassVar[type[Rows]] = DemoRows

    @property
    def after(self) -> tuple[str, ...]:
        return ()

    def start(self, context: Context, name: str) -> _Runtime:
        return _Runtime(self, context, name)


class _Runtime(ListRuntime[Example]):
    def __init__(self, config: Demos, context: Context, name: str) -> None:
        found = loading.examples(config.data, columns=config.columns, split=config.split, limit=config.limit, seed=config.seed)
        task = loading.task_of(config.data)
        examples = [_answered(e, task, random.Random(f"{config.seed}/{i}"), name) for i, e in enumerate(found)]
        super().__init__(examples, config.batch_size, context, name)

    def rows(self, items: Sequence[Example], encoder: Any) -> DemoRows:
        return DemoRows(tokens=encoder.demos([e.prompt for e in items], [e.meta["response"] for e in items]))


def _answered(example: Example, task: Any, rng: random.Random, name: str) -> Example:
    if "response" in example.meta:
        return example
    if task is not None:
        return replace(example, meta={**example.meta, "response": task.demonstrate(example, rng)})
    if example.answer is not None:
        return replace(example, meta={**example.meta, "response": example.answer})
    raise ConfigError(f"sources.{name}: row '{example.id}' has no response; name its column with columns: {{response: ...}}.")

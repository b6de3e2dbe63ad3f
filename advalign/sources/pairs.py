"""Preference pairs."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from advalign import data as loading
from advalign.errors import ConfigError
from advalign.protocols import Context
from advalign.sources._stream import ListRuntime
from advalign.types import Example, PairRows, Rows

__all__ = ["Pairs"]


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """(prompt, chosen, rejected) rows; `batch_size` pairs per draw.

    Without a `rejected` column and with a task, the chosen text is the task's demonstration for the prompt and the
    rejected one a demonstration for a perturbed prompt: right for something that was not asked.
    """

    data: Any
    split: str = "train"
    batch_size: int = 8
    limit: int | None = None
    columns: Mapping[str, str] | None = None
    seed: int = 0

    yields: ClassVar[type[Rows]] = PairRows

    @property
    def after(self) -> tuple[str, ...]:
        return ()

    def start(self, context: Context, name: str) -> _Runtime:
        return _Runtime(self, context, name)


class _Runtime(ListRuntime[Example]):
    def __init__(self, config: Pairs, context: Context, name: str) -> None:
        found = loading.examples(config.data, columns=config.columns, split=config.split, limit=config.limit, seed=config.seed)
        task = loading.task_of(config.data)
        examples = [_paired(e, task, random.Random(f"{config.seed}/{i}"), name) for i, e in enumerate(found)]
        super().__init__(examples, config.batch_size, context, name)

    def rows(self, items: Sequence[Example], encoder: Any) -> PairRows:
        both = [(e.prompt, e.meta[side], i) for i, e in enumerate(items) for side in ("chosen", "rejected")]
        prompts, texts, group = (list(column) for column in zip(*both, strict=True))
        return PairRows(tokens=encoder.demos(prompts, texts, group))


def _paired(example: Example, task: Any, rng: random.Random, name: str) -> Example:
    if {"chosen", "rejected"} <= set(example.meta):
        return example
    if task is None:
        raise ConfigError(f"sources.{name}: row '{example.id}' needs the columns 'chosen' and 'rejected'; map them with columns.")
    chosen = task.demonstrate(example, rng)
    # Drawn until it is wrong for the prompt itself: some demonstrations of a perturbed prompt still satisfy the old one.
    for _ in range(100):
        rejected = task.demonstrate(task.perturb(example, chosen, rng), rng)
        if example.verify is not None and example.verify(rejected) < 1:
            return replace(example, meta={**example.meta, "chosen": chosen, "rejected": rejected})
    raise ConfigError(f"sources.{name}: no response that is wrong for '{example.prompt}' was found in 100 draws.")

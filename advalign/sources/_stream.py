"""What sources over a fixed list share: its fields, a seeded endless stream over it, and the runtime that draws from it."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from advalign import data as loading
from advalign.errors import BudgetError, ConfigError
from advalign.interfaces import Context, Source, SourceRuntime
from advalign.types import Example, Rows

T = TypeVar("T")


class Stream(Generic[T]):
    """Every epoch a new permutation; the position is the only state."""

    def __init__(self, items: Sequence[T], rng: Callable[[int], random.Random], where: str) -> None:
        if not items:
            raise ConfigError(f"{where}: the data is empty.")
        self.items, self._rng, self.position = items, rng, 0
        self._order: tuple[int, list[int]] = (-1, [])

    def take(self, number: int) -> list[T]:
        return [self.items[self._next()] for _ in range(number)]

    def _next(self) -> int:
        epoch, offset = divmod(self.position, len(self.items))
        if self._order[0] != epoch:
            order = list(range(len(self.items)))
            self._rng(epoch).shuffle(order)
            self._order = (epoch, order)
        self.position += 1
        return self._order[1][offset]

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.position = int(state["position"])


class ListRuntime(SourceRuntime[T]):
    """Abstract runtime over a fixed list of examples; a source adds `rows`."""

    def __init__(self, items: Sequence[T], batch_size: int, context: Context, name: str) -> None:
        self.examples = items
        self.batch_size = batch_size
        self.stream = Stream(items, lambda epoch: context.random("source", name, epoch), f"sources.{name}")

    def draw(self, step: int, repeat: int) -> Any:
        return self.stream.take(self.batch_size)

    def sample(self, number: int, rng: random.Random) -> list[T]:
        """Items for another source, without moving this one."""
        return rng.sample(list(self.examples), number) if number <= len(self.examples) else rng.choices(self.examples, k=number)

    def rows(self, items: Any, encoder: Any) -> Rows:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        return self.stream.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.stream.load_state_dict(state)


@dataclass(frozen=True, kw_only=True)
class ListSource(Source):
    """Abstract base of the sources over a file, a hub id or a task: `batch_size` examples per draw. `limit` keeps that many, chosen by
    the data's `seed`. A source says what an example must hold (`complete`), and how a learner's encoder makes rows of it (`build`)."""

    data: Any
    split: str = "train"
    batch_size: int = 16
    limit: int | None = None
    columns: Mapping[str, str] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"sources.batch_size: got {self.batch_size}, must be at least 1.")

    @property
    def draw_size(self) -> int:
        return self.batch_size

    def start(self, context: Context, name: str) -> ListRuntime[Example]:
        return _Runtime(self, context, name)

    def complete(self, example: Example, number: int, task: Any, where: str) -> Example:
        """Example `number`, with everything a row needs; `task` (or None) can demonstrate it. Raises ConfigError."""
        raise NotImplementedError

    def build(self, items: Sequence[Example], encoder: Any) -> Rows:
        raise NotImplementedError

    def rng(self, number: int) -> random.Random:
        """The choices about example `number`."""
        return random.Random(f"{self.seed}/{number}")


class _Runtime(ListRuntime[Example]):
    def __init__(self, config: ListSource, context: Context, name: str) -> None:
        self.config, self.where = config, f"sources.{name}"
        found = loading.examples(config.data, columns=config.columns, split=config.split, limit=config.limit, seed=config.seed)
        task = loading.task_of(config.data)
        examples = [config.complete(example, number, task, self.where) for number, example in enumerate(found)]
        super().__init__(examples, config.batch_size, context, name)

    def rows(self, items: Sequence[Example], encoder: Any) -> Rows:
        try:
            return self.config.build(items, encoder)
        except BudgetError as error:
            raise BudgetError(f"{self.where}: {error}") from error

"""A seeded endless stream over a fixed list: every epoch a new permutation, its position the only state."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from advalign.errors import ConfigError
from advalign.protocols import Context
from advalign.types import Rows

T = TypeVar("T")


class Stream(Generic[T]):
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


class ListRuntime(Generic[T]):
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

"""What sources over a fixed list share: their fields, a seeded endless stream over the list, and runtimes that draw from it."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from advalign import data as loading
from advalign.errors import BudgetError, ConfigError
from advalign.interfaces import Context, Source, SourceRuntime, Task
from advalign.sources._checks import require_positive
from advalign.types import Example, Rows

if TYPE_CHECKING:
    from advalign.models.encode import Encoder

T = TypeVar("T")


class Stream(Generic[T]):
    """An endless stream over a list: every epoch a new permutation; the position is the only state."""

    def __init__(self, items: Sequence[T], rng: Callable[[int], random.Random], path: str) -> None:
        if not items:
            raise ConfigError(f"{path}: the data is empty.")
        self.items, self._rng, self.position = items, rng, 0
        self._order: tuple[int, list[int]] = (-1, [])

    def take(self, number: int) -> list[T]:
        """The next `number` items."""
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


class StreamRuntime(SourceRuntime[T]):
    """Abstract runtime whose only state is the position of its `stream`."""

    stream: Stream[Any]
    """What it draws from."""

    def state_dict(self) -> dict[str, Any]:
        return self.stream.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.stream.load_state_dict(state)


@dataclass(frozen=True, kw_only=True)
class ListSource(Source):
    """Abstract base of the sources over a file, a hub id or a task."""

    data: Any
    """Reference to the examples (see `advalign.data`)."""
    split: str = "train"
    """Split of the data."""
    batch_size: int = 16
    """Examples per draw."""
    limit: int | None = None
    """Number of examples kept, chosen by `seed`. None: all."""
    columns: Mapping[str, str] | None = None
    """{field: column of the data}, before the usual names."""
    seed: int = 0
    """Seed of the choices about the data."""

    def __post_init__(self) -> None:
        require_positive("sources", batch_size=self.batch_size)

    @property
    def training_data(self) -> tuple[Any, str] | None:
        return self.data, self.split

    @property
    def draw_size(self) -> int:
        return self.batch_size

    def start(self, context: Context, name: str) -> ListRuntime:
        return ListRuntime(self, context, name)

    def load(self, context: Context, name: str) -> tuple[list[Example], tuple[str, ...]]:
        """The examples, and the names of their classes (empty: none)."""
        return loading.examples(self.data, columns=self.columns, split=self.split, limit=self.limit, seed=self.seed), ()

    @abstractmethod
    def complete(self, example: Example, index: int, task: Task | None, path: str) -> Example:
        """Example `index` with everything a row needs; `task` demonstrates it, where the data is a task. Raises ConfigError."""

    @abstractmethod
    def build(self, items: Sequence[Example], encoder: Encoder) -> Rows:
        """Rows of completed examples."""

    def rng(self, index: int) -> random.Random:
        """The stream of the choices about example `index`."""
        return random.Random(f"{self.seed}/{index}")


class ListRuntime(StreamRuntime[Example]):
    """A started `ListSource`: all its examples, completed."""

    def __init__(self, config: ListSource, context: Context, name: str) -> None:
        self.config, self.path = config, f"sources.{name}"
        loaded, self.class_names = config.load(context, name)
        task: Task | None = loading.task_of(config.data)
        self.examples = [config.complete(example, index, task, self.path) for index, example in enumerate(loaded)]
        self.stream = Stream(self.examples, lambda epoch: context.random("source", name, epoch), self.path)

    def draw(self, step: int, repeat: int) -> list[Example]:
        return self.stream.take(self.config.batch_size)

    def sample(self, number: int, rng: random.Random) -> list[Example]:
        return rng.sample(list(self.examples), number) if number <= len(self.examples) else rng.choices(self.examples, k=number)

    def rows(self, items: Sequence[Example], encoder: Encoder) -> Rows:
        try:
            return self.config.build(items, encoder)
        except BudgetError as error:
            raise BudgetError(f"{self.path}: {error}") from error

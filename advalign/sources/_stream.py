"""What sources over a fixed list share: their fields, a seeded endless stream over the list, and runtimes that draw from it."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from advalign import data as loading
from advalign.errors import BudgetError, ConfigError, located
from advalign.interfaces import Context, Source, SourceRuntime, Task
from advalign.interfaces.source import shrunk
from advalign.models.row_bounds import doubtful
from advalign.ranges import Count, Seed, Words
from advalign.types import Example, Rows

if TYPE_CHECKING:
    from advalign.models.encode import Encoder

T = TypeVar("T")

SMOKE_ROWS = 256
"""The most rows that a smoke run reads of a source."""


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


class LazyStream(Generic[T]):
    """An endless stream over rows that are read as they are needed: every epoch reads them again, in an order of its own.

    Its state is the epoch and the number of rows read in it; a resumed run reads them again and passes over them."""

    def __init__(self, read: Callable[[random.Random], Iterator[T]], rng: Callable[[int], random.Random], path: str) -> None:
        self._read, self._rng, self._path = read, rng, path
        self.epoch = self.position = 0
        self._rows = read(rng(0))

    def take(self, number: int) -> list[T]:
        """The next `number` items."""
        return [self._next() for _ in range(number)]

    def _next(self) -> T:
        row = next(self._rows, None)
        if row is not None:
            self.position += 1
            return row
        if not self.position:
            raise ConfigError(f"{self._path}: the data is empty.")
        self.epoch, self.position = self.epoch + 1, 0
        self._rows = self._read(self._rng(self.epoch))
        return self._next()

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.epoch, self.position = int(state["epoch"]), int(state["position"])
        self._rows = self._read(self._rng(self.epoch))
        for _ in range(self.position):
            next(self._rows)


class StreamRuntime(SourceRuntime[T]):
    """Abstract runtime whose only state is the position of its `stream`."""

    stream: Stream[Any] | LazyStream[Any]
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
    split: Words = "train"
    """Split of the data."""
    batch_size: Count = 16
    """Examples per draw."""
    limit: Count | None = None
    """Number of examples kept, chosen by `seed`. None: all; a stream is then read as its rows are needed."""
    columns: Mapping[str, Words] | None = None
    """{field: column of the data}, before the usual names."""
    seed: Seed = 0
    """Seed of the choices about the data."""

    def smaller(self) -> Source:
        """Two rows per draw, of at most SMOKE_ROWS."""
        small = shrunk(self, batch_size=2)
        return replace(small, limit=min(small.limit or SMOKE_ROWS, SMOKE_ROWS))

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

    def streamed(self, context: Context, name: str) -> loading.Streamed | None:
        """The examples of a stream, read as they are needed; None: the data is not a stream, or `limit` says how much to read."""
        return None if self.limit is not None else loading.streamed(self.data, self.columns, self.split)

    def expand(self, example: Example) -> Sequence[Example]:
        """The examples that a row of the data is."""
        return (example,)

    @abstractmethod
    def complete(self, example: Example, index: int, task: Task | None, path: str) -> Example:
        """Example `index` with everything a row needs; `task` demonstrates it, where the data is a task. Raises ConfigError."""

    @abstractmethod
    def build(self, items: Sequence[Example], encoder: Encoder) -> Rows:
        """Rows of completed examples."""

    def may_refuse(self, encoder: Encoder) -> bool:
        """Whether `build` may refuse an example that is too long for this encoder, rather than cut it."""
        return encoder.truncation.mode != "left"

    def rng(self, index: int) -> random.Random:
        """The stream of the choices about example `index`."""
        return random.Random(f"{self.seed}/{index}")


class ListRuntime(StreamRuntime[Example]):
    """A started `ListSource`: all its examples, completed; of a stream, those of the draw."""

    def __init__(self, config: ListSource, context: Context, name: str) -> None:
        self.config, self.path = config, f"sources.{name}"
        self.task: Task | None = loading.task_of(config.data)
        rng = lambda epoch: context.random("source", name, epoch)  # noqa: E731
        streamed = config.streamed(context, name)
        if streamed is not None:
            self.class_names, read = streamed.class_names, streamed.read
            self.stream = LazyStream(lambda order: self._completed(e for row in read(order) for e in config.expand(row)), rng, self.path)
            return
        loaded, self.class_names = config.load(context, name)
        self.examples = list(self._completed(e for row in loaded for e in config.expand(row)))
        self.stream = Stream(self.examples, rng, self.path)

    def _completed(self, examples: Iterable[Example]) -> Iterator[Example]:
        return (self.config.complete(example, index, self.task, self.path) for index, example in enumerate(examples))

    def draw(self, step: int, repeat: int) -> list[Example]:
        return self.stream.take(self.config.batch_size)

    def sample(self, number: int, rng: random.Random) -> list[Example]:
        if isinstance(self.stream, LazyStream):
            raise ConfigError(f"{self.path}: another source takes examples from it, which a stream cannot give; set limit.")
        return rng.sample(list(self.examples), number) if number <= len(self.examples) else rng.choices(self.examples, k=number)

    def check_rows(self, encoder: Encoder) -> None:
        for example in doubtful(encoder, self.examples) if self.config.may_refuse(encoder) else ():
            with located(f"{self.path}: {example.described}"):
                self.config.build([example], encoder)

    def rows(self, items: Sequence[Example], encoder: Encoder) -> Rows:
        try:
            return self.config.build(items, encoder)
        except BudgetError as error:
            for example in items:  # of a stream: nothing looked at them before
                with located(f"{self.path}: {example.described}"):
                    self.config.build([example], encoder)
            raise BudgetError(f"{self.path}: {error}") from error

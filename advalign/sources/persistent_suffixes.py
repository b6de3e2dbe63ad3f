"""Attacks that live on: pairs whose prompts carry suffixes that are searched a little further at every draw."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypedDict, cast

from advalign.errors import ConfigError
from advalign.interfaces import Attack, Context, Source, SourceRuntime
from advalign.types import Example, PairRows, Rows

__all__ = ["PersistentSuffixes"]


class Entry(TypedDict):
    """One attack of the pool: a pair of `of` by its number, the ids behind its prompt (none: not attacked yet), what its random
    stream is keyed by, and how often it was drawn."""

    pair: int
    suffix: list[int]
    born: int
    age: int


@dataclass(frozen=True, kw_only=True)
class PersistentSuffixes(Source):
    """(x + s_i, chosen, rejected);  s_i <- attack(s_i, rejected) a few steps at each draw, on the policy of now: the persistent
    suffixes of R2D2 (HarmBench, arXiv:2402.04249, section 5).

    `size` pairs of the source `of` carry a suffix each; a draw takes `batch_size` of them, lets `attack` (a search for suffixes: gcg,
    tokens, random_search) go on from where it stopped, with as many `steps` as it has, and yields the pairs with the attacked prompt on
    both sides. Every `reset_every` draws the share `reset` of the pool begins anew, with other pairs. The attack seeks the rejected
    answer with `goal: lower`. Ours: what a draw hands over is the best suffix it scored, the one it began with among them.

    Raises ConfigError for an attack that cannot go on, a source without pairs and shares or counts out of range.
    """

    source: str
    attack: Attack
    learner: str = "policy"
    size: int = 180
    batch_size: int = 8
    reset: float = 0.2
    reset_every: int = 50

    row_type: ClassVar[type[Rows]] = PairRows
    draws_before_updates: ClassVar[bool] = True

    @property
    def players(self) -> Sequence[tuple[str, str]]:
        return (("learner", self.learner),)

    @property
    def draw_size(self) -> int:
        return self.batch_size

    def __post_init__(self) -> None:
        if not self.attack.refines_suffixes:
            raise ConfigError(
                "sources.persistent_suffixes.attack: this attack begins anew every time; use a search that can go on from a suffix: gcg, tokens, "
                "random_search."
            )
        for name in ("size", "batch_size", "reset_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"sources.persistent_suffixes.{name}: got {getattr(self, name)}, must be at least 1.")
        if self.batch_size > self.size:
            raise ConfigError(
                f"sources.persistent_suffixes.batch_size: {self.batch_size} attacks per draw, and the pool holds {self.size}."
            )
        if not 0 <= self.reset <= 1:
            raise ConfigError(f"sources.persistent_suffixes.reset: got {self.reset}, must be a share of the pool, between 0 and 1.")

    @property
    def depends_on(self) -> tuple[str, ...]:
        return (self.source,)

    def start(self, context: Context, name: str) -> _Runtime:
        return _Runtime(self, context, name)


class _Runtime(SourceRuntime[Any]):
    def __init__(self, config: PersistentSuffixes, context: Context, name: str) -> None:
        self.config, self.context, self.name = config, context, name
        self.source = context.source(config.source)
        self.pairs: Sequence[Example] = self.source.examples
        wrong = next((e for e in self.pairs if "rejected" not in e.meta or "rejected_prompt" in e.meta), None)
        if not self.pairs or wrong is not None:
            raise ConfigError(
                f"sources.{name}.source: source '{config.source}' holds no pairs of two responses to one prompt; name a source of kind pairs."
            )
        self.entries: list[Entry] = []
        self.born = self.draws = 0
        self.logs: dict[str, float] = {}

    def draw(self, step: int, repeat: int) -> list[Example]:
        config, rng = self.config, self.context.random("source", self.name, step, repeat)
        self._renew(rng)
        self.draws += 1
        chosen = rng.sample(range(config.size), config.batch_size)
        found = self.context.map_across_ranks([self.entries[i] for i in chosen], lambda entries: self._searched(entries, (step, repeat)))
        items, ages = [], []
        for number, (text, suffix, *_) in zip(chosen, found, strict=True):
            entry = self.entries[number]
            ages.append(entry["age"])
            self.entries[number] = {**entry, "suffix": list(suffix), "age": entry["age"] + 1}
            items.append(replace(self.pairs[entry["pair"]], prompt=text))
        columns = {"loss/before": 2, "loss": 3, "num_queries": 4}
        self.logs = {name: sum(row[at] for row in found) / len(found) for name, at in columns.items()}
        self.logs |= {"age": sum(ages) / len(ages)}
        return items

    def _renew(self, rng: random.Random) -> None:
        """A full pool; now and then a share of it begins anew."""
        config = self.config
        if self.draws and self.draws % config.reset_every == 0:
            for number in rng.sample(range(config.size), round(config.reset * config.size)):
                self.entries[number] = self._fresh(rng)
        while len(self.entries) < config.size:
            self.entries.append(self._fresh(rng))

    def _fresh(self, rng: random.Random) -> Entry:
        self.born += 1
        return {"pair": rng.randrange(len(self.pairs)), "suffix": [], "born": self.born, "age": 0}

    def _searched(self, entries: Sequence[Entry], key: tuple[int, int]) -> list[list[Any]]:
        """[text, suffix, loss of what it began with, loss, queries] of every entry, on the weights of now."""
        attack: Any = self.config.attack
        rows: list[list[Any]] = []
        with self.context.target(self.config.learner) as target:
            for entry in entries:
                pair = self.pairs[entry["pair"]]
                victim = Example(prompt=pair.prompt, id=pair.id, meta={"response": pair.meta["rejected"]})
                rng = self.context.random("attack", self.name, entry["born"], *key)
                found = attack.resume(target, victim, tuple(entry["suffix"]), rng)
                rows.append([found.text, list(found.suffix), found.trace[0][1], found.loss, found.queries])
        return rows

    def rows(self, items: Sequence[Example], encoder: Any) -> Rows:
        built: Rows = self.source.rows(items, encoder)
        return built

    def state_dict(self) -> dict[str, Any]:
        return {"entries": [dict(entry) for entry in self.entries], "born": self.born, "draws": self.draws}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.entries = [cast(Entry, dict(entry)) for entry in state["entries"]]
        self.born, self.draws = int(state["born"]), int(state["draws"])

"""Suffixes that live through training: pairs whose prompts carry suffixes that are searched a little further at every draw."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict, cast

from advalign.errors import ConfigError
from advalign.interfaces import Attack, Context, Source, SourceRuntime
from advalign.names import SamplerName, SourceName
from advalign.ranges import Count, Fraction
from advalign.types import Example, PairRows, Rows

if TYPE_CHECKING:
    from advalign.models.encode import Encoder

__all__ = ["PersistentSuffixes"]


class Entry(TypedDict):
    """One suffix of the pool, as a plain value."""

    pair: int
    """Index of its pair in `source`."""
    suffix: list[int]
    """Ids behind the prompt; none before the first search."""
    born: int
    """Number of the entry, which keys its random stream."""
    age: int
    """How often it was drawn."""


class Search(TypedDict):
    """One search, as a plain value."""

    text: str
    """The text of the prompt (`Example.text`) with the best suffix."""
    suffix: list[int]
    """The best suffix."""
    first_loss: float
    """Loss of the suffix it began with."""
    loss: float
    """Loss of the best suffix."""
    queries: int
    """Texts scored."""


@dataclass(frozen=True, kw_only=True)
class PersistentSuffixes(Source):
    """(x + s_i, chosen, rejected);  s_i <- attack(s_i, rejected) a few steps at each draw, on the current policy: the persistent
    suffixes of R2D2 (HarmBench, arXiv:2402.04249, section 5).

    A draw lets `attack` continue from where it stopped, with as many `steps` as it has, and yields the pairs with the attacked prompt on
    both sides. The attack seeks the rejected answer with `goal: lower`. Ours: a draw returns the best suffix it scored, the one it began
    with among them.

    Raises ConfigError for an attack that cannot continue, a source without pairs, and fractions or counts out of range.
    """

    source: SourceName
    """Name of a source of pairs."""
    attack: Attack
    """A search for suffixes that can continue: gcg, tokens, random_search."""
    learner: SamplerName = "policy"
    """Learner (or frozen copy) that is attacked."""
    size: Count = 180
    """Suffixes in the pool, one pair each."""
    batch_size: Count = 8
    """Suffixes per draw."""
    reset: Fraction = 0.2
    """Fraction of the pool that is renewed every `reset_every` draws, with other pairs and without suffixes."""
    reset_every: Count = 50
    """Draws between two renewals."""

    row_type: ClassVar[type[Rows]] = PairRows
    draws_before_updates: ClassVar[bool] = True

    @property
    def draw_size(self) -> int:
        return self.batch_size

    def __post_init__(self) -> None:
        path = "sources.persistent_suffixes"
        if not self.attack.refines_suffixes:
            raise ConfigError(
                f"{path}.attack: this attack starts anew every time; use a search that can continue from a suffix: gcg, tokens, "
                "random_search."
            )
        if self.batch_size > self.size:
            raise ConfigError(f"{path}.batch_size: {self.batch_size} suffixes per draw, and the pool has {self.size}.")

    def start(self, context: Context, name: str) -> _Runtime:
        return _Runtime(self, context, name)


class _Runtime(SourceRuntime[Example]):
    def __init__(self, config: PersistentSuffixes, context: Context, name: str) -> None:
        self.config, self.context, self.name = config, context, name
        self.source: SourceRuntime[Example] = context.source(config.source)
        self.pairs = self.source.examples
        if not self.pairs or any("rejected" not in e.meta or "rejected_prompt" in e.meta for e in self.pairs):
            raise ConfigError(
                f"sources.{name}.source: source '{config.source}' has no pairs of two responses to one prompt; name a source of kind pairs."
            )
        self.entries: list[Entry] = []
        self.num_entries = self.num_draws = 0  # so far, over the whole run
        self.logs: dict[str, float] = {}

    def draw(self, step: int, repeat: int) -> list[Example]:
        config, rng = self.config, self.context.random("source", self.name, step, repeat)
        self._renew(rng)
        self.num_draws += 1
        chosen = rng.sample(range(config.size), config.batch_size)
        searches: list[Search] = self.context.map_across_ranks(
            [self.entries[i] for i in chosen], lambda entries: self._search(entries, (step, repeat))
        )
        items, ages = [], []
        for index, search in zip(chosen, searches, strict=True):
            entry = self.entries[index]
            ages.append(entry["age"])
            self.entries[index] = {**entry, "suffix": list(search["suffix"]), "age": entry["age"] + 1}
            items.append(self.pairs[entry["pair"]].with_text(search["text"]))
        number = len(searches)
        self.logs = {
            "loss/before": sum(s["first_loss"] for s in searches) / number,
            "loss": sum(s["loss"] for s in searches) / number,
            "num_queries": sum(s["queries"] for s in searches) / number,
            "age": sum(ages) / len(ages),
        }
        return items

    def _renew(self, rng: random.Random) -> None:
        """Fills the pool; every `reset_every` draws a fraction of it is renewed."""
        config = self.config
        if self.num_draws and self.num_draws % config.reset_every == 0:
            for index in rng.sample(range(config.size), round(config.reset * config.size)):
                self.entries[index] = self._new_entry(rng)
        while len(self.entries) < config.size:
            self.entries.append(self._new_entry(rng))

    def _new_entry(self, rng: random.Random) -> Entry:
        self.num_entries += 1
        return {"pair": rng.randrange(len(self.pairs)), "suffix": [], "born": self.num_entries, "age": 0}

    def _search(self, entries: Sequence[Entry], key: tuple[int, int]) -> list[Search]:
        """A few more steps of the search for every entry, on the current weights."""
        searches: list[Search] = []
        with self.context.target(self.config.learner) as target:
            for entry in entries:
                pair = self.pairs[entry["pair"]]
                example = Example(prompt=pair.prompt, id=pair.id, meta={"response": pair.meta["rejected"]})
                rng = self.context.random("attack", self.name, entry["born"], *key)
                best = self.config.attack.resume(target, example, tuple(entry["suffix"]), rng)
                searches.append(
                    {
                        "text": pair.text if best.text is None else best.text,
                        "suffix": list(best.suffix),
                        "first_loss": best.trace[0][1],
                        "loss": best.loss,
                        "queries": best.queries,
                    }
                )
        return searches

    def check_rows(self, encoder: Encoder) -> None:
        self.source.check_rows(encoder)

    def rows(self, items: Sequence[Example], encoder: Encoder) -> Rows:
        return self.source.rows(items, encoder)

    def state_dict(self) -> dict[str, Any]:
        return {"entries": [dict(entry) for entry in self.entries], "born": self.num_entries, "draws": self.num_draws}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.entries = [cast(Entry, dict(entry)) for entry in state["entries"]]
        self.num_entries, self.num_draws = int(state["born"]), int(state["draws"])

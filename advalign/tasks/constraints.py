"""Sentences under constraints: "length 5 with red without blue :" asks for five words, red among them, blue not."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Annotated, Any

from advalign.errors import AdvalignError
from advalign.interfaces import Task
from advalign.ranges import Count, Fraction, Natural, whole
from advalign.tasks._common import check_split, hash_fraction, require
from advalign.types import Example

WORDS = (
    "red", "blue", "green", "gold", "pink", "gray", "black", "white", "brown", "violet", "amber", "coral", "olive", "ivory", "khaki",
    "lilac", "maroon", "navy", "peach", "plum", "rose", "ruby", "rust", "sage", "salmon", "sand", "scarlet", "silver", "teal", "umber",
)  # fmt: skip
Slots = tuple[int, str, str]


@dataclass(frozen=True, kw_only=True)
class Constraints(Task):
    """verify(text) = 1[low ≤ words ≤ high] · 1[every `with` word is in it] · 1[no `without` word is] · 1[all in the vocabulary].

    The constrained-writing task of GAPO (arXiv:2503.20194, section 3) as a closed toy: (longest - shortest + 1) lengths x words x
    (words - 1) = 450 combinations; "ood" asks for lengths above `longest`. `perturb` modifies a slot (never into another split) or
    inserts a conflicting one.
    """

    words: Annotated[int, whole(5, len(WORDS))] = 10
    """Size of the vocabulary."""
    shortest: Count = 3
    """Least length, in words."""
    longest: Count = 7
    """Greatest length of "train" and "test", in words."""
    slack: Natural = 0
    """Turns a length n into the range n to n + slack."""
    held_out: Natural = 90
    """Combinations of "test", the same for every seed."""
    ood_extra: Count = 2
    """Lengths above `longest` that "ood" asks for."""
    insert: Fraction = 0.2
    """Probability that `perturb` inserts a slot; the paper states no proportion. An inserted slot is visible without reading the text,
    since no real prompt has four: keep it rare."""

    def __post_init__(self) -> None:
        path = "tasks.constraints"
        ordered = self.shortest < self.longest
        require(ordered, f"{path}.shortest, longest: {self.shortest}, {self.longest} are not two lengths with 1 <= shortest < longest.")
        spare = self.slack < self.longest - self.shortest
        require(spare, f"{path}.slack: {self.slack} is not between 0 and longest - shortest - 1; no other length could be asked for.")
        total = (self.longest - self.shortest + 1) * self.words * (self.words - 1)
        require(self.held_out < total, f"{path}.held_out: {self.held_out} is not between 0 and {total - 1}.")

    def combinations(self, split: str) -> list[Slots]:
        """All (length, with, without) of a split, in a fixed order."""
        check_split("constraints", split)
        return list(_combinations(self)[split])

    def examples(self, split: str, number: int, rng: random.Random) -> list[Example]:
        slots = self.combinations(split)
        return [self._example(n, (a,), (b,), split) for n, a, b in rng.sample(slots, min(number, len(slots)))]

    def demonstrate(self, example: Example, rng: random.Random) -> str:
        """Required words at random places, then any allowed word that repeats no neighbour (where one is left)."""
        low, high = example.meta["length"]
        length = rng.randint(max(low, len(example.meta["with"])), high)
        allowed = [word for word in WORDS[: self.words] if word not in example.meta["without"]]
        sentence: list[str | None] = [None] * length
        for place, word in zip(rng.sample(range(length), len(example.meta["with"])), example.meta["with"], strict=True):
            sentence[place] = word
        for place in range(length):
            neighbours = {sentence[i] for i in (place - 1, place + 1) if 0 <= i < length}
            different = [word for word in allowed if word not in neighbours]
            sentence[place] = sentence[place] or rng.choice(different or allowed)
        return " ".join(map(str, sentence))

    def perturb(self, example: Example, text: str, rng: random.Random) -> Example:
        """GAPO's preferential prompt: a slot modified, or a slot inserted, so that `text` now violates it."""
        inserting, modifying = self._insertions(example, text), self._modifications(example, text)
        for options in (inserting, modifying) if rng.random() < self.insert else (modifying, inserting):
            by_change: dict[str, list[Example]] = {}
            for change, new in options:
                by_change.setdefault(change, []).append(new)
            if by_change:
                return rng.choice(by_change[rng.choice(sorted(by_change))])
        raise AdvalignError(f"tasks.constraints: nothing near '{example.prompt}' is violated by '{text[:40]}'.")

    def violations(self, example: Example, text: str) -> dict[str, bool]:
        """Which constraints `text` breaks: length, with, without, vocabulary."""
        return violations(text, example.meta, frozenset(WORDS[: self.words]))

    def vocabulary(self) -> list[str]:
        lengths = range(self.shortest, self.longest + self.ood_extra + self.slack + 1)
        return ["length", *map(str, lengths), *(["to"] if self.slack else []), "with", "without", ":", *WORDS[: self.words]]

    def _example(self, length: int, must: tuple[str, ...], avoid: tuple[str, ...], split: str) -> Example:
        span = f"{length} to {length + self.slack}" if self.slack else str(length)
        prompt = " ".join(["length", span, *(f"with {w}" for w in must), *(f"without {w}" for w in avoid), ":"])
        meta = {"length": (length, length + self.slack), "with": must, "without": avoid, "split": split}
        verify = partial(_verify, slots=meta, vocabulary=frozenset(WORDS[: self.words]))
        return Example(prompt=prompt, id=f"constraints/{prompt[:-2].replace(' ', '-')}", meta=meta, verify=verify)

    def _modifications(self, example: Example, text: str) -> Iterator[tuple[str, Example]]:
        length, must, avoid, split = self._read(example)
        family = set(self.combinations(split))
        options = [("length", (n, must, avoid)) for n in sorted({n for n, _, _ in family}) if n != length]
        options += [("with", (length, (a, *must[1:]), avoid)) for a in WORDS[: self.words] if a not in (*must, *avoid)]
        options += [("without", (length, must, (b, *avoid[1:]))) for b in WORDS[: self.words] if b not in (*must, *avoid)]
        for change, slots in options:
            new = self._example(*slots, split)
            single = len(slots[1]) == len(slots[2]) == 1
            if self.violations(new, text)[change] and not (single and (slots[0], slots[1][0], slots[2][0]) not in family):
                yield change, new

    def _insertions(self, example: Example, text: str) -> Iterator[tuple[str, Example]]:
        length, must, avoid, split = self._read(example)
        for word in WORDS[: self.words]:
            if word in (*must, *avoid):
                continue
            if word in text.split() and len(avoid) + 3 < self.words:
                yield "without", self._example(length, must, (*avoid, word), split)
            if word not in text.split() and len(must) < length:
                yield "with", self._example(length, (*must, word), avoid, split)

    def _read(self, example: Example) -> tuple[int, tuple[str, ...], tuple[str, ...], str]:
        return example.meta["length"][0], example.meta["with"], example.meta["without"], example.meta["split"]


@lru_cache(maxsize=64)
def _combinations(task: Constraints) -> dict[str, list[Slots]]:
    def slots(low: int, high: int) -> list[Slots]:
        words = WORDS[: task.words]
        return [(n, a, b) for n in range(low, high + 1) for a in words for b in words if a != b]

    ranked = sorted(slots(task.shortest, task.longest), key=lambda s: hash_fraction(" ".join(map(str, s))))
    ood = slots(task.longest + 1, task.longest + task.ood_extra)
    return {"test": ranked[: task.held_out], "train": ranked[task.held_out :], "ood": ood}


def violations(text: str, slots: Mapping[str, Any], vocabulary: frozenset[str]) -> dict[str, bool]:
    """{constraint: broken?}; a word outside the vocabulary breaks "vocabulary"."""
    words = text.split()
    low, high = slots["length"]
    return {
        "length": not low <= len(words) <= high,
        "with": not set(slots["with"]) <= set(words),
        "without": not set(slots["without"]).isdisjoint(words),
        "vocabulary": not vocabulary.issuperset(words),
    }


def _verify(text: str, *, slots: Mapping[str, Any], vocabulary: frozenset[str]) -> float:
    return float(not any(violations(text, slots, vocabulary).values()))


__all__ = ["Constraints"]

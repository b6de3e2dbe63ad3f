"""The card game of 24, with a rule for the faces that changes out of distribution."""

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import islice
from typing import Annotated

from advalign.errors import AdvalignError, ConfigError
from advalign.interfaces import Task
from advalign.ranges import Count, Distinct, OneOf, OpenFraction, whole
from advalign.tasks._common import check_split, distinct_indices, hash_fraction
from advalign.tasks._noisy import KINDS, noisy
from advalign.tasks._points import evaluate, solvable, solve
from advalign.types import Example

RANKS = ("A", "2", "3", "4", "5", "6", "7", "8", "9", "10", "J", "Q", "K")
FACES = frozenset("JQK")
RULES = {"train": (10, 10, 10), "test": (10, 10, 10), "ood": (11, 12, 13)}
Cards = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class GeneralPoints(Task):
    """verify(text) = 1[the last line uses every card once with + - * / and brackets, and equals the target]; faces are 10, ood 11, 12, 13.

    GeneralPoints of "SFT memorizes, RL generalizes" (arXiv:2501.17161, section 4.1). Ours: text only, the prompt states the rule in
    figures, ood hands always have a face, and the numbers of a "test" hand (chosen by hash) never occur in "train", in any order and
    under any face.
    """

    target: Annotated[int, whole(1, 9999)] = 24
    """What a hand must make."""
    cards: Annotated[int, whole(2, 4)] = 4
    """Cards of a hand; with two a small model can learn it."""
    test_fraction: OpenFraction = 0.1
    """Of the hands, by hash of their numbers."""
    lowest: Count | None = None
    """Every target from here to `target` is asked, as far as the hand can make it. None: `target` alone."""
    noise: Annotated[Sequence[Annotated[str, OneOf(KINDS, "kind of noise")]], Distinct()] = ()
    """Kinds of noise (`tasks/_noisy.py`), one per prompt as a function of the example, so that the same hands can be asked cleanly and
    noisily."""

    def __post_init__(self) -> None:
        if self.lowest is not None and self.lowest > self.target:
            raise ConfigError(f"tasks.general_points.lowest: {self.lowest} given; it must be at most the target, {self.target}.")

    def examples(self, split: str, number: int, rng: random.Random) -> list[Example]:
        check_split("general_points", split)
        targets = range(self.target if self.lowest is None else self.lowest, self.target + 1)
        drawn = (divmod(index, len(targets)) for index in distinct_indices(len(RANKS) ** self.cards * len(targets), rng))
        candidates = ((self._hand(index), targets[which]) for index, which in drawn)
        solved = ((hand, aim) for hand, aim in candidates if self._belongs(hand, split) and solvable(_sorted(hand, split), aim))
        return [self._example(hand, aim, split) for hand, aim in islice(solved, number)]

    def demonstrate(self, example: Example, rng: random.Random) -> str:
        expression = solve(example.meta["values"], Fraction(example.meta["target"]), rng)
        if expression is None:
            raise AdvalignError(f"tasks.general_points: the hand of '{example.prompt}' cannot make {example.meta['target']}.")
        return expression

    def perturb(self, example: Example, text: str, rng: random.Random) -> Example:
        """Another card or another target, in the same split and solvable, so that `text` is wrong."""
        hand, target, split = (example.meta[key] for key in ("cards", "target", "split"))
        swaps = [((*hand[:i], rank, *hand[i + 1 :]), target) for i in range(len(hand)) for rank in RANKS if rank != hand[i]]
        aims = [(hand, other) for other in range(1, max(100, 2 * target)) if other != target]
        rng.shuffle(swaps)
        rng.shuffle(aims)
        near = (swaps, aims) if rng.random() < 0.5 else (aims, swaps)
        for new, aim in (option for options in near for option in options):
            if self._belongs(new, split) and solvable(_sorted(new, split), aim) and not right(text, _values(new, split), aim):
                return self._example(new, aim, split)
        raise AdvalignError(f"tasks.general_points: nothing near '{example.prompt}' is violated by '{text[:40]}'.")

    def vocabulary(self) -> list[str]:
        rules = [_prompt(RANKS, self.target, split) for split in RULES]
        return [*rules, *"0123456789", *"+-*/()=", " "]

    def _hand(self, index: int) -> Cards:
        return tuple(RANKS[index // len(RANKS) ** place % len(RANKS)] for place in range(self.cards))

    def _belongs(self, hand: Cards, split: str) -> bool:
        if split == "ood":
            return not FACES.isdisjoint(hand)
        return (hash_fraction(str(_sorted(hand, split))) < self.test_fraction) == (split == "test")

    def _example(self, hand: Cards, target: int, split: str) -> Example:
        values = _values(hand, split)
        prompt, name = _prompt(hand, target, split), f"general_points/{split}/{'-'.join(hand)}/{target}"
        if self.noise:
            rng = random.Random(f"noise/{name}")
            prompt = noisy(prompt, rng.choice(self.noise), rng)
        return Example(
            prompt=prompt,
            id=name,
            meta={"cards": hand, "values": values, "target": target, "split": split},
            verify=partial(_verify, values=values, target=target),
        )


def right(text: str, values: Iterable[int], target: int) -> bool:
    """Is the last line (an optional `= target` at its end left out) an expression of these cards worth the target?"""
    line = text.strip().rpartition("\n")[2]
    line = re.sub(rf"=\s*{target}\s*$", "", line) if len(line) <= 400 else line
    return evaluate(line, tuple(values)) == target


def _verify(text: str, *, values: tuple[int, ...], target: int) -> float:
    return float(right(text, values, target))


def _values(hand: Cards, split: str) -> tuple[int, ...]:
    worth = dict(zip(RANKS, (*range(1, 11), *RULES[split]), strict=True))
    return tuple(worth[card] for card in hand)


def _sorted(hand: Cards, split: str) -> tuple[int, ...]:
    return tuple(sorted(_values(hand, split)))


def _prompt(hand: Cards, target: int, split: str) -> str:
    jack, queen, king = RULES[split]
    return f"cards {' '.join(hand)} with A 1 J {jack} Q {queen} K {king} make {target} :"


__all__ = ["GeneralPoints"]

"""Many random misspellings of the request."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from advalign.errors import ConfigError
from advalign.interfaces import Attack, Target
from advalign.ranges import Count, Fraction
from advalign.types import Budget, Example, Proposal


@dataclass(frozen=True, kw_only=True)
class BestOfN(Attack):
    """x_i = noise(capitals(scramble(x))), i = 1 .. N;  broken if any is   (best-of-N jailbreaking, arXiv:2412.03556, section 2).

    With strength σ the middle of a word of more than three letters is shuffled with probability σ^(1/2), a letter changes its case with
    probability σ^(1/2), a printable ASCII character moves to a neighbour with probability σ^3.
    Success over N follows -log ASR(N) = a N^-b: `advalign.functional.scaling` fits it to the attempts of a suite.
    Ours: white space stays as it is; a letter without another case stays (the released code drops it). The harness draws
    one answer to each attempt, at the temperature of its sampling (the paper's is 1).
    """

    attempts: Count = 100
    """N; 10,000 in the paper."""
    strength: Fraction = 0.4
    """σ, as published."""
    scramble: bool = True
    """Whether the middles of words are shuffled."""
    capitals: bool = True
    """Whether letters change their case."""
    noise: bool = True
    """Whether characters move to a neighbour."""

    access: ClassVar[str] = "text"
    draws: ClassVar[bool] = True
    samples_answers: ClassVar[bool] = True
    head: ClassVar[str | None] = "policy"

    def __post_init__(self) -> None:
        if not (self.scramble or self.capitals or self.noise):
            raise ConfigError("attacks.best_of_n: scramble, capitals and noise are all off; every attempt would be the request itself.")

    def propose(self, target: Target, examples: Sequence[Example], budget: Budget, rng: random.Random) -> list[Proposal]:
        """All attempts of each example, as far as the budget of queries reaches. Nothing is sent to the target."""
        stream, proposals = rng.getrandbits(63), []
        number = self.attempts if budget.queries is None else min(self.attempts, budget.queries)
        for example in examples:
            example_rng = random.Random(f"{stream}/{example.id}/{example.text}")
            attempts = tuple(self.misspell(example.text, example_rng) for _ in range(number))
            proposals.append(Proposal(attempts=attempts, queries=number, note=f"{number} draws"))
        return proposals

    def misspell(self, text: str, rng: random.Random) -> str:
        """One draw."""
        often, seldom = self.strength**0.5, self.strength**3
        if self.scramble:
            text = _change_words(text, lambda word: _shuffle(word, rng) if len(word) > 3 and rng.random() < often else word)
        if self.capitals:
            text = "".join(c.swapcase() if c.isalpha() and rng.random() < often else c for c in text)
        if self.noise:
            text = "".join(_neighbour(c, rng) if "!" <= c <= "~" and rng.random() < seldom else c for c in text)
        return text


def _change_words(text: str, change: Callable[[str], str]) -> str:
    """Each word changed, white space kept."""
    pieces, word = [], ""
    for c in text:
        if c.isspace():
            pieces += [change(word) if word else "", c]
            word = ""
        else:
            word += c
    return "".join([*pieces, change(word) if word else ""])


def _shuffle(word: str, rng: random.Random) -> str:
    """The word with its middle shuffled."""
    middle = list(word[1:-1])
    rng.shuffle(middle)
    return word[0] + "".join(middle) + word[-1]


def _neighbour(c: str, rng: random.Random) -> str:
    """One up or one down, among the printable characters."""
    moved = chr(ord(c) + rng.choice((-1, 1)))
    return moved if " " <= moved <= "~" else c


__all__ = ["BestOfN"]

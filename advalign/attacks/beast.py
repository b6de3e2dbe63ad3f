"""A suffix that the model itself would write, chosen by what it makes the model say."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from advalign.attacks import _token_search as searching
from advalign.attacks._token_steps import beam
from advalign.errors import ConfigError
from advalign.types import Budget, Example, Proposal


@dataclass(frozen=True, kw_only=True)
class Beast:
    """Beams s_1 .. s_k1;  s_j v with v ~ p(. | x + s_j), k2 of them without replacement;  the k1 of lowest L(x + s_j v) go on
    (BEAST, arXiv:2402.15570, algorithm 1).

    Defaults are the paper's: k1 = k2 = 15 and 40 tokens, some 9,000 forwards. No gradients, and the suffix reads like text.
    Ours: the best suffix of any length is handed over (the paper: of the last); only suffixes that survive decoding and encoding are
    scored; special tokens are never drawn.
    """

    length: int = 40
    beams: int = 15
    branches: int = 15
    temperature: float = 1.0
    objective: str = "nll"
    goal: str = "lower"

    access: ClassVar[str] = "logprobs"
    head: ClassVar[str] = "policy"

    def __post_init__(self) -> None:
        searching.check("beast", self, "length", "beams", "branches")
        if not self.temperature > 0:
            raise ConfigError(f"attacks.beast.temperature: {self.temperature} given; a number above 0.")

    @property
    def aim(self) -> searching.Aim:
        return searching.Aim(length=self.length, objective=self.objective, goal=self.goal)

    def search(self, target: Any, examples: Sequence[Example], budget: Budget, rng: random.Random) -> list[searching.Found]:
        """What was found and what it cost, example by example."""

        def drive(search: searching.Search) -> None:
            beam(search, beams=self.beams, branches=self.branches, length=self.length, temperature=self.temperature)

        return searching.each("beast", target, examples, self.aim, budget, rng, drive)

    def propose(self, target: Any, examples: Sequence[Example], budget: Budget, rng: random.Random) -> list[Proposal]:
        """One text per example; a token costs a query per beam, and its candidates."""
        return [found.proposal(self.aim) for found in self.search(target, examples, budget, rng)]


__all__ = ["Beast"]

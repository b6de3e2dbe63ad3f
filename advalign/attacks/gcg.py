"""Greedy coordinate gradient with what was added to it."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from advalign.attacks import _token_search as searching
from advalign.attacks._token_steps import descend
from advalign.errors import ConfigError
from advalign.types import Budget, Example, Proposal


@dataclass(frozen=True, kw_only=True)
class GCG:
    """m ← μ m + (1 - μ) ∇_{onehot(s)} L,  s^(b) = s with s_i := v, v uniform in top-k of -m_i,  s ← argmin_b L(x + s^(b))
    (greedy coordinate gradient, arXiv:2307.15043, algorithm 1; momentum: MAC, arXiv:2405.01229).

    `buffer` b > 0: each step starts from the best of the b best suffixes so far, which begin as `initial` and b - 1 random ones (as in
    nanoGCG; the idea is ACG's, Haize Labs 2024); 0: from the last step's best candidate, even where that is worse (the paper).
    `objective`: "nll", "first", "mellowmax" (nanoGCG: of the raw logits, whose scale no model fixes; ours: of -log p), or "margin",
    the hinge of arXiv:1608.04644 on the response's tokens, which ends the search at 0, where greedy decoding says the response.
    `buffer` and `momentum` default to what was best here at equal forwards (docs/algorithms/gcg.md); 0 and 0 is kind `tokens`.
    Ours besides: as in `tokens`.
    """

    length: int = 20
    steps: int = 500
    candidates: int = 512
    top: int = 256
    momentum: float = 0.4
    buffer: int = 1
    objective: str = "nll"
    initial: str = "!"
    goal: str = "lower"

    access: ClassVar[str] = "gradients"
    head: ClassVar[str] = "policy"

    def __post_init__(self) -> None:
        searching.check("gcg", self, "length", "steps", "candidates", "top")
        if not 0 <= self.momentum < 1 or self.buffer < 0:
            raise ConfigError(f"attacks.gcg: momentum {self.momentum}, buffer {self.buffer} given; momentum in [0, 1), buffer at least 0.")

    @property
    def aim(self) -> searching.Aim:
        return searching.Aim(length=self.length, initial=self.initial, objective=self.objective, goal=self.goal)

    def search(self, target: Any, examples: Sequence[Example], budget: Budget, rng: random.Random) -> list[searching.Found]:
        """What was found and what it cost, example by example."""

        def drive(search: searching.Search) -> None:
            descend(search, steps=self.steps, candidates=self.candidates, top=self.top, momentum=self.momentum, buffer=self.buffer)

        return searching.each("gcg", target, examples, self.aim, budget, rng, drive)

    def propose(self, target: Any, examples: Sequence[Example], budget: Budget, rng: random.Random) -> list[Proposal]:
        """One text per example; a step costs one gradient and its candidates, as far as the budget reaches."""
        return [found.proposal(self.aim) for found in self.search(target, examples, budget, rng)]


__all__ = ["GCG"]

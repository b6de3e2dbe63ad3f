"""One suffix behind many prompts."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from advalign.attacks import _token_search as searching
from advalign.attacks._token_steps import spread
from advalign.types import Budget, Example, Proposal


@dataclass(frozen=True, kw_only=True)
class UniversalSuffix:
    """s ← argmin_b Σ_j L(x_j + s^(b)),  candidates from the top-k of -Σ_j g_j / ||g_j||;  x_{m+1} joins when s succeeds on x_1 .. x_m
    (universal prompt optimisation, arXiv:2307.15043, algorithm 2).

    The prompts are the examples of one call: in a suite, `batch_size` of them share a suffix. A suffix succeeds on a prompt when greedy
    decoding says the response. Gradients are divided by their norm per position before they are added, as in the released code.
    Ours: a suffix must survive decoding and encoding behind every prompt; what is handed over is the suffix of lowest mean loss over the
    prompts that had joined at the end. Unlike other attacks' this one's results depend on company: that is what it is for.
    """

    length: int = 20
    steps: int = 500
    candidates: int = 512
    top: int = 256
    objective: str = "nll"
    initial: str = "!"
    batch_size: int = 25

    access: ClassVar[str] = "gradients"
    head: ClassVar[str] = "policy"

    def __post_init__(self) -> None:
        searching.check("universal_suffix", self, "length", "steps", "candidates", "top", "batch_size")

    @property
    def aim(self) -> searching.Aim:
        return searching.Aim(length=self.length, initial=self.initial, objective=self.objective)

    def search(self, target: Any, examples: Sequence[Example], budget: Budget, rng: random.Random) -> list[searching.Found]:
        """The same suffix behind every example; losses are the mean over the prompts that joined."""
        searching.refuse_other_heads("universal_suffix", target)
        search = searching.Search(target, examples, self.aim, budget, random.Random(rng.getrandbits(63)))
        spread(search, steps=self.steps, candidates=self.candidates, top=self.top)
        return [search.found(prompt) for prompt in search.prompts]

    def propose(self, target: Any, examples: Sequence[Example], budget: Budget, rng: random.Random) -> list[Proposal]:
        """One text per example; a step costs each prompt that has joined one gradient and its candidates."""
        return [found.proposal(self.aim) for found in self.search(target, examples, budget, rng)]


__all__ = ["UniversalSuffix"]

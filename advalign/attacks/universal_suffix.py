"""One suffix behind many prompts."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from advalign.attacks import _token_search as searching
from advalign.attacks._token_steps import spread
from advalign.types import Budget, Example


@dataclass(frozen=True, kw_only=True)
class UniversalSuffix(searching.SuffixSearch):
    """s ← argmin_b Σ_j L(x_j + s^(b)),  candidates from the top-k of -Σ_j g_j / ||g_j||;  x_{m+1} joins when s succeeds on x_1 .. x_m
    (universal prompt optimisation, arXiv:2307.15043, algorithm 2).

    The prompts are the examples of one call: in a suite, `batch_size` of them share a suffix. A suffix succeeds on a prompt when greedy
    decoding says the response. Gradients are divided by their norm per position before they are added, as in the released code.
    Ours: a suffix must survive decoding and encoding behind every prompt; what is handed over is the suffix of lowest mean loss over the
    prompts that had joined at the end. Unlike other attacks' this one's results depend on company: that is what it is for.
    """

    steps: int = 500
    candidates: int = 512
    top: int = 256
    initial: str = "!"
    batch_size: int = 25

    access: ClassVar[str] = "gradients"

    @property
    def examples_at_once(self) -> int | None:
        return self.batch_size

    def __post_init__(self) -> None:
        self.check("steps", "candidates", "top", "batch_size")

    def search(self, target: Any, examples: Sequence[Example], budget: Budget, rng: random.Random) -> list[searching.FoundSuffix]:
        """The same suffix behind every example; losses are the mean over the prompts that joined."""
        self.refuse_other_heads(target)
        search = searching.TokenSearchRun(target, examples, self.aim, budget, random.Random(rng.getrandbits(63)))
        self.drive(search)
        return [search.found(prompt) for prompt in search.prompts]

    def drive(self, search: searching.TokenSearchRun) -> None:
        """A step costs each prompt that has joined one gradient and its candidates."""
        spread(search, steps=self.steps, candidates=self.candidates, top=self.top)


__all__ = ["UniversalSuffix"]

"""One suffix behind many prompts."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from advalign.attacks._suffix_search import RefinedSuffixSearch
from advalign.attacks._token_search import TokenSearchRun
from advalign.attacks._token_steps import descend_jointly
from advalign.interfaces import Target
from advalign.ranges import Count
from advalign.types import Budget, Example, FoundSuffix


@dataclass(frozen=True, kw_only=True)
class UniversalSuffix(RefinedSuffixSearch):
    """s ← argmin_b Σ_j L(x_j + s^(b)),  candidates from the top-k of -Σ_j g_j / ||g_j||;  x_{m+1} joins when s succeeds on x_1 .. x_m
    (universal prompt optimisation, arXiv:2307.15043, algorithm 2).

    The prompts are the examples of one call: in a suite, `batch_size` of them share a suffix. A suffix succeeds on a prompt when greedy
    decoding says the response. Gradients are divided by their norm per position before they are added, as in the released code.
    Ours: a suffix must survive decoding and encoding behind every prompt; what is returned is the suffix of lowest mean loss over the
    prompts that had joined at the end. Unlike other attacks this one's results depend on company, by design.
    """

    steps: Count = 500
    """Gradients."""
    candidates: Count = 512
    """Swaps that are scored per step."""
    top: Count = 256
    """k."""
    batch_size: Count = 25
    """Prompts that share a suffix."""

    access: ClassVar[str] = "gradients"
    joint: ClassVar[bool] = True

    @property
    def examples_at_once(self) -> int | None:
        return self.batch_size

    def search(self, target: Target, examples: Sequence[Example], budget: Budget, rng: random.Random) -> list[FoundSuffix]:
        """The same suffix behind every example; losses are the mean over the prompts that joined."""
        self.refuse_other_heads(target)
        run = TokenSearchRun(target, examples, self.aim, budget, random.Random(rng.getrandbits(63)))
        self.drive(run)
        return [run.result(prompt) for prompt in run.prompts]

    def drive(self, run: TokenSearchRun) -> None:
        """A step costs each prompt that has joined one gradient and its candidates."""
        descend_jointly(run, steps=self.steps, candidates=self.candidates, top=self.top)


__all__ = ["UniversalSuffix"]

"""Abstract bases of the attacks that append a suffix to a prompt.

Every example is searched by itself with its own random stream, so results do not depend on company.
"""

import math
import random
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Self

from advalign import plugins
from advalign.attacks._token_search import GOALS, OBJECTIVES, Aim, TokenSearchRun
from advalign.errors import ConfigError
from advalign.interfaces import Attack, Target
from advalign.ranges import AnyText, Count, OneOf
from advalign.types import Budget, Example, FoundSuffix, Proposal

NOTHING = FoundSuffix(text=None, suffix=(), loss=math.inf, queries=0, trace=(), note="no budget")


@dataclass(frozen=True, kw_only=True)
class SuffixSearch(Attack):
    """Abstract: a suffix that brings the reference response about, or keeps it away."""

    length: Count = 20
    """Most tokens of the suffix."""
    objective: Annotated[str, OneOf(OBJECTIVES, "objective")] = "nll"
    """Loss: nll (the response's mean negative log-likelihood), first (its first token's), mellowmax (over its tokens'), or margin (the mean
    hinge of their margins, after f_6 of arXiv:1608.04644)."""
    goal: Annotated[str, OneOf(GOALS, "goal")] | None = None
    """lower the loss (the response is what the attacker wants to hear), or raise it. None: what the judge of the suite, or the target of
    `advalign attack`, asks for; without either, lower."""

    head: ClassVar[str | None] = "policy"
    moves_reference: ClassVar[bool] = True

    @property
    def own_goal(self) -> str | None:
        return self.goal

    def aimed(self, goal: str) -> Self:
        return self if self.goal is not None else replace(self, goal=goal)

    @property
    def aim(self) -> Aim:
        """What is sought."""
        return Aim(length=self.length, objective=self.objective, goal=self.goal or "lower")

    @abstractmethod
    def drive(self, run: TokenSearchRun) -> None:
        """Moves until the steps or the budget are used up."""

    def search(self, target: Target, examples: Sequence[Example], budget: Budget, rng: random.Random) -> list[FoundSuffix]:
        """What was found and what it cost, example by example. The bare prompt is scored first and is a candidate like any other."""
        self.refuse_other_heads(target)
        stream, results = rng.getrandbits(63), []
        for example in examples:
            run = TokenSearchRun(target, [example], self.aim, budget, random.Random(f"{stream}/{example.id}/{example.text}"))
            if run.queries_left >= 2:
                if run.prompts[0].before:  # else nothing precedes the response
                    run.score([()])
                self.drive(run)
            results.append(run.result() if run.queries else NOTHING)
        return results

    def propose(self, target: Target, examples: Sequence[Example], budget: Budget, rng: random.Random) -> list[Proposal]:
        """One text per example, as far as the budget reaches."""
        return [suffix_proposal(found, self.aim) for found in self.search(target, examples, budget, rng)]

    def refuse_other_heads(self, target: Target) -> None:
        """Refuses what is not a language model."""
        if target.head != self.head:
            kind = plugins.kind_of(type(self))
            raise ConfigError(f"attacks.{kind}: a suffix is sought for a language model; this one has head '{target.head}'.")


@dataclass(frozen=True, kw_only=True)
class RefinedSuffixSearch(SuffixSearch):
    """Abstract: a search that starts from a suffix, and can go on from one."""

    initial: AnyText = "!"
    """Text whose tokens, repeated up to `length`, are the first suffix."""

    refines_suffixes: ClassVar[bool] = True

    @property
    def aim(self) -> Aim:
        return replace(super().aim, initial=self.initial)

    def resume(self, target: Target, example: Example, suffix: tuple[int, ...], rng: random.Random) -> FoundSuffix:
        """The search goes on from `suffix`, which is scored anew: the weights may have changed since it was found. Empty: from `initial`.
        The bare prompt is not a candidate here."""
        self.refuse_other_heads(target)
        run = TokenSearchRun(target, [example], self.aim, Budget(), rng)
        if suffix:
            run.start = tuple(suffix)
            run.reset()
        run.score([run.start])
        self.drive(run)
        return run.result()


def suffix_proposal(found: FoundSuffix, aim: Aim) -> Proposal:
    """What was found, with its loss in the note."""
    unit = "" if aim.objective == "margin" else " nats" if aim.objective == "first" else " nats per token"
    loss = found.loss if aim.goal == "lower" or aim.objective == "margin" else -found.loss
    note = f"{loss:.4f}{unit}" + (f"; {found.note}" if found.note else "")
    return Proposal(text=found.text, note=note, queries=found.queries)


__all__ = ["RefinedSuffixSearch", "SuffixSearch", "suffix_proposal"]

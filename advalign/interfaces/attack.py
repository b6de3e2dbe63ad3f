"""What searches for inputs that break a model: it proposes, the harness judges."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Self

from advalign.checked import Checked
from advalign.errors import ConfigError
from advalign.interfaces.target import Target
from advalign.types import Budget, Example, FoundSuffix, Proposal, ThreatModel

if TYPE_CHECKING:
    from advalign.models import Encoder


class Attack(Checked, ABC, section="attacks"):
    """Abstract base of every attack. It proposes, and never decides its own success."""

    access: ClassVar[str] = "text"
    """What it needs of a target: text (answers of any kind), logprobs or gradients."""
    head: ClassVar[str | None] = None
    """Head of the models it attacks: classifier or policy; None: any."""
    draws: ClassVar[bool] = False
    """Whether its attempts are independent draws, so that success is reported as a function of their number."""
    samples_answers: ClassVar[bool] = False
    """Whether answers to its attempts are sampled, with one stream per example, instead of greedy."""
    refines_suffixes: ClassVar[bool] = False
    """Whether it can go on from a suffix (`resume`), so that a pool of suffixes can live through training."""

    joint: ClassVar[bool] = False
    """Whether the examples of one call share what is sought, so that results depend on which examples are attacked together."""
    moves_reference: ClassVar[bool] = False
    """Whether it moves the loss of a generator's reference response, in the direction of its goal."""

    @property
    def own_goal(self) -> str | None:
        """With `moves_reference`: raise or lower, as it was given; None: left open, and in a suite it follows from the judge."""
        return None

    @property
    def examples_at_once(self) -> int | None:
        """Examples of one call, whose random streams are then keyed by example id. None: one example, with a stream per example."""
        return None

    @property
    def threat(self) -> ThreatModel | None:
        """The threat model of an attack on hidden states; None: it changes text."""
        return None

    @property
    def gradient_steps(self) -> int:
        """Gradient steps of one run; 0: it follows no gradient."""
        return 0

    def at_radius(self, radius: float) -> Self | None:
        """The same attack with another radius; None: it has no radius."""
        return None

    def aimed(self, goal: str) -> Self:
        """With `moves_reference`: the same attack with this goal, where it has none of its own."""
        raise ConfigError(f"attacks: {type(self).__name__} moves no reference response.")

    def beginnings(self, encoder: Encoder, examples: Sequence[Example]) -> list[str]:
        """The forced beginning of each example's response; empty: it forces none."""
        return []

    @abstractmethod
    def propose(self, target: Target, examples: Sequence[Example], budget: Budget, rng: random.Random) -> list[Proposal]:
        """One proposal per example, in order."""

    def resume(self, target: Target, example: Example, suffix: tuple[int, ...], rng: random.Random) -> FoundSuffix:
        """With `refines_suffixes`: the search goes on from the token ids `suffix`; empty: from its own start."""
        raise ConfigError(f"attacks: {type(self).__name__} cannot go on from a suffix.")

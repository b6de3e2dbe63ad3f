"""What searches for inputs that break a model. It proposes; the harness judges."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, Self

from jaxtyping import Float
from torch import Tensor

from advalign.errors import ConfigError
from advalign.types import Budget, Example, Proposal, ThreatModel


class Target(Protocol):
    """The victim, as an attack sees it. Every text or edit sent is counted; gradients are counted apart."""

    num_queries: int
    """Texts or edits answered so far."""
    num_gradients: int
    """Backward passes so far, in rows."""
    limit: int | None
    """Queries after which it raises `BudgetError`; None: no limit."""

    def meter(self) -> dict[str, float]:
        """What was spent so far, by name."""


class TextClassifierTarget(Target, Protocol):
    """A target that answers texts with one column per class."""

    def predict(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Float[Tensor, "B C"]:
        """Logits, or log-probabilities, of texts (and second sentences)."""


class Attack(ABC):
    """Abstract base: proposes, and never decides its own success."""

    access: ClassVar[str] = "text"
    """What it needs of a target: text (answers), logprobs or gradients."""
    head: ClassVar[str | None] = None
    """The head of the models it attacks: classifier or policy; None: any."""
    draws: ClassVar[bool] = False
    """Its attempts are independent draws, so success is reported as a function of their number."""
    samples_answers: ClassVar[bool] = False
    """Answers to its attempts are sampled, one stream per example, instead of greedy."""
    refines_suffixes: ClassVar[bool] = False
    """It can go on from a suffix (`resume`), so that a pool of suffixes can live through training."""

    @property
    def examples_at_once(self) -> int | None:
        """How many examples one call takes; its random streams are then keyed by example id. None: one, with a stream per example."""
        return None

    @property
    def threat(self) -> ThreatModel | None:
        """The threat model of an attack on hidden states; None: it changes text."""
        return None

    def at_radius(self, radius: float) -> Self | None:
        """The same attack with another radius; None: it has no radius."""
        return None

    @abstractmethod
    def propose(self, target: Any, examples: Sequence[Example], budget: Budget, rng: random.Random) -> list[Proposal]:
        """One proposal per example, in order."""

    def resume(self, target: Any, example: Example, suffix: tuple[str, ...], rng: random.Random) -> Any:
        """With `refines_suffixes`: goes on from `suffix`."""
        raise ConfigError(f"attacks: {type(self).__name__} does not go on from a suffix.")

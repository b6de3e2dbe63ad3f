"""What scores responses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from advalign.interfaces.context import Context
from advalign.types import RolloutGroup

Scores = Sequence[float | Sequence[float]]
"""One entry per rollout: a number, nan to abstain, or one number per response id."""


class Scorer(ABC):
    """A started reward that carries something between draws. A plain function is enough where nothing is carried."""

    @abstractmethod
    def __call__(self, groups: Sequence[RolloutGroup]) -> Scores:
        """One score per rollout, groups in order, rollouts in order."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """The inverse."""


@dataclass(frozen=True, kw_only=True)
class Reward(ABC):
    """Abstract base: one score per rollout. nan abstains (the row leaves the batch and is counted); an exception stops the run."""

    weight: float = 1.0
    """What its scores are multiplied by in the sum of rewards."""

    scores_whole_draw: ClassVar[bool] = False
    """Scores depend on the whole draw: every process is given all of it, instead of a share of the groups."""

    @property
    def scoring_learner(self) -> str | None:
        """The learner (or frozen copy) with head `score` that gives this reward, if one does."""
        return None

    @abstractmethod
    def start(self, context: Context) -> Callable[[Sequence[RolloutGroup]], Scores]:
        """The function, or `Scorer`, that scores the groups of a draw."""

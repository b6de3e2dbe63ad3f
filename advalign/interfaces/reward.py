"""What scores responses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from advalign.checked import Checked
from advalign.interfaces.context import Context
from advalign.ranges import Finite
from advalign.types import Example, RolloutGroup

Scores = Sequence[float | Sequence[float]]
"""One entry per rollout: a number, nan to abstain, or one number per response id."""


class Scorer(ABC):
    """Abstract base of a started reward that carries something from draw to draw, or logs. Another one may be a plain function."""

    logs: Mapping[str, Sequence[float]] = {}
    """{name: values} of its last call; their mean over rewards and processes is logged."""

    @abstractmethod
    def __call__(self, groups: Sequence[RolloutGroup]) -> Scores:
        """One entry per rollout, groups in order, rollouts in order."""

    def as_last_scaled(self, groups: Sequence[RolloutGroup]) -> Scores:
        """Scores of other responses on the scale of the last call, as a baseline needs: statistics of a draw are those of the last call,
        and nothing is carried on. Here: the scores themselves."""
        return self(groups)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, as plain values."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """The inverse of `state_dict`."""


@dataclass(frozen=True, kw_only=True)
class Reward(Checked, ABC, section="rewards"):
    """Abstract base: one score per rollout; an exception stops the run.

    nan abstains: this reward is left out of the row's sum. A row that every reward abstained on leaves the batch, and is counted."""

    weight: Finite = 1.0
    """Factor of its scores in the sum of rewards."""

    scores_whole_draw: ClassVar[bool] = False
    """Scores depend on the whole draw, so every process scores all of it instead of its part of the groups."""

    prices_length: ClassVar[bool] = False
    """A price on length beside what is judged: `dynamic` does not call a group informative that differs by it alone."""

    metric_names: ClassVar[frozenset[str]] = frozenset()
    """Names that its scorer logs on every call, as far as they are known before."""

    @property
    def scoring_learner(self) -> str | None:
        """The learner (or frozen copy) with head `score` that gives this reward, if one does."""
        return None

    def check(self, examples: Sequence[Example], path: str) -> None:
        """Refuses, before the first step, examples that it cannot score: a column or a reference answer that none of them has. `path`: of
        the reward in the configuration. Here: it can score any."""

    @abstractmethod
    def start(self, context: Context) -> Callable[[Sequence[RolloutGroup]], Scores]:
        """The function, or `Scorer`, that scores the groups of a draw."""

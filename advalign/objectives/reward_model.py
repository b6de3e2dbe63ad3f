"""l = -log sigmoid(s_chosen - s_rejected - margin) + c (s_chosen + s_rejected)^2: a scalar score s of (prompt, response) pairs.

The Bradley-Terry loss of a reward model (arXiv:2203.02155, eq. 1, two responses per prompt). margin: the column of this name of the data, 0
where it has none (arXiv:2307.09288, eq. 2). c = `centre` keeps the level of the scores, which the first summand leaves free, at zero
(arXiv:2312.09244, eq. 2). For a learner with head: score.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from advalign.errors import ConfigError
from advalign.functional import preference
from advalign.names import LearnerName
from advalign.objectives._pairs import REWARDS, PairObjective
from advalign.ranges import NonNegative
from advalign.types import Losses, Outputs, PairRows

__all__ = ["RewardModel"]


@dataclass(frozen=True, kw_only=True)
class RewardModel(PairObjective):
    """-log sigmoid(s_chosen - s_rejected - margin) + c (s_chosen + s_rejected)^2."""

    learner: LearnerName = "reward"
    """Name of the reward model."""
    centre: NonNegative = 0.01
    """c; 0.01 is the value public code recommends."""

    metric_names: ClassVar[frozenset[str] | None] = REWARDS

    @property
    def reads(self) -> Mapping[str, frozenset[str]]:
        return {self.view: frozenset({"scores"})}

    def losses(self, rows: PairRows, views: Mapping[str, Outputs]) -> Losses:
        scores = views[self.view].scores
        if scores is None:
            raise ConfigError(f"objectives.reward_model: learner '{self.learner}' gives no scores; give it head: score.")
        margin = 0.0 if rows.margin is None else rows.margin[0::2].to(scores.dtype)
        losses = preference.bradley_terry(scores[0::2], scores[1::2], margin, centre=self.centre)
        return self.report(rows, losses, rewards=scores)

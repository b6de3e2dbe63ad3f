"""l = -log sigmoid(beta (m_chosen - m_rejected) - gamma), m = mean_t log p   (SimPO, arXiv:2405.14734).

No reference: the reward is the length-normalised log-probability, what decoding maximises; gamma is the margin that is required.
Defaults: beta 2.0 and gamma / beta = 0.5, the published setting for Llama-3-Base (its other settings: beta 2.0 to 2.5, ratio 0.1 to 0.8).
Differences: none. Logged log-probabilities are means per token.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from advalign.functional import preference
from advalign.objectives._pairs import REPORTED, PairObjective
from advalign.ranges import NonNegative, Positive
from advalign.types import Losses, Outputs, PairRows

__all__ = ["SimPO"]


@dataclass(frozen=True, kw_only=True)
class SimPO(PairObjective):
    """-log sigmoid(beta (m_chosen - m_rejected) - gamma), m = mean of log p per token."""

    beta: Positive = 2.0
    """Scale of the reward, per token."""
    gamma: NonNegative = 1.0
    """Margin, in units of the scaled reward."""

    metric_names: ClassVar[frozenset[str] | None] = REPORTED

    def losses(self, rows: PairRows, views: Mapping[str, Outputs]) -> Losses:
        means = self.logps(rows, views, normalize=True)
        losses = preference.simpo(preference.difference(means), beta=self.beta, gamma=self.gamma)
        return self.report(rows, losses, rewards=self.beta * means, logps=means)

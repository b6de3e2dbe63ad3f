"""l = -m_chosen - lambda log sigmoid(log odds_chosen - log odds_rejected), m = mean_t log p, odds = e^m / (1 - e^m).

(ORPO, arXiv:2403.07691, eq. 4, 6 and 7.) Imitation of the chosen response plus, weighted by lambda = `odds_weight`, the log odds ratio; no
reference. Differences: e^m is kept below 1 by 1e-7, where the odds would be infinite. The imitation term is over the response, per pair;
TRL takes it over prompt and response and averages over the tokens of a batch. Logged log-probabilities are means per token, rewards are
lambda m, as in TRL.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from advalign.functional import preference
from advalign.objectives._pairs import REPORTED, PairObjective
from advalign.ranges import Positive
from advalign.types import Losses, Outputs, PairRows

__all__ = ["ORPO"]


@dataclass(frozen=True, kw_only=True)
class ORPO(PairObjective):
    """-m_chosen - lambda log sigmoid(log odds_chosen - log odds_rejected), m = mean of log p per token."""

    odds_weight: Positive = 0.1
    """lambda: weight of the odds-ratio summand."""

    metric_names: ClassVar[frozenset[str] | None] = REPORTED | {"log_odds_chosen", "nll"}

    def losses(self, rows: PairRows, views: Mapping[str, Outputs]) -> Losses:
        means = self.logps(rows, views, normalize=True)
        nll, odds = -means[0::2], preference.difference(preference.log_odds(means))
        losses = nll + self.odds_weight * preference.orpo(odds)
        extra = {"nll": nll, "log_odds_chosen": odds}
        return self.report(rows, losses, rewards=self.odds_weight * means, logps=means, extra=extra)

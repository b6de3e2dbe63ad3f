"""l = toward_weight CE(chosen) + away_weight log1mp(rejected)   (the defence of targeted LAT, arXiv:2407.15549).

chosen = the refusal, rejected = the harmful answer, both read under the adversary's delta. log1mp = mean_t -log(1 - p_t): the harmful
answer is made unlikely with a gradient that stays bounded, and tokens with log p < cutoff are left alone, but counted. The adversary
climbs `target`. Differences: means are per row, then per pair; the released code averages over the tokens of a batch, scales its
coefficients to sum 1, and makes four updates per attack; here every update has its own delta.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from advalign.objectives._answers import AnswerObjective
from advalign.types import Losses, Outputs, PairRows

__all__ = ["LAT"]


@dataclass(frozen=True, kw_only=True)
class LAT(AnswerObjective):
    """toward_weight CE(chosen) + away_weight log1mp(rejected)."""

    def losses(self, rows: PairRows, views: Mapping[str, Outputs]) -> Losses:
        nll, unlikely = self.costs(rows, views)
        losses = self.toward_weight * nll[0::2] + self.away_weight * unlikely[1::2]
        weight = self.weights(rows).values.to(losses.dtype)
        return Losses(losses, {name: (values, weight) for name, values in self.metrics(nll, unlikely).items()})

"""l = -(toward_weight CE(wanted) + away_weight log1mp(other)): what an adversary climbs to get the wanted answer of a pair.

Its ascent RAISES log p(wanted), and lowers p(other) where away_weight > 0: made for `inner` of an adversary, with a positive coef as
ever. As an objective of a learner it would be descended, and push the wanted answer away without bound; there use `lat` or `cat`.
CAT (arXiv:2405.15589) is the default: mean log p of the harmful answer. Targeted LAT (arXiv:2407.15549): both weights. Untargeted LAT
climbs CE(chosen): `{kind: lat, toward_weight: 1, away_weight: 0}`. Differences: means are per row, then per pair, as in `lat`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from advalign.objectives._answers import AnswerObjective
from advalign.ranges import NonNegative, OneOf
from advalign.types import Losses, Outputs, PairRows

__all__ = ["TargetString"]

SIDES = ("chosen", "rejected")


@dataclass(frozen=True, kw_only=True)
class TargetString(AnswerObjective):
    """-(toward_weight CE(wanted) + away_weight log1mp(other)): climbed by an adversary, it makes the wanted answer likely."""

    wanted: Annotated[str, OneOf(SIDES, "side of a pair")] = "rejected"
    """The answer that is to become likely: chosen or rejected."""
    toward_weight: NonNegative = 1.0
    """Weight of the cross-entropy of the wanted answer."""
    away_weight: NonNegative = 0.0
    """Weight of log1mp of the other answer."""

    def losses(self, rows: PairRows, views: Mapping[str, Outputs]) -> Losses:
        nll, unlikely = self.costs(rows, views)
        wanted = SIDES.index(self.wanted)
        losses = -(self.toward_weight * nll[wanted::2] + self.away_weight * unlikely[1 - wanted :: 2])
        weight = self.weights(rows).values.to(losses.dtype)
        return Losses(losses, {name: (values, weight) for name, values in self.metrics(nll, unlikely).items()})

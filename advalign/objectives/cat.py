"""l = away_weight leaky(-CE(rejected), away_cutoff) + toward_weight leaky(CE(chosen), toward_cutoff)   (C-AdvUL, arXiv:2405.15589).

chosen = the safe answer, rejected = the harmful one, under one delta on their prompt (`share: group`, `where: prompt`); the adversary
climbs `target`; the third term of the paper, utility, is `sft` on other rows. leaky(x, c) = x above c, c + slope (x - c) below: an answer
that is unlikely, or likely, enough is all but left alone. Differences: CE is a mean over the tokens of a row and is cut row by row; the
released code cuts the mean of a batch, and jumps by slope * c at the cutoff, where this is continuous. Gradients on either side agree.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from advalign.functional.adversarial import leaky
from advalign.objectives._pairs import PairObjective
from advalign.ranges import Bound, Interval, NonNegative
from advalign.types import Losses, Outputs, PairRows

__all__ = ["CAT"]


@dataclass(frozen=True, kw_only=True)
class CAT(PairObjective):
    """away_weight leaky(-CE(rejected)) + toward_weight leaky(CE(chosen))."""

    away_weight: NonNegative = 0.5
    """Weight of making the rejected answer unlikely."""
    toward_weight: NonNegative = 0.5
    """Weight of making the chosen answer likely."""
    away_cutoff: Annotated[float, Interval(high=0, unbounded=True)] = -5.0
    """Mean log-probability below which the rejected answer is unlikely enough."""
    toward_cutoff: Bound = 0.5
    """Cross-entropy below which the chosen answer is likely enough."""
    slope: NonNegative = 0.001
    """What is left of the gradient beyond a cutoff."""

    metric_names: ClassVar[frozenset[str] | None] = frozenset({"cut/chosen", "cut/rejected", "nll/chosen", "nll/rejected"})

    def losses(self, rows: PairRows, views: Mapping[str, Outputs]) -> Losses:
        means = self.logps(rows, views, normalize=True)
        safe, harmful = -means[0::2], means[1::2]
        away = leaky(harmful, at=self.away_cutoff, slope=self.slope)
        toward = leaky(safe, at=self.toward_cutoff, slope=self.slope)
        losses = self.away_weight * away + self.toward_weight * toward
        weight = self.weights(rows).values.to(losses.dtype)
        metrics = {
            "nll/chosen": safe.detach(),
            "nll/rejected": -harmful.detach(),
            "cut/chosen": (safe < self.toward_cutoff).to(losses.dtype),
            "cut/rejected": (harmful < self.away_cutoff).to(losses.dtype),
        }
        return Losses(losses, {name: (values, weight) for name, values in metrics.items()})

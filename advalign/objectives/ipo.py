"""l = (d_chosen - d_rejected - 1 / (2 beta))^2, d = sum_t log p - log p_ref   (IPO, arXiv:2310.12036, eq. 17; beta is its tau).

The margin is regressed onto 1 / (2 beta), so that a preference that is always right does not drive it to infinity, as it does in DPO.
Difference: none by default. TRL averages d over tokens (`normalize`), and says that the authors confirm it for the numbers of the paper.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from advalign.functional import preference
from advalign.objectives._pairs import REPORTED, PairObjective
from advalign.ranges import Positive
from advalign.types import Losses, Outputs, PairRows

__all__ = ["IPO"]


@dataclass(frozen=True, kw_only=True)
class IPO(PairObjective):
    """(d_chosen - d_rejected - 1 / (2 beta))^2, d = log p - log p_ref."""

    beta: Positive = 0.1
    """tau of the paper: the margin is regressed onto 1 / (2 beta)."""
    normalize: bool = False
    """Whether d is the mean over tokens, as in TRL; the target is then reached per token, and beta means something else."""

    metric_names: ClassVar[frozenset[str] | None] = REPORTED
    annotations: ClassVar[frozenset[str]] = frozenset({"ref_logprobs"})

    def losses(self, rows: PairRows, views: Mapping[str, Outputs]) -> Losses:
        logps = self.logps(rows, views)
        ratios = logps - self.ref_logps(rows)
        compared = ratios
        if self.normalize:
            compared = self.logps(rows, views, normalize=True) - self.ref_logps(rows, normalize=True)
        losses = preference.ipo(preference.difference(compared), beta=self.beta)
        return self.report(rows, losses, rewards=self.beta * ratios, logps=logps)

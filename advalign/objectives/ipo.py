"""l = (d_chosen - d_rejected - 1 / (2 beta))^2, d = sum_t log p - log p_ref   (IPO, arXiv:2310.12036, eq. 17; beta is its tau).

The margin is regressed onto 1 / (2 beta), so that a preference that is always right does not drive it to infinity, as it does in DPO.
normalize: d is the mean over tokens, as in TRL, which says that its authors confirm it for the numbers of the paper; the target is then
reached per token, and beta means something else. Default: the equation as it stands.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from advalign.functional import preference
from advalign.objectives._pairs import PairObjective, positive
from advalign.types import Losses, Outputs, PairRows

__all__ = ["IPO"]


@dataclass(frozen=True, kw_only=True)
class IPO(PairObjective):
    """(d_chosen - d_rejected - 1 / (2 beta))^2, d = log p - log p_ref."""

    beta: float = 0.1
    normalize: bool = False

    annotations: ClassVar[frozenset[str]] = frozenset({"ref_logprobs"})

    def __post_init__(self) -> None:
        positive("objectives.ipo.beta", self.beta)

    def losses(self, rows: PairRows, views: Mapping[str, Outputs]) -> Losses:
        logps = self.logps(rows, views)
        ratios = logps - self.ref_logps(rows)
        compared = ratios
        if self.normalize:
            compared = self.logps(rows, views, normalize=True) - self.ref_logps(rows, normalize=True)
        losses = preference.ipo(preference.difference(compared), beta=self.beta)
        return self.reported(rows, losses, rewards=self.beta * ratios, logps=logps)

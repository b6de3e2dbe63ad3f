"""l = max(0, 1 - beta (d_chosen - d_rejected)), d = sum_t log p - log p_ref.

The hinge of SLiC-HF (arXiv:2305.10425) on DPO's difference of log-ratios, as in RSO (arXiv:2309.06657): a pair whose margin beta d
exceeds 1 has no gradient. Differences: SLiC-HF has no reference inside the hinge and adds a term of imitation; for that add `sft`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from advalign.functional import preference
from advalign.objectives._pairs import REPORTED, PairObjective
from advalign.ranges import Positive
from advalign.types import Losses, Outputs, PairRows

__all__ = ["Hinge"]


@dataclass(frozen=True, kw_only=True)
class Hinge(PairObjective):
    """max(0, 1 - beta (d_chosen - d_rejected)), d = log p - log p_ref."""

    beta: Positive = 0.1
    """Scale of the margin: pairs with beta d above 1 have no gradient."""

    metric_names: ClassVar[frozenset[str] | None] = REPORTED
    annotations: ClassVar[frozenset[str]] = frozenset({"ref_logprobs"})

    def losses(self, rows: PairRows, views: Mapping[str, Outputs]) -> Losses:
        logps = self.logps(rows, views)
        ratios = logps - self.ref_logps(rows)
        losses = preference.hinge(preference.difference(ratios), beta=self.beta)
        return self.report(rows, losses, rewards=self.beta * ratios, logps=logps)

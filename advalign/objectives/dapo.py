"""l_t = -min(r_t A_t, clip(r_t, 1 - low, 1 + high) A_t), r_t = p / p_old, high > low; mean over ALL tokens of the update.

(DAPO, arXiv:2503.14476, eq. 8.) Differences: dynamic sampling (`dynamic`) belongs to the source and soft overlong punishment to the
rewards (`length`); the mean over tokens spans the whole update on all ranks, however it is split.

Public scripts run it with dual clip, c = 10.
"""

from dataclasses import dataclass

from jaxtyping import Bool
from torch import Tensor

from advalign.objectives._policy import ClippedObjective
from advalign.ranges import Bound
from advalign.types import RolloutRows

__all__ = ["DAPO"]


@dataclass(frozen=True, kw_only=True)
class DAPO(ClippedObjective):
    """-min(r A, clip(r, 1 - low, 1 + high) A), every token alike, clip-higher."""

    clip_high: Bound = 0.28
    """How far the ratio may rise above 1: "clip-higher", section 4.1."""
    mask_truncated: bool = False
    """Overlong filtering (section 3.4): responses cut off by the length limit leave the loss AND its count. Off, as in the best run."""

    def target(self, rows: RolloutRows) -> Bool[Tensor, "B T"]:
        target = super().target(rows)
        return target & rows.finished[:, None] if self.mask_truncated else target

"""l_t = -min(r_t A_t, clip(r_t, 1 - low, 1 + high) A_t), r_t = p / p_old; mean over rows of the mean over tokens.

(GRPO, arXiv:2402.03300, eq. 3.) Differences: the KL term of eq. 3 is an objective of its own (`kl`); advantages come from the source.
"""

from dataclasses import dataclass

from advalign.functional import weights
from advalign.objectives._policy import ClippedObjective

__all__ = ["GRPO"]


@dataclass(frozen=True, kw_only=True)
class GRPO(ClippedObjective):
    """-min(r A, clip(r, 1 - low, 1 + high) A), every response alike."""

    weighting: weights.Weighting = "sequence"
    """Eq. 3: 1/G sum_i 1/|o_i| sum_t."""

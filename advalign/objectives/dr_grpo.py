"""l_t = -min(r_t A_t, clip(r_t, 1 - low, 1 + high) A_t); mean over rows of the sum over their tokens / `length`, a constant.

(Dr. GRPO, arXiv:2503.20783, section 3.2: neither the length of a response nor the spread of its group may scale its gradient.) It
goes with `advantage: {kind: group, scale: none}`; one public flag of this name only drops the spread and keeps the token mean.
"""

from dataclasses import dataclass

from jaxtyping import Bool
from torch import Tensor

from advalign.functional import weights
from advalign.objectives._policy import ClippedObjective
from advalign.ranges import Count
from advalign.types import Weights

__all__ = ["DrGRPO"]


@dataclass(frozen=True, kw_only=True)
class DrGRPO(ClippedObjective):
    """-min(r A, clip(r, 1 - low, 1 + high) A), a response's sum over a constant length."""

    length: Count
    """The budget of a response in tokens (max_new_tokens); it scales the gradient and nothing else."""

    def average(self, target: Bool[Tensor, "B T"]) -> Weights:
        return weights.constant(target, length=self.length)

"""A = R - V, V = beta log mean exp(R / beta) over the group   (A*-PO, arXiv:2505.20686, stage 1).

V is the optimal value of the prompt under a KL penalty of weight beta, so a prompt that is sometimes solved has a baseline nearer to its
best response than to its mean: beta -> infinity is the group mean (`group` with `scale: none`), beta -> 0 the best of the group
(`best_of_group` with `include_own`). Difference: the paper estimates V once, from samples of the reference policy, and regresses
beta2 log p / p_ref on R - V; here V comes from the group itself, drawn from the current policy, and R - V is an advantage for any policy
objective. It contains R itself, so the gradient of E[R] is not unbiased. Constant groups, groups of one included, get exactly 0.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from advalign.functional import advantages
from advalign.interfaces import Advantage, AdvantageState, AllReduce
from advalign.ranges import Positive
from advalign.types import RolloutRows

__all__ = ["SoftmaxBaseline"]


@dataclass(frozen=True, kw_only=True)
class SoftmaxBaseline(Advantage):
    """A = R - beta log mean exp(R / beta)."""

    beta: Positive = 0.5
    """Weight of the KL penalty, in units of the reward; beta1 of the paper and of public code."""

    compares: ClassVar[bool] = True

    def __call__(
        self, rows: RolloutRows, state: AdvantageState | None, all_reduce: AllReduce
    ) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"] | None]:
        rewards, group = rows.rewards.sum(1), rows.tokens.group
        value = advantages.soft_maximum(rewards, group, beta=self.beta)
        return advantages.expand(advantages.minus_baseline(rewards, value, group), rows.tokens.target), None

"""A_i = R_i - b, b = sum_j |y_j| R_j / sum_j |y_j| over the group   (OPO, arXiv:2505.23585).

The baseline that minimises the variance of the gradient weighs a reward with the squared norm of grad log p(y); the paper takes that norm
as proportional to the length |y|, the number of target tokens. With equal lengths it is the group mean. Differences: a group of one gets
b = R, so 0 (public code: b = 0, its raw reward); constant groups get exactly 0; a response without target tokens has no weight in b.
The paper's other half, exact on-policy training, is one update per draw (`minibatches: 1`, `epochs: 1`).
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from advalign.functional import advantages
from advalign.interfaces import Advantage, AdvantageState, AllReduce
from advalign.types import RolloutRows

__all__ = ["OPO"]


@dataclass(frozen=True, kw_only=True)
class OPO(Advantage):
    """A_i = R_i - sum_j |y_j| R_j / sum_j |y_j|."""

    compares: ClassVar[bool] = True

    def __call__(
        self, rows: RolloutRows, state: AdvantageState | None, all_reduce: AllReduce
    ) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"] | None]:
        rewards, target, group = rows.rewards.sum(1), rows.tokens.target, rows.tokens.group
        baseline = advantages.weighted_mean(rewards, target.sum(1).to(rewards.dtype), group)
        return advantages.expand(advantages.minus_baseline(rewards, baseline, group), target), None

"""A_i = (R_i - mean of the group) / mean of the group; 0 where the mean is not above 0   (MaxRL, arXiv:2602.02710).

For rewards in {0, 1} and n responses per prompt, the expected gradient of mean_i A_i log p(y_i) is that of sum_{k < n} pass@k / k, the
first n - 1 terms of log p(correct): a prompt that is rarely solved weighs about 1 / p as much as in expected reward. Subtracting the mean
costs the n-th term, because it happens only in groups that were solved at all. Meant for rewards that are not negative: with shaped
rewards the mean may come near 0 and A grows without limit. Constant groups, groups of one included, get exactly 0.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from advalign.functional import advantages
from advalign.interfaces import Advantage, AdvantageState, AllReduce
from advalign.types import RolloutRows

__all__ = ["MaxRL"]


@dataclass(frozen=True, kw_only=True)
class MaxRL(Advantage):
    """A_i = (R_i - mean) / mean."""

    compares: ClassVar[bool] = True

    def __call__(
        self, rows: RolloutRows, state: AdvantageState | None, all_reduce: AllReduce
    ) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"] | None]:
        rewards, group = rows.rewards.sum(1), rows.tokens.group
        centre, size = advantages.centred(rewards, group)
        mean = advantages.group_sum(rewards, group) / size
        per_row = torch.where(mean > 0, centre / torch.where(mean > 0, mean, 1.0), 0.0)
        return advantages.expand(per_row, rows.tokens.target), None

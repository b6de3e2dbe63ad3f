"""A_i = max_j R_j - max_{j != i} R_j: the best response gets its lead over the second best, all others 0   (arXiv:2503.19595).

What the maximum of the group would lose without response i: an unbiased gradient of E[max of k rewards], k being the size of the group
(pass@k for rewards in {0, 1}). It is the positive part of `best_of_group`. A tie for the best teaches nothing; so does a group of one,
whose second best does not exist (public code refuses it). scale "group" divides by max(std of the group, floor), which public code does
by default and the derivation does not: the gradient then belongs to no objective.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from jaxtyping import Float
from torch import Tensor

from advalign.functional import advantages
from advalign.interfaces import Advantage, AdvantageState, AllReduce
from advalign.ranges import OneOf, Positive
from advalign.types import RolloutRows

__all__ = ["PassAtK"]

SCALES = ("none", "group")


@dataclass(frozen=True, kw_only=True)
class PassAtK(Advantage):
    """A_i = max_j R_j - max_{j != i} R_j."""

    scale: Annotated[str, OneOf(SCALES, "scale")] = "none"
    """What the lead is divided by: none, or group (standard deviation of the group's rewards)."""
    floor: Positive = 1e-4
    """Of the standard deviation; public code adds 1e-6 to it instead."""

    compares: ClassVar[bool] = True

    @property
    def amplifies_noise(self) -> bool:
        return self.scale != "none" and self.floor < 0.1

    def __call__(
        self, rows: RolloutRows, state: AdvantageState | None, all_reduce: AllReduce
    ) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"] | None]:
        rewards, group = rows.rewards.sum(1), rows.tokens.group
        per_row = (rewards - advantages.best_of_others(rewards, group)).clamp(min=0)
        if self.scale == "group":
            per_row = per_row / advantages.group_std(rewards, group).clamp(min=self.floor)
        return advantages.expand(per_row, rows.tokens.target), None

"""A_i = max_j R_j - max_{j != i} R_j: the best response gets its lead over the second best, all others 0   (arXiv:2503.19595).

What the maximum of the group would lose without response i: an unbiased gradient of E[max of k rewards], k being the size of the group
(pass@k for rewards in {0, 1}). It is the positive part of `best_of_group`. A tie for the best teaches nothing; so does a group of one,
whose second best does not exist (public code refuses it). scale "group" divides by max(std of the group, floor), which public code does
by default and the derivation does not: the gradient is then that of no objective.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from advalign.errors import ConfigError, unknown
from advalign.functional import advantages
from advalign.interfaces import Advantage
from advalign.types import RolloutRows

__all__ = ["PassAtK"]

SCALES = ("none", "group")


@dataclass(frozen=True, kw_only=True)
class PassAtK(Advantage):
    """A_i = max_j R_j - max_{j != i} R_j."""

    scale: str = "none"
    floor: float = 1e-4  # public code adds 1e-6 to the standard deviation

    needs_values: ClassVar[bool] = False
    compares: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise unknown("advantages.pass_at_k.scale", "scale", self.scale, SCALES)
        if not self.floor > 0:
            raise ConfigError(f"advantages.pass_at_k.floor: got {self.floor}, must be above 0.")

    def __call__(
        self, rows: RolloutRows, state: Any, all_reduce: Callable[[Tensor], Tensor]
    ) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"] | None]:
        rewards, group = rows.rewards.sum(1), rows.tokens.group
        each = (rewards - advantages.best_of_others(rewards, group)).clamp(min=0)
        if self.scale == "group":
            each = each / advantages.group_std(rewards, group).clamp(min=self.floor)
        return advantages.expand(each, rows.tokens.target), None

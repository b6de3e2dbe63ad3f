"""A_i = R_i - mean of the other rewards of its group   (RLOO, arXiv:2402.14740).

Difference: the paper takes the whole response as one action and puts a KL penalty into R; here every target token has the advantage,
and a KL penalty is an objective (`kl`). A group of one has no other reward: its advantage is 0.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from advalign.functional import advantages
from advalign.interfaces import Advantage, AdvantageState, AllReduce
from advalign.types import RolloutRows

__all__ = ["LeaveOneOut"]


@dataclass(frozen=True, kw_only=True)
class LeaveOneOut(Advantage):
    """A_i = R_i - mean_{j != i} R_j."""

    compares: ClassVar[bool] = True

    def __call__(
        self, rows: RolloutRows, state: AdvantageState | None, all_reduce: AllReduce
    ) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"] | None]:
        per_row = advantages.leave_one_out(rows.rewards.sum(1), rows.tokens.group)
        return advantages.expand(per_row, rows.tokens.target), None

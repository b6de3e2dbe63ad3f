"""A_i = R_i - mean of the other rewards of its group   (RLOO, arXiv:2402.14740).

Difference: the paper takes the whole response as one action and puts a KL penalty into R; here the advantage stands on every target token,
and a KL penalty is an objective (`kl`). A group of one has no other reward: its advantage is 0.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from advalign.functional import advantages
from advalign.interfaces import Advantage
from advalign.types import RolloutRows

__all__ = ["LeaveOneOut"]


@dataclass(frozen=True, kw_only=True)
class LeaveOneOut(Advantage):
    """A_i = R_i - mean_{j != i} R_j."""

    needs_values: ClassVar[bool] = False
    compares: ClassVar[bool] = True

    def __call__(
        self, rows: RolloutRows, state: Any, all_reduce: Callable[[Tensor], Tensor]
    ) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"] | None]:
        each = advantages.leave_one_out(rows.rewards.sum(1), rows.tokens.group)
        return advantages.expand(each, rows.tokens.target), None

"""A_i = R_i - max_{j != i} R_j: the baseline is the best of the other responses to the prompt.

Source: the leave-one-out baseline of RLOO (arXiv:2402.14740) with the maximum in place of the mean; its positive part is the pass@k
advantage of arXiv:2503.19595 (`pass_at_k`). No paper gives the whole of it a name. The maximum leaves the response itself
out, because a baseline that depends on the response biases the gradient of E[R]; `include_own` takes the maximum over the whole group
instead (the limit beta -> 0 of `softmax_baseline`): then no advantage is positive, and a response is only pushed away from what is worse
than the best. Constant groups, groups of one included, get exactly 0.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from advalign.functional import advantages
from advalign.interfaces import Advantage, AdvantageState, AllReduce
from advalign.types import RolloutRows

__all__ = ["BestOfGroup"]


@dataclass(frozen=True, kw_only=True)
class BestOfGroup(Advantage):
    """A_i = R_i - max_{j != i} R_j."""

    include_own: bool = False
    """Take the maximum over the whole group, the response itself included."""

    compares: ClassVar[bool] = True

    def __call__(
        self, rows: RolloutRows, state: AdvantageState | None, all_reduce: AllReduce
    ) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"] | None]:
        rewards, group = rows.rewards.sum(1), rows.tokens.group
        best = advantages.group_max if self.include_own else advantages.best_of_others
        per_row = advantages.minus_baseline(rewards, best(rewards, group), group)
        return advantages.expand(per_row, rows.tokens.target), None

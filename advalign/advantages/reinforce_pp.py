"""A_t = (G_t - mean) / std, G_t = sum_k gamma^k R_{t+k}, mean and std over all target tokens of the draw   (REINFORCE++, arXiv:2501.03262).

The response's reward is on its last target token, token rewards (the paper: -coef k1 to the reference) on theirs.
baseline "none":  R as it is. One response per prompt is enough
baseline "group": R - mean of the group, the paper's "w/ baseline" form for several responses per prompt

Differences: t + k counts TARGET tokens, so what a tool says in between does not decay a reward; gamma acts in both forms (public code: only
in the first); the std has a floor instead of a guard of 1e-8 in the variance. In the second form a group of one has R - R = 0 before
whitening (public code: its raw reward), and whitening shifts by the mean over TOKENS, which is not zero where lengths differ: a constant
group then gets a small common advantage, and exactly 0 only where the whole draw consists of constant groups.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from jaxtyping import Float
from torch import Tensor

from advalign.functional import advantages
from advalign.interfaces import Advantage, AdvantageState, AllReduce
from advalign.ranges import Fraction, OneOf, Positive
from advalign.types import RolloutRows

__all__ = ["ReinforcePP"]

BASELINES = ("none", "group")


@dataclass(frozen=True, kw_only=True)
class ReinforcePP(Advantage):
    """A_t = (G_t - mean) / std over all target tokens, G_t the discounted reward to go."""

    baseline: Annotated[str, OneOf(BASELINES, "baseline")] = "none"
    """What is subtracted from R first: none, or group (mean of the group)."""
    gamma: Fraction = 1.0
    """Discount per target token."""
    floor: Positive = 1e-4
    """Of the standard deviation; public code adds 1e-8 to the variance instead."""

    reads_token_rewards: ClassVar[bool] = True

    @property
    def compares(self) -> bool:
        return self.baseline == "group"

    def __call__(
        self, rows: RolloutRows, state: AdvantageState | None, all_reduce: AllReduce
    ) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"] | None]:
        rewards, target = rows.rewards.sum(1), rows.tokens.target
        if self.baseline == "group":
            rewards, _ = advantages.centred(rewards, rows.tokens.group)
        placed = advantages.per_token(rewards, rows.token_rewards, target)
        to_go = advantages.reward_to_go(placed, target, gamma=self.gamma)
        return advantages.whiten(to_go, target, floor=self.floor, all_reduce=all_reduce), None

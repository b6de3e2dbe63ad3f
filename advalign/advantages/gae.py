"""A_t = sum_k (gamma lam)^k delta_{t+k}, delta_t = R_t + gamma V_{t+1} - V_t; returns = A + V   (arXiv:1506.02438, eq. 16).

The response's reward is on its last target token, token rewards (if any) on theirs. Differences: t + 1 is the next TARGET token (values
and advantages skip what a tool said in between; some public code lets them decay there), and a response cut off by the length
limit ends like a finished one, with V = 0 behind it. Whitening spans all target tokens of the draw and all ranks, after returns are taken.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from advalign.errors import ConfigError
from advalign.functional import advantages
from advalign.interfaces import Advantage, AdvantageState, AllReduce
from advalign.ranges import Fraction, Positive
from advalign.types import RolloutRows

__all__ = ["GAE"]


@dataclass(frozen=True, kw_only=True)
class GAE(Advantage):
    """A_t = delta_t + gamma lam A_{t+1}, delta_t = R_t + gamma V_{t+1} - V_t."""

    gamma: Fraction = 1.0
    """Discount per target token."""
    lam: Fraction = 0.95
    """Decay of the sum of delta_t per target token: 0 trusts the critic alone, 1 the rewards alone."""
    whiten: bool = True
    """Shift and scale advantages to mean 0 and standard deviation 1 over all target tokens of the draw."""
    floor: Positive = 1e-4
    """Of that standard deviation; public code adds 1e-8 to the variance."""

    needs_values: ClassVar[bool] = True
    reads_token_rewards: ClassVar[bool] = True

    def __call__(
        self, rows: RolloutRows, state: AdvantageState | None, all_reduce: AllReduce
    ) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"] | None]:
        if rows.values is None:
            raise ConfigError("advantages.gae: rows carry no values; give this source a `value` objective, whose learner estimates them.")
        target = rows.tokens.target
        rewards = advantages.per_token(rows.rewards.sum(1), rows.token_rewards, target)
        estimates, returns = advantages.gae(rewards, rows.values.detach(), target, gamma=self.gamma, lam=self.lam)
        if self.whiten:
            estimates = advantages.whiten(estimates, target, floor=self.floor, all_reduce=all_reduce)
        return estimates, returns

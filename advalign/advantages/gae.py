"""A_t = sum_k (gamma lam)^k delta_{t+k}, delta_t = R_t + gamma V_{t+1} - V_t; returns = A + V   (arXiv:1506.02438, eq. 16).

The response's reward stands on its last target token, token rewards (if any) on theirs. Differences: t + 1 is the next TARGET token (values
and advantages are carried over what a tool said in between; some public code lets them decay there), and a response cut off by the length
limit ends like a finished one, with V = 0 behind it. Whitening spans all target tokens of the draw and all ranks, after returns are taken.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from advalign.errors import ConfigError
from advalign.functional import advantages
from advalign.interfaces import Advantage
from advalign.types import RolloutRows

__all__ = ["GAE"]


@dataclass(frozen=True, kw_only=True)
class GAE(Advantage):
    """A_t = delta_t + gamma lam A_{t+1}, delta_t = R_t + gamma V_{t+1} - V_t."""

    gamma: float = 1.0
    lam: float = 0.95
    whiten: bool = True
    floor: float = 1e-4  # of the standard deviation; public code adds 1e-8 to the variance

    needs_values: ClassVar[bool] = True
    reads_token_rewards: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"advantages.gae.{name}: got {getattr(self, name)}, must be between 0 and 1.")

    def __call__(
        self, rows: RolloutRows, state: Any, all_reduce: Callable[[Tensor], Tensor]
    ) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"] | None]:
        if rows.values is None:
            raise ConfigError("advantages.gae: rows carry no values; give this source a `value` objective, whose learner estimates them.")
        target = rows.tokens.target
        rewards = advantages.per_token(rows.rewards.sum(1), rows.token_rewards, target)
        estimates, returns = advantages.gae(rewards, rows.values.detach(), target, gamma=self.gamma, lam=self.lam)
        if self.whiten:
            estimates = advantages.whiten(estimates, target, floor=self.floor, all_reduce=all_reduce)
        return estimates, returns

"""l = -rho A, rho = exp(mean_t c_t); c_t = min(log r_t, clip) where A > 0, max(log r_t, -clip) where A < 0; mean over rows.

(GMPO, arXiv:2507.20673.) The geometric mean of a response's ratios in place of the arithmetic one: an outlier token cannot dominate. Clips
are log-ratios, wider than PPO's (0.4). Advantages are per response; where they differ within one, each token takes its own.
On another view: -sg(rho) A log p(y_t | y_<t, x + delta), averaged over the response.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from advalign.functional import policy, weights
from advalign.functional.logprobs import zero_off_target
from advalign.objectives._policy import PolicyObjective
from advalign.ranges import PositiveBound
from advalign.types import Losses, Outputs, RolloutRows

__all__ = ["GMPO"]


@dataclass(frozen=True, kw_only=True)
class GMPO(PolicyObjective):
    """-exp(mean of clipped log-ratios) A, every response alike."""

    weighting: weights.Weighting = "sequence"
    """token: every token of the update counts the same; sequence: every response does."""
    clip: PositiveBound = 0.4
    """Bound on |log r| on the side where the clip acts."""

    def losses(self, rows: RolloutRows, views: Mapping[str, Outputs]) -> Losses:
        clean, old, attacked = self.logprobs(rows, views)
        target = self.target(rows)
        advantages = zero_off_target(rows.advantages, target)
        rho = policy.geometric_ratio(clean, zero_off_target(old, target).detach(), advantages, target, clip=self.clip)
        if attacked is None:
            losses = -rho * advantages
        else:
            losses = policy.weighted_likelihood(zero_off_target(attacked, target), rho, advantages)
        ratio = policy.token_ratio(clean, old, target)
        high = math.expm1(self.clip)
        low = -math.expm1(-self.clip)
        clips = attacked is None
        return Losses(losses * target, policy.policy_metrics(ratio, clean, old, advantages, target, low=low, high=high, clips=clips))

"""l_t = -4 / tau sigmoid(tau (r_t - 1)) A_t, tau = tau_positive where A > 0, else tau_negative; mean over rows of token means.

(SAPO, arXiv:2511.20347.) The weight of a token's gradient is 4 s (1 - s) r: 1 at r = 1, falling smoothly and never zero, where a clip has a
dead zone. Negative advantages fall faster (1.05). Difference: none in the loss; public scripts set flags of these temperatures that
their code does not read. On another view the weight is that of the clean view: -sg(4 s (1 - s) r) A log p(y_t | y_<t, x + delta).
`clip_ratio` metrics report where PPO with 0.2 would have clipped.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from advalign.functional import policy, weights
from advalign.functional.logprobs import zero_off_target
from advalign.objectives._policy import PolicyObjective
from advalign.ranges import Positive
from advalign.types import Losses, Outputs, RolloutRows

__all__ = ["SAPO"]


@dataclass(frozen=True, kw_only=True)
class SAPO(PolicyObjective):
    """-4 / tau sigmoid(tau (r - 1)) A: a soft gate in place of the clip."""

    weighting: weights.Weighting = "sequence"
    """token: every token of the update counts the same; sequence: every response does."""
    tau_positive: Positive = 1.0
    """Temperature of the gate where A > 0."""
    tau_negative: Positive = 1.05
    """Temperature of the gate where A <= 0."""

    def losses(self, rows: RolloutRows, views: Mapping[str, Outputs]) -> Losses:
        clean, old, attacked = self.logprobs(rows, views)
        target = self.target(rows)
        advantages, ratio = zero_off_target(rows.advantages, target), policy.token_ratio(clean, old, target)
        taus = {"tau_positive": self.tau_positive, "tau_negative": self.tau_negative}
        if attacked is None:
            losses = policy.soft_gate(ratio, advantages, **taus)
        else:
            slope = policy.soft_gate_slope(ratio, advantages, **taus)
            losses = policy.weighted_likelihood(zero_off_target(attacked, target), slope * ratio, advantages)
        metrics = policy.policy_metrics(ratio, clean, old, advantages, target, low=0.2, high=0.2, clips=attacked is None)
        return Losses(losses * target, metrics)

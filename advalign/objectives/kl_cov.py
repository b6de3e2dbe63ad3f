"""l_t = -r_t A_t, plus beta |log r_t| on the `fraction` of tokens with the largest covariance   (KL-Cov, arXiv:2505.22617, eq. 12).

cov_t = (log p_t - mean log p)(A_t - mean A) over the tokens of the update; at least one token is penalised. Mean over all tokens, no clip.
Covariances are those of the current weights, taken before the update over all of its tokens (public code: those of a micro-batch, so
that its size moves the choice). Paper: fraction 2e-3 (7B) or 2e-4 (32B), beta 1.
On another view the policy term is -sg(r) A log p(y_t | y_<t, x + delta), and the penalty is on the attacked log-probabilities.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from advalign.functional import policy
from advalign.functional.logprobs import zero_off_target
from advalign.objectives._policy import CovarianceObjective
from advalign.ranges import NonNegative, PositiveFraction
from advalign.types import Losses, Outputs, RolloutRows, Weights

__all__ = ["KLCov"]


@dataclass(frozen=True, kw_only=True)
class KLCov(CovarianceObjective):
    """-r A + beta |log r| on the tokens of largest covariance."""

    fraction: PositiveFraction = 2e-3
    """Of all tokens: how many are penalised."""
    beta: NonNegative = 1.0
    """Weight of the penalty."""

    def weights(self, rows: RolloutRows) -> Weights:
        """Two losses per token, "B T 2": the surrogate, and the penalty on the tokens of largest covariance."""
        average = super().weights(rows)
        return Weights(torch.stack([average.values, average.values * self.penalised(rows) * self.beta], -1), average.count)

    def penalised(self, rows: RolloutRows) -> Bool[Tensor, "B T"]:
        """The tokens of largest covariance."""
        target = self.target(rows)
        cov = self.covariance(rows).masked_fill(~target, -torch.inf)
        number = min(max(int(self.fraction * int(target.sum())), 1), int(target.sum()))
        penalised = torch.zeros(target.numel(), dtype=torch.bool, device=target.device)
        penalised[cov.flatten().topk(number).indices] = True
        return penalised.view(target.shape)

    def losses(self, rows: RolloutRows, views: Mapping[str, Outputs]) -> Losses:
        clean, old, attacked = self.logprobs(rows, views)
        target = self.target(rows)
        ratio, advantages = policy.token_ratio(clean, old, target), zero_off_target(rows.advantages, target)
        surrogate = -ratio * advantages
        if attacked is not None:
            surrogate = policy.weighted_likelihood(zero_off_target(attacked, target), ratio, advantages)
        penalty = (zero_off_target(clean if attacked is None else attacked, target) - zero_off_target(old, target)).abs()
        metrics = policy.policy_metrics(ratio, clean, old, advantages, target, low=1.0, high=float("inf"))
        return Losses(torch.stack([surrogate * target, penalty], -1), metrics)

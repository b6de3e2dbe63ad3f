"""The clipped surrogate, with the loss of a few tokens of high covariance removed   (Clip-Cov, arXiv:2505.22617, eq. 10).

cov_t = (log p_t - mean log p)(A_t - mean A): the tokens that drive entropy down. `fraction` of all tokens, drawn at random among those with
low_cov < cov_t < high_cov (and whose gradient the clip leaves), lose their loss; the count stays that of all tokens. At least one is drawn.

Covariances are those of the current weights, taken before the update over all of its tokens (public code: those of a micro-batch, so
that its size moves the choice); the random choice is keyed by these tokens. The paper's scripts open the clip to 1 and 1 here.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from advalign.errors import ConfigError
from advalign.functional import policy
from advalign.objectives._policy import CovarianceObjective
from advalign.ranges import Bound, Fraction, Threshold
from advalign.types import Losses, Outputs, RolloutRows, Weights

__all__ = ["ClipCov"]


@dataclass(frozen=True, kw_only=True)
class ClipCov(CovarianceObjective):
    """-min(r A, clip(r, 1 - low, 1 + high) A), without a fraction of the high-covariance tokens."""

    clip_low: Bound = 1.0
    """How far the ratio may fall below 1."""
    clip_high: Bound = 1.0
    """How far the ratio may rise above 1."""
    fraction: Fraction = 2e-4
    """Of all tokens: how many lose their loss."""
    low_cov: Threshold = 1.0
    """Covariance above which a token may lose its loss."""
    high_cov: Threshold = 5.0
    """Covariance below which a token may lose its loss."""

    def __post_init__(self) -> None:
        if self.low_cov >= self.high_cov:
            raise ConfigError(f"objectives.clip_cov.low_cov: {self.low_cov} given; it must be below high_cov, {self.high_cov}.")

    def weights(self, rows: RolloutRows) -> Weights:
        average = super().weights(rows)
        return Weights(average.values * ~self.removed(rows), average.count)

    def removed(self, rows: RolloutRows) -> Bool[Tensor, "B T"]:
        """The tokens whose loss is removed."""
        target, cov = self.target(rows), self.covariance(rows)
        candidates = (target & (cov > self.low_cov) & (cov < self.high_cov)).flatten().nonzero().squeeze(1)
        number = min(max(int(self.fraction * int(target.sum())), 1), candidates.numel()) if self.fraction else 0
        # Keyed by content: the same draw loses the same tokens, in a resumed run too.
        generator = torch.Generator().manual_seed(int(rows.tokens.ids[target].sum()))
        chosen = candidates[torch.randperm(candidates.numel(), generator=generator)[:number].to(candidates.device)]
        removed = torch.zeros(target.numel(), dtype=torch.bool, device=target.device)
        removed[chosen] = True
        return removed.view(target.shape)

    def losses(self, rows: RolloutRows, views: Mapping[str, Outputs]) -> Losses:
        clean, old, attacked = self.logprobs(rows, views)
        low, high = self.clip_low, self.clip_high
        return policy.surrogate(clean, old, rows.advantages, self.target(rows), low=low, high=high, attacked=attacked)

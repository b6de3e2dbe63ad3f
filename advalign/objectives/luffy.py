"""On sampled rows -min(r A, clip(r) A); on demonstrations inside the group -f(p) A, f(p) = p / (p + shape); sum over a constant length.

(LUFFY, arXiv:2504.14945, eq. 5 to 7.) Demonstrations are part of the group (`demonstrations` of the source), are scored by the same rewards
and share its baseline; their sampler is taken as probability 1. Policy shaping: the gradient weight shape p / (p + shape)^2 is large where
the policy finds a token unlikely; `shape: null` is f(p) = p. Difference: `clip: null` as in the published script (its paper clips sampled
rows) and, as there, the weights are a sum over the constant `length` where it is given, else `weighting`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from advalign.functional import policy, ratios, weights
from advalign.functional.logprobs import zero_off_target
from advalign.functional.masks import demonstrated_tokens, sampled_tokens
from advalign.objectives._policy import PolicyObjective
from advalign.ranges import Count, Positive, PositiveBound
from advalign.types import Losses, Outputs, RolloutRows, Weights

__all__ = ["LUFFY"]


@dataclass(frozen=True, kw_only=True)
class LUFFY(PolicyObjective):
    """Sampled rows as PPO (unclipped unless `clip`), demonstrations in the group by f(p) = p / (p + shape)."""

    length: Count | None = None
    """Weights are a response's sum over this constant, in tokens. None: `weighting`."""
    shape: Positive | None = 0.1
    """Of the policy shaping of demonstrations. None: f(p) = p."""
    clip: PositiveBound | None = None
    """How far the ratio of sampled rows may move from 1. None: not clipped, as in the published script."""

    metric_names: ClassVar[frozenset[str] | None] = (PolicyObjective.metric_names or frozenset()) | {"offpolicy_ratio"}

    def target(self, rows: RolloutRows) -> Bool[Tensor, "B T"]:
        return rows.tokens.target

    def average(self, target: Bool[Tensor, "B T"]) -> Weights:
        return super().average(target) if self.length is None else weights.constant(target, length=self.length)

    def losses(self, rows: RolloutRows, views: Mapping[str, Outputs]) -> Losses:
        clean, old, attacked = self.logprobs(rows, views)
        target = self.target(rows)
        off = torch.zeros_like(target) if rows.offpolicy is None else demonstrated_tokens(target, rows.offpolicy)
        sampled, advantages = sampled_tokens(target, rows.offpolicy), zero_off_target(rows.advantages, target)
        high = float("inf") if self.clip is None else self.clip
        low = 1.0 if self.clip is None else self.clip
        on = policy.surrogate(clean, old, advantages, sampled, low=low, high=high, attacked=attacked)
        through = zero_off_target(clean if attacked is None else attacked, off)
        shaped = through.exp() if self.shape is None else ratios.offpolicy(through, shape=self.shape)
        metrics = dict(on.metrics) | {"offpolicy_ratio": (shaped.detach(), off.to(clean.dtype))}
        return Losses(torch.where(off, -shaped * advantages, on.values), metrics)

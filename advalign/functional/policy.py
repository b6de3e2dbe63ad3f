"""Clipped policy surrogates, one loss per element, and what to watch about them.

l = -min(r A, clip(r, 1 - low, 1 + high) A)                    (PPO, arXiv:1707.06347, eq. 7)
where A < 0, dual clip: l = min(l, -c A)                       (arXiv:1912.09729, "dual-clip PPO")
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from advalign.functional import divergence, ratios
from advalign.functional.logprobs import only
from advalign.types import Losses


def clipped_surrogate(
    ratio: Float[Tensor, "*S"], advantages: Float[Tensor, "*S"], *, low: float, high: float, dual_clip: float | None = None
) -> Float[Tensor, "*S"]:
    """The formulas above. `dual_clip` (c > 1) bounds the loss of a disliked token that became likely: r A is not bounded."""
    losses = -torch.minimum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)
    if dual_clip is None:
        return losses
    return torch.where(advantages < 0, torch.minimum(losses, -dual_clip * advantages), losses)


def weighted_likelihood(
    logprobs: Float[Tensor, "*S"], ratio: Float[Tensor, "*S"], advantages: Float[Tensor, "*S"], *, low: float, high: float
) -> Float[Tensor, "*S"]:
    """l = -sg(clip(r, 1 - low, 1 + high)) A log p: the gradient goes through log p alone, which may be of another view."""
    return -ratio.detach().clamp(1 - low, 1 + high) * advantages * logprobs


def binds(ratio: Float[Tensor, "*S"], advantages: Float[Tensor, "*S"], *, low: float, high: float) -> Float[Tensor, "*S"]:
    """1 where the clip removes the gradient: r > 1 + high and A > 0, or r < 1 - low and A < 0."""
    above = (ratio > 1 + high) & (advantages > 0)
    below = (ratio < 1 - low) & (advantages < 0)
    return (above | below).to(ratio.dtype)


def surrogate(
    logprobs: Float[Tensor, "B T"],
    old: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    target: Bool[Tensor, "B T"],
    *,
    low: float,
    high: float,
    dual_clip: float | None = None,
    attacked: Float[Tensor, "B T"] | None = None,
) -> Losses:
    """`clipped_surrogate` of p / p_old; with `attacked` (log-probabilities on another view), `weighted_likelihood` of those
    with the ratio of `logprobs`. What lies off target is never read. Metrics are token-weighted:
    clip_fraction; ratio; approx_kl (k3 of KL(p_old || p), whose samples these are)."""
    logprobs, old = only(logprobs, target), only(old, target).detach()
    advantages = only(advantages, target)
    ratio = ratios.token(logprobs, old)
    if attacked is None:
        losses = clipped_surrogate(ratio, advantages, low=low, high=high, dual_clip=dual_clip)
    else:
        losses = weighted_likelihood(only(attacked, target), ratio, advantages, low=low, high=high)
    seen, each = ratio.detach(), target.to(ratio.dtype)
    metrics = {
        "clip_fraction": (binds(seen, advantages, low=low, high=high), each),
        "ratio": (seen, each),
        "approx_kl": (divergence.k3(old, logprobs.detach()), each),
    }
    return Losses(losses, metrics)

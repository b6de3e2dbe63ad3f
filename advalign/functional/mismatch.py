"""Sampler and trainer compute the same log-probabilities differently: importance weights w for that gap, without gradient.

r_t = exp(log p_old,t - log p_sampler,t)   (`old`: the trainer at rollout time; `sampler`: the engine that drew the token)

level     token: r_t · sequence: prod_t r_t · geometric: exp(mean_t log r_t)
truncate  w = clip(r, low, high)           truncated importance sampling (TIS; token level with high = 2 is the usual setting)
mask      w = r 1[low <= r <= high]        masked importance sampling (IcePop at token level); masked tokens stay in the count
reject    w = 1[low <= r <= high]          rejection without reweighting (the "geometric" presets of public code)

Public code disagrees on defaults (a product capped at 3, token weights capped at 2, bounds on 1 / r in one): ours are none, one meaning
each. All tokens of a row share its level; off target w is zero. Log-ratios of a product are clamped to +-LIMIT.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from advalign.functional.ratios import LIMIT

LEVELS = ("token", "sequence", "geometric")
MODES = ("truncate", "mask", "reject")


def ratio(old: Float[Tensor, "B T"], sampler: Float[Tensor, "B T"], target: Bool[Tensor, "B T"], *, level: str) -> Float[Tensor, "B T"]:
    """r at a level, on target; zero elsewhere."""
    gap = (old - sampler).detach().masked_fill(~target, 0.0)
    if level != "token":
        total = gap.sum(1, keepdim=True)
        if level == "geometric":
            total = total / target.sum(1, keepdim=True).clamp(min=1)
        gap = total.expand_as(gap)
    return gap.clamp(-LIMIT, LIMIT).exp() * target


def weights(
    old: Float[Tensor, "B T"],
    sampler: Float[Tensor, "B T"],
    target: Bool[Tensor, "B T"],
    *,
    level: str,
    mode: str,
    low: float,
    high: float,
) -> Float[Tensor, "B T"]:
    """The formulas above."""
    r = ratio(old, sampler, target, level=level)
    if mode == "truncate":
        return r.clamp(low, high) * target
    inside = ((r >= low) & (r <= high) & target).to(r.dtype)
    return r * inside if mode == "mask" else inside


def effective_sample_size(w: Float[Tensor, "B T"], target: Bool[Tensor, "B T"]) -> Float[Tensor, ""]:
    """(sum w)^2 / (n sum w^2), between 1 / n and 1; 0 when every weight is 0."""
    x = w[target]
    squares = (x**2).sum() * x.numel()
    return torch.where(squares > 0, x.sum() ** 2 / squares.clamp(min=torch.finfo(x.dtype).tiny), 0.0)


def diagnostics(old: Float[Tensor, "B T"], sampler: Float[Tensor, "B T"], target: Bool[Tensor, "B T"]) -> dict[str, float]:
    """How far the two are apart on a draw: |log p_old - log p_sampler| and r per token, and the effective fraction of samples."""
    gap = (old - sampler)[target].abs()
    if not gap.numel():
        return {}
    r = ratio(old, sampler, target, level="token")
    on_target = r[target]
    return {
        "sampling/sampling_logp_difference/mean": float(gap.mean()),
        "sampling/sampling_logp_difference/max": float(gap.max()),
        "sampling/importance_sampling_ratio/min": float(on_target.min()),
        "sampling/importance_sampling_ratio/mean": float(on_target.mean()),
        "sampling/importance_sampling_ratio/max": float(on_target.max()),
        "sampling/effective_sample_size": float(effective_sample_size(r, target)),
    }

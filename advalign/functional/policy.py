"""Policy surrogates, one loss per element, and their metrics. r = p / p_old, A the advantage, sg = no gradient.

clipped       -min(r A, clip(r, 1 - low, 1 + high) A)            (PPO, arXiv:1707.06347, eq. 7)
dual clip     where A < 0: min(the above, -c A)                  (arXiv:1912.09729)
soft gate     -4 / tau sigmoid(tau (r - 1)) A                    (SAPO, arXiv:2511.20347; tau by the sign of A)
capped        -sg(clip(r, 1 - low, 1 + high)) A log p            (CISPO, arXiv:2506.13585)
geometric     -exp(mean_t c_t) A, c = log r clipped on one side     (GMPO, arXiv:2507.20673)

A number per response (a sequence ratio, a geometric mean) is repeated on each of its tokens: with the weights 1 / |y| the sum is the
published loss of the response, and its gradient too.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from advalign.functional import divergence, ratios
from advalign.functional.logprobs import zero_off_target
from advalign.types import Losses


def clipped_surrogate(
    ratio: Float[Tensor, "*S"], advantages: Float[Tensor, "*S"], *, low: float, high: float, dual_clip: float | None = None
) -> Float[Tensor, "*S"]:
    """The first two formulas. `dual_clip` (c > 1) bounds the loss of a token with A < 0 that became likely, where r A is not bounded."""
    losses = -torch.minimum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)
    if dual_clip is None:
        return losses
    return torch.where(advantages < 0, torch.minimum(losses, -dual_clip * advantages), losses)


def weighted_likelihood(logprobs: Float[Tensor, "*S"], weight: Float[Tensor, "*S"], advantages: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """l = -sg(weight) A log p: the gradient goes through log p alone, which may be of another view than the weight."""
    return -weight.detach() * advantages * logprobs


def soft_gate(
    ratio: Float[Tensor, "*S"], advantages: Float[Tensor, "*S"], *, tau_positive: float, tau_negative: float
) -> Float[Tensor, "*S"]:
    """l = -4 / tau sigmoid(tau (r - 1)) A, tau = tau_positive where A > 0, else tau_negative."""
    tau = torch.where(advantages > 0, torch.full_like(ratio, tau_positive), tau_negative)
    return -4 / tau * torch.sigmoid(tau * (ratio - 1)) * advantages


def soft_gate_slope(
    ratio: Float[Tensor, "*S"], advantages: Float[Tensor, "*S"], *, tau_positive: float, tau_negative: float
) -> Float[Tensor, "*S"]:
    """d(gate) / d(r) = 4 s (1 - s), s = sigmoid(tau (r - 1)): 1 at r = 1, and never 0."""
    tau = torch.where(advantages > 0, torch.full_like(ratio, tau_positive), tau_negative)
    s = torch.sigmoid(tau * (ratio - 1))
    return 4 * s * (1 - s)


def geometric_ratio(
    logprobs: Float[Tensor, "B T"],
    old: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    target: Bool[Tensor, "B T"],
    *,
    clip: float,
) -> Float[Tensor, "B T"]:
    """exp(mean_t c_t) on every token of a response; c_t = min(log r_t, clip) where A_t > 0, max(log r_t, -clip) where A_t < 0,
    and log r_t clipped on both sides where A_t = 0."""
    gap = zero_off_target(logprobs - old, target)
    high = torch.full_like(gap, clip).masked_fill(advantages < 0, torch.inf)
    low = torch.full_like(gap, -clip).masked_fill(advantages > 0, -torch.inf)
    clipped = torch.maximum(torch.minimum(gap, high), low)
    mean = clipped.sum(1, keepdim=True) / target.sum(1, keepdim=True).clamp(min=1)
    return mean.clamp(-ratios.LIMIT, ratios.LIMIT).exp().expand_as(gap)


def clip_is_active(ratio: Float[Tensor, "*S"], advantages: Float[Tensor, "*S"], *, low: float, high: float) -> Float[Tensor, "*S"]:
    """1 where the clip removes the gradient: r > 1 + high and A > 0, or r < 1 - low and A < 0."""
    above = (ratio > 1 + high) & (advantages > 0)
    below = (ratio < 1 - low) & (advantages < 0)
    return (above | below).to(ratio.dtype)


def token_ratio(logprobs: Float[Tensor, "B T"], old: Float[Tensor, "B T"], target: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """r_t, 1 off target."""
    return ratios.token(zero_off_target(logprobs, target), zero_off_target(old, target).detach())


def sequence_ratio(logprobs: Float[Tensor, "B T"], old: Float[Tensor, "B T"], target: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """s = exp(mean_t log r_t) on every token of its response   (GSPO, arXiv:2507.18071, eq. 7)."""
    return ratios.sequence(logprobs, old.detach(), target)[:, None].expand_as(logprobs)


def sequence_token_ratio(logprobs: Float[Tensor, "B T"], old: Float[Tensor, "B T"], target: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """s_t = sg(s) p_t / sg(p_t): the value of s, the gradient of one token   (GSPO-token, arXiv:2507.18071, eq. 14)."""
    logprobs = zero_off_target(logprobs, target)
    return sequence_ratio(logprobs, old, target).detach() * (logprobs - logprobs.detach()).exp()


RATIOS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "token": token_ratio,
    "sequence": sequence_ratio,
    "sequence_token": sequence_token_ratio,
}


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
    level: str = "token",
) -> Losses:
    """`clipped_surrogate` of p / p_old at a level of RATIOS; with `attacked` (log-probabilities on another view),
    `weighted_likelihood` of those with the clipped ratio of `logprobs`. What lies off target is never read."""
    advantages = zero_off_target(advantages, target)
    ratio = RATIOS[level](logprobs, old, target)
    if attacked is None:
        losses = clipped_surrogate(ratio, advantages, low=low, high=high, dual_clip=dual_clip)
    else:
        losses = weighted_likelihood(zero_off_target(attacked, target), ratio.clamp(1 - low, 1 + high), advantages)
    clips = attacked is None
    return Losses(losses * target, policy_metrics(ratio, logprobs, old, advantages, target, low=low, high=high, clips=clips))


def policy_metrics(
    ratio: Float[Tensor, "B T"],
    logprobs: Float[Tensor, "B T"],
    old: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    target: Bool[Tensor, "B T"],
    *,
    low: float,
    high: float,
    clips: bool = True,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Token-weighted metrics: clip_ratio/low_mean and /high_mean (tokens whose gradient the clip removes from below, from above),
    clip_fraction (their sum), ratio, ratio_variance (of r around 1), approx_kl (k3 of KL(p_old || p), whose samples these are). Without
    `clips` no clip removes a gradient, as on an attacked view, and the first three are left out."""
    ratio, weight = ratio.detach(), target.to(ratio.dtype)
    advantages = zero_off_target(advantages, target)
    above = ((ratio > 1 + high) & (advantages > 0)).to(ratio.dtype)
    below = ((ratio < 1 - low) & (advantages < 0)).to(ratio.dtype)
    clipped = {"clip_fraction": (above + below, weight), "clip_ratio/low_mean": (below, weight), "clip_ratio/high_mean": (above, weight)}
    return (clipped if clips else {}) | {
        "ratio": (ratio, weight),
        "ratio_variance": ((ratio - 1) ** 2, weight),
        "approx_kl": (divergence.k3(zero_off_target(old, target).detach(), zero_off_target(logprobs, target).detach()), weight),
    }


# ------------------------------------------------------------------------------------------ which tokens count


def high_entropy(entropy: Float[Tensor, "B T"], target: Bool[Tensor, "B T"], *, fraction: float) -> Bool[Tensor, "B T"]:
    """The `fraction` of target tokens with the highest entropy: H_t >= quantile_{1 - fraction}   (arXiv:2506.01939, eq. 5).
    By sorting, so that a batch may be larger than what `torch.quantile` takes; interpolated as it interpolates."""
    values = entropy[target].sort().values
    if not values.numel():
        return target
    place = (1 - fraction) * (values.numel() - 1)
    below = values[int(place)]
    threshold = below + (values[min(int(place) + 1, values.numel() - 1)] - below) * (place - int(place))
    return target & (entropy >= threshold)


def covariance(logprobs: Float[Tensor, "B T"], advantages: Float[Tensor, "B T"], target: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """(log p_t - mean log p)(A_t - mean A) over the target tokens: what drives entropy down   (arXiv:2505.22617, eq. 9)."""
    is_target = target.to(logprobs.dtype)
    count = is_target.sum().clamp(min=1)
    log_p, adv = zero_off_target(logprobs, target), zero_off_target(advantages, target)
    return (log_p - log_p.sum() / count) * (adv - adv.sum() / count) * is_target

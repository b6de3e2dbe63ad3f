"""Losses of preferences: of a pair (one loss per pair, rows 2i chosen and 2i + 1 rejected) or of a single response, desirable or not.

`difference` is chosen minus rejected, of what the loss compares: d = log p - log p_ref summed over tokens (dpo, robust_dpo, ipo, hinge),
the mean of log p over tokens (simpo), log-odds (orpo).
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from advalign.functional.logprobs import zero_off_target

CERTAIN = -1e-7  # a mean log-probability is kept below this: at 0 the odds are infinite


def total(logprobs: Float[Tensor, "B T"], target: Bool[Tensor, "B T"]) -> Float[Tensor, "B"]:
    """log p(y) = sum_t log p_t over the target tokens of a row."""
    return zero_off_target(logprobs, target).sum(1)


def mean(logprobs: Float[Tensor, "B T"], target: Bool[Tensor, "B T"]) -> Float[Tensor, "B"]:
    """log p(y) / |y|; 0 for an empty row."""
    return total(logprobs, target) / target.sum(1).clamp(min=1)


def difference(rows: Float[Tensor, "B"]) -> Float[Tensor, "P"]:
    """Chosen (rows 2i) minus rejected (rows 2i + 1)."""
    return rows[0::2] - rows[1::2]


def dpo(difference: Float[Tensor, "P"], *, beta: float, label_smoothing: float = 0.0) -> Float[Tensor, "P"]:
    """l = -(1 - e) log sigmoid(beta d) - e log sigmoid(-beta d), e = label_smoothing.

    e = 0 is DPO (arXiv:2305.18290, eq. 7); e > 0 is cDPO (E. Mitchell, "A note on DPO with noisy preferences", 2023: the labels are
    wrong with probability e), whose minimum is at beta d = log((1 - e) / e), not at infinity.
    """
    return -(1 - label_smoothing) * logsigmoid(beta * difference) - label_smoothing * logsigmoid(-beta * difference)


def robust_dpo(difference: Float[Tensor, "P"], *, beta: float, flip_rate: float) -> Float[Tensor, "P"]:
    """l = ((1 - e) l(d) - e l(-d)) / (1 - 2 e), l(d) = -log sigmoid(beta d), e = flip_rate (rDPO, arXiv:2403.00409).

    Where labels were flipped with probability e, its expectation is the loss of the labels before: (1 - e) l_e(d) + e l_e(-d) = l(d).
    """
    right, flipped = -logsigmoid(beta * difference), -logsigmoid(-beta * difference)
    return ((1 - flip_rate) * right - flip_rate * flipped) / (1 - 2 * flip_rate)


def ipo(difference: Float[Tensor, "P"], *, beta: float) -> Float[Tensor, "P"]:
    """l = (d - 1 / (2 beta))^2   (IPO, arXiv:2310.12036, eq. 17; beta is its tau)."""
    return (difference - 1 / (2 * beta)) ** 2


def hinge(difference: Float[Tensor, "P"], *, beta: float) -> Float[Tensor, "P"]:
    """l = max(0, 1 - beta d)   (SLiC-HF, arXiv:2305.10425; with the reference inside d: RSO, arXiv:2309.06657)."""
    return relu(1 - beta * difference)


def simpo(difference: Float[Tensor, "P"], *, beta: float, gamma: float) -> Float[Tensor, "P"]:
    """l = -log sigmoid(beta d - gamma), d of length-normalised log-probabilities without a reference (SimPO, arXiv:2405.14734)."""
    return -logsigmoid(beta * difference - gamma)


def log_odds(mean_logprobs: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
    """log(p / (1 - p)) of p = exp(mean log p); p closer to 1 than 1e-7 has no gradient."""
    log_p = mean_logprobs.clamp(max=CERTAIN)
    return log_p - (-torch.expm1(log_p)).log()


def orpo(difference: Float[Tensor, "P"]) -> Float[Tensor, "P"]:
    """l = -log sigmoid(d), d of log-odds: the odds-ratio summand of ORPO (arXiv:2403.07691, eq. 7)."""
    return -logsigmoid(difference)


def bradley_terry(
    chosen: Float[Tensor, "P"], rejected: Float[Tensor, "P"], margin: Float[Tensor, "P"] | float = 0.0, *, centre: float = 0.0
) -> Float[Tensor, "P"]:
    """l = -log sigmoid(s_c - s_r - margin) + centre (s_c + s_r)^2   (margin: arXiv:2307.09288, eq. 2; centring: arXiv:2312.09244, eq. 2).

    The first summand leaves the level of the scores free; the second one keeps it at zero.
    """
    return -logsigmoid(chosen - rejected - margin) + centre * (chosen + rejected) ** 2


def kto(
    ratios: Float[Tensor, "B"],
    anchor: Float[Tensor, "B"],
    desirable: Bool[Tensor, "B"],
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Float[Tensor, "B"]:
    """l = lambda_D (1 - sigmoid(beta (r - z0))) if desirable, lambda_U (1 - sigmoid(beta (z0 - r))) if not; r = log p - log p_ref.

    (KTO, arXiv:2402.01306, eq. 7.) z0 = `anchor` gets no gradient.
    """
    sign = torch.full_like(ratios, -1.0).masked_fill(desirable, 1.0)
    weight = torch.full_like(ratios, undesirable_weight).masked_fill(desirable, desirable_weight)
    return weight * torch.sigmoid(-sign * beta * (ratios - anchor.detach()))

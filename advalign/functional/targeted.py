"""Losses of one wanted response, from the logits that predict it. Axes: N candidates, R tokens of the response, V vocabulary.

Each is lower the closer the response is to being said; `worst_margin` <= 0 means that greedy decoding says it.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor


def token_nll(logits: Float[Tensor, "N R V"], ids: Int[Tensor, "R"]) -> Float[Tensor, "N R"]:
    """-log softmax(z_t)[y_t]."""
    return -logits.log_softmax(-1).gather(2, ids.expand(logits.shape[0], -1)[..., None]).squeeze(2)


def token_margin(logits: Float[Tensor, "N R V"], ids: Int[Tensor, "R"]) -> Float[Tensor, "N R"]:
    """max_{k ≠ y_t} z_tk - z_ty_t: at most 0 where y_t is the likeliest token   (after f_6 of arXiv:1608.04644)."""
    index = ids.expand(logits.shape[0], -1)[..., None]
    return logits.scatter(2, index, -torch.inf).amax(2) - logits.gather(2, index).squeeze(2)


def mellowmax(x: Float[Tensor, "N R"], *, omega: float) -> Float[Tensor, "N"]:
    """log(1/R sum_t exp(omega x_t)) / omega: the mean for omega -> 0, the maximum for omega -> inf   (arXiv:1612.05628, eq. 1)."""
    return (torch.logsumexp(omega * x, 1) - math.log(x.shape[1])) / omega


def hinge(margin: Float[Tensor, "N R"]) -> Float[Tensor, "N"]:
    """1/R sum_t max(margin_t, 0): zero where every token is the likeliest, so a token that is likeliest already gains nothing."""
    return margin.clamp(min=0).mean(1)


def worst_margin(logits: Float[Tensor, "N R V"], ids: Int[Tensor, "R"]) -> Float[Tensor, "N"]:
    """max_t of the margins: at most 0 exactly where greedy decoding gives the response, ties aside."""
    return token_margin(logits, ids).amax(1)


__all__ = ["hinge", "mellowmax", "token_margin", "token_nll", "worst_margin"]

"""Kullback-Leibler divergence from samples (one log-probability per token) and between two categorical distributions.

Estimators of KL(p || ref) from y ~ p, with d = log p(y) - log p_ref(y)   (Schulman, "Approximating KL divergence", 2020):

    k1 = d          k2 = d^2 / 2          k3 = exp(-d) - 1 + d

As numbers k1 and k3 are unbiased. As LOSSES they differ (y is drawn, so only d is differentiated): the expected gradient of k1 is
zero, that of k3 is the gradient of KL(ref || p) [forward], and only k2's is the gradient of KL(p || ref).
Between two distributions an entry with p = 0 adds nothing to KL(p || q), and one with q = 0 < p makes it infinite. Logits of -inf are
such entries (a vocabulary that is padded); where both are -inf, values and gradients are those without the entry.

`k3_straight` ("k3+") has the value of k3 and the gradient of k2. Log-ratios are clamped to +-LIMIT inside the exponential.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from advalign.functional.ratios import LIMIT


def k1(logprobs: Float[Tensor, "*S"], ref: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """d: unbiased; may be negative."""
    return logprobs - ref


def k2(logprobs: Float[Tensor, "*S"], ref: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """d^2 / 2: biased; its gradient is that of KL(p || ref)."""
    return (logprobs - ref) ** 2 / 2


def k3(logprobs: Float[Tensor, "*S"], ref: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """exp(-d) - 1 + d: unbiased and never negative."""
    d = (logprobs - ref).clamp(-LIMIT, LIMIT)
    return torch.expm1(-d) + d


def k3_straight(logprobs: Float[Tensor, "*S"], ref: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """Value of k3, gradient of k2."""
    through = k2(logprobs, ref)
    return k3(logprobs, ref).detach() + through - through.detach()


ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3, "k3+": k3_straight}


def kl(p: Float[Tensor, "N V"], q: Float[Tensor, "N V"]) -> Float[Tensor, "N"]:
    """KL(softmax p || softmax q) of two tensors of logits."""
    p_is_zero = p.isneginf()
    log_p = p.log_softmax(-1).masked_fill(p_is_zero, 0)
    log_q = q.log_softmax(-1).masked_fill(p_is_zero, 0)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def symmetric_kl(p: Float[Tensor, "N V"], q: Float[Tensor, "N V"]) -> Float[Tensor, "N"]:
    """KL(p || q) + KL(q || p): the sum, not the mean (SMART, arXiv:1911.03437, section 2.1)."""
    both_are_zero = p.isneginf() & q.isneginf()
    log_p, log_q = (z.log_softmax(-1).masked_fill(both_are_zero, 0) for z in (p, q))
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1)


def js(p: Float[Tensor, "N V"], q: Float[Tensor, "N V"]) -> Float[Tensor, "N"]:
    """(KL(p || m) + KL(q || m)) / 2, m = (p + q) / 2: between 0 and log 2."""
    p_is_zero, q_is_zero = p.isneginf(), q.isneginf()
    log_p, log_q = (z.log_softmax(-1).masked_fill(p_is_zero & q_is_zero, 0) for z in (p, q))
    log_m = torch.logaddexp(log_p, log_q) - torch.log(torch.tensor(2.0, dtype=log_p.dtype, device=log_p.device))

    def to_middle(log: Tensor, is_zero: Tensor) -> Tensor:
        log = log.masked_fill(is_zero, 0)
        return (log.exp() * (log - log_m.masked_fill(is_zero, 0))).sum(-1)

    return (to_middle(log_p, p_is_zero) + to_middle(log_q, q_is_zero)) / 2


def mse(p: Float[Tensor, "N V"], q: Float[Tensor, "N V"]) -> Float[Tensor, "N"]:
    """Mean over classes of the squared difference of LOGITS: unlike the others it sees a shift of all of them. Classes that both
    exclude are not counted."""
    both_are_zero = p.isneginf() & q.isneginf()
    difference = p.masked_fill(both_are_zero, 0) - q.masked_fill(both_are_zero, 0)
    return (difference**2).mean(-1) * (p.shape[-1] / (~both_are_zero).sum(-1))


BETWEEN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"kl": kl, "symmetric_kl": symmetric_kl, "js": js, "mse": mse}

"""Importance ratios r = p_new / p_old of sampled tokens.

Log-ratios are clamped to +-LIMIT before the exponential, so that one stale token cannot overflow the loss; beyond the limit
the gradient is zero. (Public code: 20 in one framework, 10 in another, none in a third. e^20 is 4.9e8, out of reach of a healthy run.)
"""

from jaxtyping import Bool, Float
from torch import Tensor

LIMIT = 20.0


def token(logprobs: Float[Tensor, "*S"], old: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """r_t = exp(log p_t - log p_old,t)   (PPO, arXiv:1707.06347, eq. 6)."""
    return (logprobs - old).clamp(-LIMIT, LIMIT).exp()


def sequence(logprobs: Float[Tensor, "B T"], old: Float[Tensor, "B T"], target: Bool[Tensor, "B T"]) -> Float[Tensor, "B"]:
    """s = exp(mean_t (log p_t - log p_old,t)): the length-normalised ratio (GSPO, arXiv:2507.18071, eq. 7); 1 for an empty row."""
    total = (logprobs - old).masked_fill(~target, 0.0).sum(1)
    return (total / target.sum(1).clamp(min=1)).clamp(-LIMIT, LIMIT).exp()


def offpolicy(logprobs: Float[Tensor, "*S"], *, shape: float = 0.1) -> Float[Tensor, "*S"]:
    """f = p / (p + shape): a demonstration inside a rollout group, its policy taken as 1 (LUFFY, arXiv:2504.14945, policy shaping).
    The gradient weight is shape * p / (p + shape)^2: large for tokens that the policy finds unlikely."""
    p = logprobs.exp()
    return p / (p + shape)

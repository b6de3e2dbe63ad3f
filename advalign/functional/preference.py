"""Losses of a preference pair, one per pair; d = (log p - log p_ref)(chosen) - (log p - log p_ref)(rejected), summed over tokens."""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid


def dpo(difference: Float[Tensor, "P"], *, beta: float, label_smoothing: float = 0.0) -> Float[Tensor, "P"]:
    """l = -(1 - e) log sigmoid(beta d) - e log sigmoid(-beta d), e = label_smoothing.

    e = 0 is DPO (arXiv:2305.18290, eq. 7); e > 0 is cDPO (E. Mitchell, "A note on DPO with noisy preferences", 2023: the labels are
    wrong with probability e), whose minimum is at beta d = log((1 - e) / e), not at infinity.
    """
    return -(1 - label_smoothing) * logsigmoid(beta * difference) - label_smoothing * logsigmoid(-beta * difference)


def sums(logprobs: Float[Tensor, "B T"], ref_logprobs: Float[Tensor, "B T"]) -> tuple[Float[Tensor, "P"], Float[Tensor, "P"]]:
    """(chosen, rejected) sums of log p - log p_ref: rows 2i are chosen, rows 2i + 1 rejected. Zero off target is assumed."""
    ratio = (logprobs - ref_logprobs).sum(1)
    return ratio[0::2], ratio[1::2]

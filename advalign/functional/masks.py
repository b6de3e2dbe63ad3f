"""Which tokens count. Axes: B rows, T tokens."""

from jaxtyping import Bool
from torch import Tensor


def sampled_tokens(target: Bool[Tensor, "B T"], offpolicy: Bool[Tensor, "B"] | None) -> Bool[Tensor, "B T"]:
    """Target tokens that the policy sampled: those of demonstrations inside a group (`offpolicy` rows) are not. None: all rows are."""
    return target if offpolicy is None else target & ~offpolicy[:, None]


def demonstrated_tokens(target: Bool[Tensor, "B T"], offpolicy: Bool[Tensor, "B"]) -> Bool[Tensor, "B T"]:
    """Target tokens of demonstrations inside a group: the others."""
    return target & offpolicy[:, None]


__all__ = ["demonstrated_tokens", "sampled_tokens"]

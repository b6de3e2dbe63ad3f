"""Unreduced losses and what weighs them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Weights:
    """loss = (values / global count * losses).sum(), the count taken over the whole update and all ranks."""

    values: Float[Tensor, "..."]
    """One weight per loss; first axis rows (or pairs), second axis, if any, tokens."""
    count: Float[Tensor, ""]
    """What the sum of weighted losses is divided by, once it is summed over all ranks."""


@dataclass(frozen=True)
class Losses:
    """Unreduced losses and what to log about them."""

    values: Float[Tensor, "..."]
    """One loss per weight, in the shape of the weights."""
    metrics: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """{name: (values, their weights)}, averaged over the whole update."""

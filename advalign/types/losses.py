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
    count: Float[Tensor, ""]


@dataclass(frozen=True)
class Losses:
    """Unreduced losses, shaped as the weights; metrics are (values, weights) pairs, averaged over the whole update."""

    values: Float[Tensor, "..."]
    metrics: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

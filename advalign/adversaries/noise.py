"""Random noise: an adversary that does not look."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from advalign.errors import unknown
from advalign.functional import balls
from advalign.interfaces import Adversary, PerturbationContext
from advalign.types import Edit

DISTRIBUTIONS = ("uniform_ball", "uniform_cube", "gaussian")


@dataclass(frozen=True, kw_only=True)
class Noise(Adversary):
    """δ ~ uniform in the ball; or in the cube inscribed in it, U(-1, 1) α / sqrt(n_b d)   (NEFTune, arXiv:2310.05914, algorithm 1).

    NEFTune is `{kind: noise, distribution: uniform_cube, scope: row, relative_to: absolute, radius: 5}` (α = radius; 5, 10 or 15).
    The half side is radius / M^(1/p) for a ball of M numbers: M = n_b d for scope "row", d for "token".
    "gaussian" has that half side as standard deviation and is projected, so that the threat model stays true.
    Ours: n_b counts the allowed tokens of the row, never padding (the common hook counts the padded width).
    """

    radius: float = 0.05
    distribution: str = "uniform_ball"
    steps: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        balls.check(self.threat, "noise")
        if self.distribution not in DISTRIBUTIONS:
            raise unknown("noise.distribution", "distribution", self.distribution, DISTRIBUTIONS)

    @property
    def starts_at_zero(self) -> bool:
        return False

    def start(self, context: PerturbationContext) -> dict[str, Tensor]:
        return {site: self._draw(context, dim) for site, (_, dim) in context.shapes.items()}

    def ask(self, state: dict[str, Tensor]) -> dict[str, Edit]:
        return {site: Edit(delta) for site, delta in state.items()}

    def tell(self, state: dict[str, Tensor], losses: Float[Tensor, "N"], gradients: Mapping[str, Any]) -> dict[str, Tensor]:
        return state

    def _draw(self, context: PerturbationContext, dim: int) -> Float[Tensor, "N T D"]:
        dtype = torch.promote_types(context.dtype, torch.float32)
        common: dict[str, Any] = {"generators": context.generators, "dtype": dtype}
        geometry: dict[str, Any] = {"ball": self.ball, "scope": self.scope, "radius": context.radius}
        if self.distribution == "uniform_ball":
            return balls.sample(context.allowed, dim, **geometry, **common)

        def one(length: int, generator: torch.Generator) -> Tensor:
            numbers = dim if self.scope == "token" else length * dim
            half = context.radius / {"L2": math.sqrt(numbers), "Linf": 1.0, "L1": float(numbers)}[self.ball]
            draw = torch.randn if self.distribution == "gaussian" else torch.rand
            x = draw(length, dim, generator=generator, device=generator.device, dtype=dtype)
            return half * (x if self.distribution == "gaussian" else 2 * x - 1)

        return balls.project(balls.fill(context.allowed, dim, one, **common), **geometry)


__all__ = ["Noise"]

"""Random noise: an adversary that does not read gradients."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from jaxtyping import Float
from torch import Tensor

from advalign.functional import balls, deltas
from advalign.interfaces import Adversary, PerturbationContext
from advalign.ranges import NonNegative, OneOf
from advalign.types import Edit

DISTRIBUTIONS = ("uniform_ball", "uniform_cube", "gaussian")


@dataclass(frozen=True, kw_only=True)
class Noise(Adversary[deltas.Deltas]):
    """δ ~ uniform in the ball; or in the cube inscribed in it, U(-1, 1) α / sqrt(n_b d)   (NEFTune, arXiv:2310.05914, algorithm 1).

    NEFTune is `{kind: noise, distribution: uniform_cube, scope: row, relative_to: absolute, radius: 5}` (α = radius; 5, 10 or 15).
    The half side is radius / M^(1/p) for a ball of M numbers: M = n_b d for scope "row", d for "token".
    Ours: n_b counts the allowed tokens of the row, never padding (the common hook counts the padded width).
    """

    radius: NonNegative = 0.05
    """Radius of the ball, in the unit `relative_to`."""
    distribution: Annotated[str, OneOf(DISTRIBUTIONS, "distribution")] = "uniform_ball"
    """uniform_ball, uniform_cube, or gaussian: normal with the cube's half side as standard deviation, then projected, so that the threat
    model holds."""
    steps: int = field(default=0, init=False)
    """No gradient steps."""

    def start(self, context: PerturbationContext) -> deltas.Deltas:
        if self.distribution == "uniform_ball":
            return deltas.uniform(context, self.threat)
        return {site: self._draw(context, dim) for site, (_, dim) in context.shapes.items()}

    def ask(self, state: deltas.Deltas) -> dict[str, Edit]:
        return deltas.as_edits(state)

    def tell(self, state: deltas.Deltas, losses: Float[Tensor, "N"], gradients: Mapping[str, Any]) -> deltas.Deltas:
        return state

    def _draw(self, context: PerturbationContext, dim: int) -> Float[Tensor, "N T D"]:
        dtype = deltas.delta_dtype(context)

        def draw(length: int, generator: torch.Generator) -> Tensor:
            numbers = dim if self.scope == "token" else length * dim
            half_side = context.radius / {"L2": math.sqrt(numbers), "Linf": 1.0, "L1": float(numbers)}[self.ball]
            sample = torch.randn if self.distribution == "gaussian" else torch.rand
            x = sample(length, dim, generator=generator, device=generator.device, dtype=dtype)
            return half_side * (x if self.distribution == "gaussian" else 2 * x - 1)

        noise = balls.fill(context.allowed, dim, draw, generators=context.generators, dtype=dtype)
        return balls.project(noise, ball=self.ball, scope=self.scope, radius=context.radius)


__all__ = ["Noise"]

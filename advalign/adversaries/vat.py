"""Virtual adversarial direction: power iteration on the curvature of a divergence."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from advalign.functional import balls, deltas
from advalign.interfaces import Adversary, PerturbationContext
from advalign.ranges import Count, NonNegative, Positive
from advalign.types import Edit


@dataclass(frozen=True, kw_only=True)
class _State:
    context: PerturbationContext
    direction: dict[str, Tensor]
    step: int = 0


@dataclass(frozen=True, kw_only=True)
class VAT(Adversary[_State]):
    """d ← normalised ∇_δ D(p, p_δ) at δ = ξ d, `steps` times from a normal d; then δ = radius · d   (arXiv:1704.03976, algorithm 1).

    The gradient of D is zero at 0, so the gradient at ξ d is ξ H d: one step of power iteration for the top eigenvector of its curvature
    H. Put `consistency` with `divergence: kl` and `stop: true` on its view. Linf: d is the sign, as in section 3.2.
    A vanishing gradient leaves d as it is.
    """

    radius: NonNegative = 0.05
    """Radius of the ball, in the unit `relative_to`."""
    steps: Count = 1
    """Power iterations ("K = 1" is sufficient in section 4)."""
    xi: Positive = 0.1
    """ξ. Ours: a fraction of the radius, not the absolute 1e-6: in float32 the gradient at 1e-6 is rounding (see the page)."""

    def start(self, context: PerturbationContext) -> _State:
        return _State(context=context, direction={site: self._draw(context, dim) for site, (_, dim) in context.shapes.items()})

    def ask(self, state: _State) -> dict[str, Edit]:
        length = state.context.radius * (1.0 if state.step >= self.steps else self.xi)
        scaled = {site: length * d for site, d in state.direction.items()}
        return deltas.as_edits(deltas.project(state.context, self.threat, scaled))

    def tell(self, state: _State, losses: Float[Tensor, "N"], gradients: Mapping[str, Any]) -> _State:
        direction = {}
        for site, gradient in deltas.mask_gradients(state.context, gradients).items():
            steepest = balls.steepest(gradient, ball=self.ball, scope=self.scope)
            nonzero = balls.norm(steepest, ball=self.ball, scope=self.scope) > 0
            direction[site] = torch.where(nonzero[..., None], steepest, state.direction[site])
        return replace(state, direction=direction, step=state.step + 1)

    def _draw(self, context: PerturbationContext, dim: int) -> Float[Tensor, "N T D"]:
        """Normal, divided by its norm."""
        dtype = deltas.delta_dtype(context)

        def draw(length: int, generator: torch.Generator) -> Tensor:
            return torch.randn(length, dim, generator=generator, device=generator.device, dtype=dtype)

        normal = balls.fill(context.allowed, dim, draw, generators=context.generators, dtype=dtype)
        size = balls.norm(normal, ball=self.ball, scope=self.scope)[..., None]
        return normal / torch.where(size > 0, size, 1)


__all__ = ["VAT"]

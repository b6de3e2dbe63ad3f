"""Projected gradient ascent."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from advalign.errors import ConfigError, unknown
from advalign.functional import balls
from advalign.protocols import Ground, Perturber
from advalign.types import Edit

KEEP = ("last", "best")


@dataclass(frozen=True, kw_only=True)
class _State:
    ground: Ground
    delta: dict[str, Tensor]
    best: dict[str, Tensor]
    best_losses: Tensor | None
    step: int


@dataclass(frozen=True, kw_only=True)
class PGD(Perturber):
    """δ ← Π_ball(δ + η r · steepest(∇_δ loss)), δ_0 ~ uniform in the ball   (arXiv:1706.06083, section 2.1; the min-max is eq. 2.1).

    Ours: on hidden states; the step is the steepest unit step of the ball itself (sign for Linf as in the paper, g / ||g|| for L2,
    one coordinate for L1) per token or per row, so it depends neither on the scale of the loss nor on the batch.
    `step_size` is a fraction of the radius. `keep`: "best" returns, per delta, the evaluated iterate of the highest loss.
    """

    radius: float = 0.05
    steps: int = 3
    step_size: float | None = None  # None: 2.5 / steps, "2.5 ε / 100" for 100 steps in section 5: reaches the boundary from anywhere
    random_start: bool = True
    keep: str = "last"

    def __post_init__(self) -> None:
        balls.check(self.threat, "pgd")
        if self.keep not in KEEP:
            raise unknown("pgd.keep", "choice", self.keep, KEEP)
        if self.steps < 1:
            raise ConfigError(f"pgd.steps: {self.steps} given; at least 1 (for no step at all use kind 'noise').")
        if self.step_size is not None and not self.step_size > 0:
            raise ConfigError(f"pgd.step_size: {self.step_size} given; a fraction of the radius above 0, or null for 2.5 / steps.")

    @property
    def starts_at_zero(self) -> bool:
        """A divergence from the clean output has zero gradient at δ = 0: such an adversary would never move."""
        return not self.random_start

    def start(self, ground: Ground) -> _State:
        dtype = torch.promote_types(ground.dtype, torch.float32)
        delta = {}
        for site, (_, dim) in ground.shapes.items():
            radius = ground.radius if self.random_start else 0.0
            delta[site] = balls.sample(
                ground.allowed, dim, ball=self.ball, scope=self.scope, radius=radius, generators=ground.generators, dtype=dtype
            )
        return _State(ground=ground, delta=delta, best=delta, best_losses=None, step=0)

    def ask(self, state: _State) -> dict[str, Edit]:
        final = state.step >= self.steps and self.keep == "best"
        return {site: Edit(delta) for site, delta in (state.best if final else state.delta).items()}

    def tell(self, state: _State, losses: Float[Tensor, "N"], gradients: Mapping[str, Any]) -> _State:
        best, best_losses = self._better(state, losses) if self.keep == "best" else (state.best, None)
        delta = {site: self._move(state.ground, state.delta[site], gradient) for site, gradient in gradients.items()}
        return replace(state, delta=delta, best=best, best_losses=best_losses, step=state.step + 1)

    def _move(self, ground: Ground, delta: Float[Tensor, "N T D"], gradient: Float[Tensor, "N T D"]) -> Float[Tensor, "N T D"]:
        size = ground.radius * (2.5 / self.steps if self.step_size is None else self.step_size)
        gradient = balls.masked(gradient.detach().to(delta.dtype), ground.allowed)
        moved = delta + size * balls.steepest(gradient, ball=self.ball, scope=self.scope)
        return balls.project(moved, ball=self.ball, scope=self.scope, radius=ground.radius)

    def _better(self, state: _State, losses: Float[Tensor, "N"]) -> tuple[dict[str, Tensor], Float[Tensor, "N"]]:
        losses = losses.detach()
        if state.best_losses is None:
            return state.delta, losses
        better = losses > state.best_losses
        best = {site: torch.where(better[:, None, None], state.delta[site], old) for site, old in state.best.items()}
        return best, torch.where(better, losses, state.best_losses)


__all__ = ["PGD"]

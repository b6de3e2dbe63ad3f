"""Projected gradient ascent."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from advalign.adversaries import _deltas
from advalign.errors import ConfigError, unknown
from advalign.functional import balls
from advalign.interfaces import Adversary, PerturbationContext
from advalign.types import Edit

KEEP = ("last", "best")


@dataclass(frozen=True, kw_only=True)
class _State:
    context: PerturbationContext
    delta: dict[str, Tensor]
    best: dict[str, Tensor]
    best_losses: Tensor | None = None
    step: int = 0


@dataclass(frozen=True, kw_only=True)
class PGD(Adversary):
    """δ ← Π_ball(δ + η r · steepest(∇_δ loss)), δ_0 ~ uniform in the ball   (arXiv:1706.06083, section 2.1; the min-max is eq. 2.1).

    Ours: on hidden states; the step is the steepest unit step of the ball itself (sign for Linf as in the paper, g / ||g|| for L2,
    one coordinate for L1) per token or per row, so it depends neither on the scale of the loss nor on the batch.
    `step_size` is a fraction of the radius. `keep`: "best" returns, per delta, the evaluated iterate of the highest loss, over all
    `restarts`. `warm`: a row starts where it was left when it was last seen; `capacity` rows are kept.
    """

    radius: float = 0.05
    steps: int = 3
    step_size: float | None = None  # None: 2.5 / steps, "2.5 ε / 100" for 100 steps in section 5: reaches the boundary from anywhere
    random_start: bool = True
    warm: bool = False
    capacity: int = 1024
    restarts: int = 1
    keep: str = "last"

    def __post_init__(self) -> None:
        balls.check(self.threat, "pgd")
        if self.keep not in KEEP:
            raise unknown("pgd.keep", "choice", self.keep, KEEP)
        if self.steps < 1:
            raise ConfigError(f"pgd.steps: {self.steps} given; at least 1 (for no step at all use kind 'noise').")
        if self.step_size is not None and not self.step_size > 0:
            raise ConfigError(f"pgd.step_size: {self.step_size} given; a fraction of the radius above 0, or null for 2.5 / steps.")
        if self.capacity < 1:
            raise ConfigError(f"pgd.capacity: {self.capacity} given; at least 1 row is kept for warm starts.")
        if self.restarts < 1 or (self.restarts > 1 and not (self.random_start and self.keep == "best")):
            raise ConfigError(
                f"pgd.restarts: {self.restarts} given; at least 1, and more only with random_start: true (or all would be the same) "
                "and keep: best (or only the last would count)."
            )

    @property
    def passes(self) -> int:
        """How often the engine asks: `steps` for every restart."""
        return self.steps * self.restarts

    @property
    def memory_scope(self) -> str:
        return "rows" if self.warm else "none"

    @property
    def starts_at_zero(self) -> bool:
        """A divergence from the clean output has zero gradient at δ = 0: such an adversary would never move."""
        return not self.random_start

    def start(self, context: PerturbationContext) -> _State:
        delta = _deltas.uniform(context, self, zero=not self.random_start)
        delta = _deltas.recalled(context, self, delta) if self.warm else delta
        return _State(context=context, delta=delta, best=delta)

    def ask(self, state: _State) -> dict[str, Edit]:
        return _deltas.edits(self._final(state) if state.step >= self.passes else state.delta)

    def tell(self, state: _State, losses: Float[Tensor, "N"], gradients: Mapping[str, Any]) -> _State:
        best, best_losses = self._better(state, losses) if self.keep == "best" else (state.best, None)
        step = state.step + 1
        if step % self.steps == 0 and step < self.passes:
            delta = _deltas.uniform(state.context, self)
        else:
            size = state.context.radius * (2.5 / self.steps if self.step_size is None else self.step_size)
            delta = _deltas.stepped(state.context, self, state.delta, gradients, size)
        after = replace(state, delta=delta, best=best, best_losses=best_losses, step=step)
        if self.warm and step == self.passes:
            _deltas.remember(state.context, self.share, self._final(after))
        return after

    def row_memory(self, memory: dict[str, Any]) -> dict[str, Any]:
        """What was noted of the rows of this update."""
        return memory.setdefault("pending", {})

    def end_update(self, memory: dict[str, Any], all_reduce: Callable[[Tensor], Tensor]) -> None:
        if self.warm:
            _deltas.keep(memory, self.capacity)

    def _final(self, state: _State) -> dict[str, Tensor]:
        return state.best if self.keep == "best" else state.delta

    def _better(self, state: _State, losses: Float[Tensor, "N"]) -> tuple[dict[str, Tensor], Float[Tensor, "N"]]:
        losses = losses.detach()
        if state.best_losses is None:
            return state.delta, losses
        better = losses > state.best_losses
        return _deltas.chosen(better, state.delta, state.best), torch.where(better, losses, state.best_losses)


__all__ = ["PGD"]

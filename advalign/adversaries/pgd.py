"""Projected gradient ascent."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from jaxtyping import Float
from torch import Tensor

from advalign.adversaries import _row_memory
from advalign.errors import ConfigError
from advalign.functional import deltas
from advalign.interfaces import Adversary, Memory, PerturbationContext
from advalign.ranges import Count, NonNegative, OneOf, Positive
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
class PGD(Adversary[_State]):
    """δ ← Π_ball(δ + η r · steepest(∇_δ loss)), δ_0 ~ uniform in the ball   (arXiv:1706.06083, section 2.1; the min-max is eq. 2.1).

    Ours: on hidden states; the step is the steepest unit step of the ball itself (sign for Linf as in the paper, g / ||g|| for L2,
    one coordinate for L1) per token or per row, so it depends neither on the scale of the loss nor on the batch.
    """

    radius: NonNegative = 0.05
    """Radius of the ball, in the unit `relative_to`."""
    steps: Count = 3
    """Gradient steps of one restart."""
    step_size: Positive | None = None
    """η, a fraction of the radius. None: 2.5 / steps ("2.5 ε / 100" for 100 steps in section 5), which reaches the boundary."""
    random_start: bool = True
    """Whether δ_0 is drawn uniformly; False: it is zero."""
    warm: bool = False
    """Whether a row starts from the delta it ended with when it was last seen."""
    capacity: Count = 1024
    """Rows whose deltas are stored for warm starts."""
    restarts: Count = 1
    """Independent random starts, each of `steps` steps."""
    keep: Annotated[str, OneOf(KEEP, "choice")] = "last"
    """The delta that is returned: last, or best, the evaluated iterate of the highest loss over all restarts."""

    def __post_init__(self) -> None:
        if self.restarts > 1 and not (self.random_start and self.keep == "best"):
            raise ConfigError(
                f"pgd.restarts: {self.restarts} given; more than 1 only with random_start: true (or all would be the same) and keep: best "
                "(or only the last would count)."
            )

    @property
    def passes(self) -> int:
        """`steps` for every restart."""
        return self.steps * self.restarts

    @property
    def memory_scope(self) -> str:
        return "rows" if self.warm else "none"

    @property
    def starts_at_zero(self) -> bool:
        """A divergence from the clean output has zero gradient at δ = 0: such an adversary would never move."""
        return not self.random_start

    def start(self, context: PerturbationContext) -> _State:
        delta = deltas.uniform(context, self.threat) if self.random_start else deltas.zeros(context)
        delta = _row_memory.restore(context, self.threat, delta) if self.warm else delta
        return _State(context=context, delta=delta, best=delta)

    def ask(self, state: _State) -> dict[str, Edit]:
        return deltas.as_edits(self._final(state) if state.step >= self.passes else state.delta)

    def tell(self, state: _State, losses: Float[Tensor, "N"], gradients: Mapping[str, Any]) -> _State:
        best, best_losses = self._better(state, losses) if self.keep == "best" else (state.best, None)
        step = state.step + 1
        if step % self.steps == 0 and step < self.passes:
            delta = deltas.uniform(state.context, self.threat)
        else:
            length = state.context.radius * (2.5 / self.steps if self.step_size is None else self.step_size)
            delta = deltas.step(state.context, self.threat, state.delta, gradients, length)
        state = replace(state, delta=delta, best=best, best_losses=best_losses, step=step)
        if self.warm and step == self.passes:
            _row_memory.record(state.context, self.share, self._final(state))
        return state

    def row_memory(self, memory: Memory) -> dict[str, Any]:
        """The deltas noted in this update."""
        return memory.setdefault("pending", {})

    def end_update(self, memory: Memory, all_reduce: Callable[[Tensor], Tensor]) -> None:
        if self.warm:
            _row_memory.commit(memory, self.capacity)

    def _final(self, state: _State) -> dict[str, Tensor]:
        return state.best if self.keep == "best" else state.delta

    def _better(self, state: _State, losses: Float[Tensor, "N"]) -> tuple[dict[str, Tensor], Float[Tensor, "N"]]:
        losses = losses.detach()
        if state.best_losses is None:
            return state.delta, losses
        better = losses > state.best_losses
        return deltas.select(better, state.delta, state.best), torch.where(better, losses, state.best_losses)


__all__ = ["PGD"]

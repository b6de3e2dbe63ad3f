"""PGD that finds its own step size: the step control of AutoAttack."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from advalign.functional import balls, deltas
from advalign.interfaces import Adversary, PerturbationContext
from advalign.ranges import NonNegative, whole
from advalign.types import Edit

MOMENTUM = 0.75  # α of section 3.1 is the weight of the new step; of the first step it is 1
RISING = 0.75  # ρ: the fraction of steps that must raise the loss


@dataclass(frozen=True, kw_only=True)
class _State:
    """The search of N deltas; every tensor that is not by site is "N"."""

    context: PerturbationContext
    delta: dict[str, Tensor]
    previous: dict[str, Tensor]
    """The iterate before `delta`."""
    best: dict[str, Tensor]
    best_gradients: dict[str, Tensor]
    """Gradients at `best`."""
    size: Tensor
    """Step size, in radii."""
    best_losses: Tensor
    last_losses: Tensor
    rises: Tensor
    """Steps that raised the loss since the last checkpoint."""
    halved: Tensor
    """Whether the last checkpoint halved the step size."""
    checkpoint_losses: Tensor
    """Best losses at the last checkpoint."""
    step: int = 0


@dataclass(frozen=True, kw_only=True)
class APGD(Adversary[_State]):
    """z = Π(x_k + η_k steepest(∇)), x_{k+1} = Π(x_k + α (z - x_k) + (1 - α) (x_k - x_{k-1}))   (arXiv:2003.01690, algorithm 1).

    η starts at 2 radii. At the checkpoints it is halved, and the search goes on from the best iterate so far, for every delta whose
    loss rose in at most ρ of the steps since the last checkpoint (released code; paper: fewer), or whose η and best loss are both
    what they were at the last checkpoint. The best evaluated iterate is returned.
    Ours: step control per delta, its size shared by all sites; L1 moves one coordinate per step (not the sparse step of arXiv:2103.01208).
    """

    radius: NonNegative = 0.05
    """Radius of the ball, in the unit `relative_to`."""
    steps: Annotated[int, whole(2)] = 100
    """Forwards, the first of them at the start ("100 iterations" in section 5): AutoAttack's n_iter is `steps` - 1."""
    random_start: bool = True
    """Whether the start is drawn uniformly in the ball; False: it is zero."""

    @property
    def starts_at_zero(self) -> bool:
        return not self.random_start

    def start(self, context: PerturbationContext) -> _State:
        delta = deltas.uniform(context, self.threat) if self.random_start else deltas.zeros(context)
        like = context.allowed.new_zeros(context.allowed.shape[0], dtype=deltas.delta_dtype(context))
        return _State(
            context=context,
            delta=delta,
            previous=delta,
            best=delta,
            best_gradients=deltas.zeros(context),
            size=like + 2.0,
            best_losses=like - torch.inf,
            last_losses=like + torch.inf,
            rises=like,
            halved=torch.ones_like(like, dtype=torch.bool),  # the second condition does not apply at the first checkpoint, as in the code
            checkpoint_losses=like - torch.inf,
        )

    def ask(self, state: _State) -> dict[str, Edit]:
        return deltas.as_edits(state.best if state.step >= self.steps else state.delta)

    def tell(self, state: _State, losses: Float[Tensor, "N"], gradients: Mapping[str, Any]) -> _State:
        losses, input_gradients = losses.detach().to(state.best_losses), deltas.mask_gradients(state.context, gradients)
        higher = losses > state.best_losses
        state = replace(
            state,
            best=deltas.select(higher, state.delta, state.best),
            best_gradients=deltas.select(higher, input_gradients, state.best_gradients),
            best_losses=torch.where(higher, losses, state.best_losses),
            rises=state.rises + (losses > state.last_losses),
            last_losses=losses,
        )
        period = _periods(self.steps - 1).get(state.step)
        if period is None:
            return self._move(state, input_gradients)
        halve = self._stuck(state, period)
        input_gradients = deltas.select(halve, state.best_gradients, input_gradients)
        state = replace(
            state,
            delta=deltas.select(halve, state.best, state.delta),
            size=torch.where(halve, state.size / 2, state.size),
            last_losses=torch.where(halve, state.best_losses, state.last_losses),
            rises=torch.zeros_like(state.rises),
            halved=halve,
            checkpoint_losses=state.best_losses,
        )
        return self._move(state, input_gradients)

    def _stuck(self, state: _State, period: int) -> Bool[Tensor, "N"]:
        """Algorithm 1, conditions 1 and 2."""
        return (state.rises <= RISING * period) | (~state.halved & (state.checkpoint_losses >= state.best_losses))

    def _move(self, state: _State, input_gradients: Mapping[str, Tensor]) -> _State:
        weight = MOMENTUM if state.step else 1.0
        length = (state.context.radius * state.size)[:, None, None]
        moved = {}
        for site, x in state.delta.items():
            ahead = self._project(state.context, x + length * balls.steepest(input_gradients[site], ball=self.ball, scope=self.scope))
            moved[site] = self._project(state.context, x + weight * (ahead - x) + (1 - weight) * (x - state.previous[site]))
        return replace(state, delta=moved, previous=state.delta, step=state.step + 1)

    def _project(self, context: PerturbationContext, x: Float[Tensor, "N T D"]) -> Float[Tensor, "N T D"]:
        return balls.project(x, ball=self.ball, scope=self.scope, radius=context.radius)


def _periods(moves: int) -> dict[int, int]:
    """{checkpoint: steps since the one before}: at ceil(p N), p = 0.22, then by 0.03 less each time, but no less than 0.06."""
    periods, last, percent, width = {}, 0, 22, 22
    while percent <= 100:
        checkpoint = -(-percent * moves // 100)
        if checkpoint > last:
            periods[checkpoint] = checkpoint - last
            last = checkpoint
        width = max(width - 3, 6)
        percent += width
    return periods


__all__ = ["APGD"]

"""PGD that finds its own step size: the step control of AutoAttack."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from advalign.adversaries import _deltas
from advalign.errors import ConfigError
from advalign.functional import balls
from advalign.interfaces import Adversary, PerturbationContext
from advalign.types import Edit

MOMENTUM = 0.75  # α of section 3.1 is the weight of the new step; of the first step it is 1
RISING = 0.75  # ρ: the share of steps that must raise the loss


@dataclass(frozen=True, kw_only=True)
class _State:
    """`size` "N": the step in radii. `rises`: raised losses since the last checkpoint. `halved`, `peak`: as it left them."""

    context: PerturbationContext
    delta: dict[str, Tensor]
    before: dict[str, Tensor]
    best: dict[str, Tensor]
    uphill: dict[str, Tensor]
    size: Tensor
    top: Tensor
    last: Tensor
    rises: Tensor
    halved: Tensor
    peak: Tensor
    step: int = 0


@dataclass(frozen=True, kw_only=True)
class APGD(Adversary):
    """z = Π(x_k + η_k steepest(∇)), x_{k+1} = Π(x_k + α (z - x_k) + (1 - α) (x_k - x_{k-1}))   (arXiv:2003.01690, algorithm 1).

    η starts at 2 radii. At the checkpoints it is halved, and the search goes on from the best iterate so far, for every delta whose
    loss rose in at most ρ of the steps since the last checkpoint (released code; paper: fewer), or whose η and best loss are both
    what they were there.
    `steps` counts forwards, of which the first is at the start: AutoAttack's n_iter is `steps` - 1. The best evaluated iterate is returned.
    Ours: step control per delta, its size shared by all sites; L1 moves one coordinate per step (not the sparse step of arXiv:2103.01208).
    """

    radius: float = 0.05
    steps: int = 100  # "100 iterations" in section 5
    random_start: bool = True

    def __post_init__(self) -> None:
        balls.check(self.threat, "apgd")
        if self.steps < 2:
            raise ConfigError(f"apgd.steps: {self.steps} given; at least 2, one forward at the start and one after a step.")

    @property
    def starts_at_zero(self) -> bool:
        return not self.random_start

    def start(self, context: PerturbationContext) -> _State:
        delta = _deltas.uniform(context, self, zero=not self.random_start)
        like = context.allowed.new_zeros(context.allowed.shape[0], dtype=_deltas.precision(context))
        return _State(
            context=context,
            delta=delta,
            before=delta,
            best=delta,
            uphill=_deltas.zeros(context),
            size=like + 2.0,
            top=like - torch.inf,
            last=like + torch.inf,
            rises=like,
            halved=torch.ones_like(like, dtype=torch.bool),  # the second condition does not apply at the first checkpoint, as in the code
            peak=like - torch.inf,
        )

    def ask(self, state: _State) -> dict[str, Edit]:
        return _deltas.edits(state.best if state.step >= self.steps else state.delta)

    def tell(self, state: _State, losses: Float[Tensor, "N"], gradients: Mapping[str, Any]) -> _State:
        losses, input_gradients = losses.detach().to(state.top), _deltas.cleaned(state.context, gradients)
        higher = losses > state.top
        seen = replace(
            state,
            best=_deltas.chosen(higher, state.delta, state.best),
            uphill=_deltas.chosen(higher, input_gradients, state.uphill),
            top=torch.where(higher, losses, state.top),
            rises=state.rises + (losses > state.last),
            last=losses,
        )
        period = _periods(self.steps - 1).get(state.step)
        if period is None:
            return self._moved(seen, input_gradients)
        halve = self._stuck(seen, period)
        checked = replace(
            seen,
            delta=_deltas.chosen(halve, seen.best, seen.delta),
            size=torch.where(halve, seen.size / 2, seen.size),
            last=torch.where(halve, seen.top, seen.last),
            rises=torch.zeros_like(seen.rises),
            halved=halve,
            peak=seen.top,
        )
        return self._moved(checked, _deltas.chosen(halve, seen.uphill, input_gradients))

    def _stuck(self, state: _State, period: int) -> Bool[Tensor, "N"]:
        """Algorithm 1, conditions 1 and 2."""
        return (state.rises <= RISING * period) | (~state.halved & (state.peak >= state.top))

    def _moved(self, state: _State, input_gradients: Mapping[str, Tensor]) -> _State:
        weight = MOMENTUM if state.step else 1.0
        length = (state.context.radius * state.size)[:, None, None]
        new = {}
        for site, x in state.delta.items():
            ahead = self._inside(state.context, x + length * balls.steepest(input_gradients[site], ball=self.ball, scope=self.scope))
            new[site] = self._inside(state.context, x + weight * (ahead - x) + (1 - weight) * (x - state.before[site]))
        return replace(state, delta=new, before=state.delta, step=state.step + 1)

    def _inside(self, context: PerturbationContext, x: Float[Tensor, "N T D"]) -> Float[Tensor, "N T D"]:
        return balls.project(x, ball=self.ball, scope=self.scope, radius=context.radius)


def _periods(moves: int) -> dict[int, int]:
    """{checkpoint: steps since the one before}: at ceil(p N), p = 0.22, then by 0.03 less each time, but no less than 0.06."""
    found, last, at, width = {}, 0, 22, 22
    while at <= 100:
        checkpoint = -(-at * moves // 100)
        if checkpoint > last:
            found[checkpoint] = checkpoint - last
            last = checkpoint
        width = max(width - 3, 6)
        at += width
    return found


__all__ = ["APGD"]

"""Latent adversarial training's inner loop: AdamW on deltas at several sites."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from advalign.functional import deltas
from advalign.interfaces import Adversary, PerturbationContext
from advalign.ranges import Count, NonNegative, Positive
from advalign.types import Edit, Place, Unit

BETAS = (0.9, 0.999)
DECAY = 0.01  # of torch.optim.AdamW, which the released code uses as it is


@dataclass(frozen=True, kw_only=True)
class _State:
    context: PerturbationContext
    delta: dict[str, Tensor]
    first: dict[str, Tensor]
    """Running mean of the gradient, as in Adam."""
    second: dict[str, Tensor]
    """Running mean of its square."""
    step: int = 0


@dataclass(frozen=True, kw_only=True)
class LATAdversary(Adversary[_State]):
    """δ ← Π(δ + AdamW(∇_δ)), at several sites together, one ball per token   (arXiv:2407.15549, arXiv:2403.05030).

    "layer:k" is where the paper perturbs: what is added to the output of an MLP is added to the output of its block. `inner` is the
    attack's loss, targeted or not (objective `target`).
    Adam's means do not see the projection, so they are stale after it; so in the released code, and here.
    Ours: no division guard (there 1e-8), so a delta depends neither on the scale of the loss nor on the batch.
    """

    radius: NonNegative = 6.0
    """Radius of the ball (the jailbreak preset for Llama-2; so are the next two defaults)."""
    learning_rate: Positive = 5e-2
    """Learning rate of AdamW, in the unit of the radius."""
    steps: Count = 16
    """Gradient steps."""
    random_start: bool = False
    """Whether the start is drawn uniformly in the ball; False: it is zero."""
    relative_to: Unit = "absolute"
    """Unit of the lengths: absolute, as published, or mean_embedding_norm."""
    where: Place = "prompt"
    """Positions it may perturb: prompt, response, all, system, user, last_user, assistant or tool."""

    @property
    def starts_at_zero(self) -> bool:
        return not self.random_start

    def start(self, context: PerturbationContext) -> _State:
        moments = deltas.zeros(context)
        delta = deltas.uniform(context, self.threat) if self.random_start else deltas.zeros(context)
        return _State(context=context, delta=delta, first=moments, second=moments)

    def ask(self, state: _State) -> dict[str, Edit]:
        return deltas.as_edits(state.delta)

    def tell(self, state: _State, losses: Float[Tensor, "N"], gradients: Mapping[str, Any]) -> _State:
        step, rate = state.step + 1, self.learning_rate * state.context.unit
        delta, first, second = {}, {}, {}
        for site, g in deltas.mask_gradients(state.context, gradients).items():
            first[site] = BETAS[0] * state.first[site] + (1 - BETAS[0]) * g
            second[site] = BETAS[1] * state.second[site] + (1 - BETAS[1]) * g.square()
            direction = self._direction(first[site] / (1 - BETAS[0] ** step), second[site] / (1 - BETAS[1] ** step))
            delta[site] = state.delta[site] * (1 - self.learning_rate * DECAY) + rate * direction
        projected = deltas.project(state.context, self.threat, delta)
        return replace(state, delta=projected, first=first, second=second, step=step)

    def _direction(self, first: Float[Tensor, "N T D"], second: Float[Tensor, "N T D"]) -> Float[Tensor, "N T D"]:
        return torch.where(second > 0, first / torch.where(second > 0, second, 1).sqrt(), 0.0)


__all__ = ["LATAdversary"]

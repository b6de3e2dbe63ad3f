"""Deltas of continuous adversaries, {site: "N T D"}: where they start, how they step, how two of them combine.

Axes: N deltas, T tokens, D hidden. `context` is the `PerturbationContext` an adversary is given, `threat` its own threat model
(`self.threat`). An ascent in four lines:

    delta = deltas.uniform(context, self.threat)                               # start
    return deltas.as_edits(delta)                                              # ask
    delta = deltas.step(context, self.threat, delta, gradients, step_length)   # tell
    best = deltas.select(losses > best_losses, delta, best)                    # keep the better delta of each row
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from advalign.functional import balls
from advalign.types import Edit, ThreatModel

Deltas = dict[str, Tensor]


class DeltaContext(Protocol):
    """The part of a `PerturbationContext` that deltas depend on."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, int]]:
        """{site: (T, D)}"""

    @property
    def allowed(self) -> Bool[Tensor, "N T"]:
        """Positions where a delta may be non-zero."""

    @property
    def radius(self) -> float:
        """Radius of the ball in hidden states."""

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the hidden states."""

    @property
    def generators(self) -> Sequence[torch.Generator]:
        """One per delta."""


def delta_dtype(context: DeltaContext) -> torch.dtype:
    """At least float32: at a radius of 1e-5 a bfloat16 delta would round to steps of its own size."""
    return torch.promote_types(context.dtype, torch.float32)


def zeros(context: DeltaContext) -> Deltas:
    """Zero at every site."""
    return {
        site: torch.zeros(*context.allowed.shape, dim, dtype=delta_dtype(context), device=context.allowed.device)
        for site, (_, dim) in context.shapes.items()
    }


def uniform(context: DeltaContext, threat: ThreatModel) -> Deltas:
    """Uniform in the ball, drawn from each delta's own generator."""
    return {
        site: balls.sample(
            context.allowed,
            dim,
            ball=threat.ball,
            scope=threat.scope,
            radius=context.radius,
            generators=context.generators,
            dtype=delta_dtype(context),
        )
        for site, (_, dim) in context.shapes.items()
    }


def mask_gradients(context: DeltaContext, gradients: Mapping[str, Tensor]) -> Deltas:
    """Gradients in the precision of the deltas; zero wherever no delta is allowed, even where a gradient is nan."""
    return {site: balls.masked(g.detach().to(delta_dtype(context)), context.allowed) for site, g in gradients.items()}


def project(context: DeltaContext, threat: ThreatModel, delta: Mapping[str, Tensor]) -> Deltas:
    """Π(δ): each site onto its own ball."""
    return {site: balls.project(x, ball=threat.ball, scope=threat.scope, radius=context.radius) for site, x in delta.items()}


def step(context: DeltaContext, threat: ThreatModel, delta: Mapping[str, Tensor], gradients: Mapping[str, Tensor], length: float) -> Deltas:
    """Π(δ + length · steepest(g)): a unit step of the ball itself, so the scale of the loss does not matter."""
    directions = {site: balls.steepest(g, ball=threat.ball, scope=threat.scope) for site, g in mask_gradients(context, gradients).items()}
    return project(context, threat, {site: delta[site] + length * direction for site, direction in directions.items()})


def select(which: Bool[Tensor, "N"], first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> Deltas:
    """`first` for the deltas marked in `which`, `second` for the others, at all sites together."""
    return {site: torch.where(which[:, None, None], x, second[site]) for site, x in first.items()}


def as_edits(delta: Mapping[str, Tensor]) -> dict[str, Edit]:
    """What `ask` returns: each delta is added at its site."""
    return {site: Edit(x) for site, x in delta.items()}


def cube_size(context: DeltaContext, threat: ThreatModel, site: str) -> Float[Tensor, "N 1 1"]:
    """M^(1/p): a cube of half side 1 / M^(1/p) is inscribed in the unit ball of M numbers."""
    dim = context.shapes[site][1]
    numbers = context.allowed.sum(1).clamp(min=1) * dim if threat.scope == "row" else torch.full_like(context.allowed.sum(1), dim)
    power = {"L2": 0.5, "Linf": 0.0, "L1": 1.0}[threat.ball]
    return numbers.to(delta_dtype(context)).pow(power)[:, None, None]


__all__ = [
    "DeltaContext", "Deltas", "as_edits", "cube_size", "delta_dtype", "mask_gradients", "project", "select", "step", "uniform", "zeros",
]  # fmt: skip

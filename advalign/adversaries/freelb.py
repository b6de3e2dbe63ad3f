"""Ascent whose every pass also trains."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from advalign.adversaries import _deltas
from advalign.errors import ConfigError, unknown
from advalign.functional import balls
from advalign.interfaces import Adversary, PerturbationContext
from advalign.types import Edit

COUNTS = ("K", "K+1")


@dataclass(frozen=True, kw_only=True)
class _State:
    context: PerturbationContext
    delta: dict[str, Tensor]
    step: int = 0


@dataclass(frozen=True, kw_only=True)
class FreeLB(Adversary):
    """g_θ = 1/K Σ_k ∇_θ loss(h + δ_k), δ_{k+1} = Π(δ_k + α ∇_δ / ||∇_δ||_F)   (arXiv:1909.11764, algorithm 1).

    δ_0 = U(-1, 1) m / sqrt(n_b d), or 0: then the first pass is clean. Lengths are absolute, one ball per row, as in the paper:
    `step_length` α, `init_magnitude` m and `radius` are adv_lr, adv_init_mag and adv_max_norm of the released code; `radius: .inf` is
    no bound (there: 0), which with more steps is FreeLB++ (arXiv:2108.12777).
    `count`: passes of the released code, "K", or of its fairseq version, "K+1"; each trains on loss / passes.
    Ours: padding is never moved (there masked in δ_0 only), n_b counts the allowed tokens, and δ_0 is projected too.
    """

    radius: float = 0.3  # this and the next three: MNLI with RoBERTa-large in the released scripts
    steps: int = 2
    step_length: float = 0.1
    init_magnitude: float = 0.1
    count: str = "K"
    scope: str = "row"
    relative_to: str = "absolute"
    dropout: str = "sync"  # the code draws one set of masks in the first pass and hands it to the others

    trains_every_pass: ClassVar[bool] = True

    def __post_init__(self) -> None:
        balls.check(self.threat, "freelb")
        if self.count not in COUNTS:
            raise unknown("freelb.count", "count", self.count, COUNTS)
        if self.steps < 1:
            raise ConfigError(f"freelb.steps: {self.steps} given; K is at least 1.")
        for name in ("step_length", "init_magnitude"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"freelb.{name}: {getattr(self, name)} given; a length >= 0, in the unit of the radius.")
        if self.inner is not None:
            raise ConfigError("freelb.inner: the passes that train are the ascent, so it climbs the terms on its view; use kind 'pgd'.")

    @property
    def passes(self) -> int:
        return self.steps + (self.count == "K+1")

    @property
    def starts_at_zero(self) -> bool:
        return self.init_magnitude == 0

    def start(self, context: PerturbationContext) -> _State:
        magnitude = self.init_magnitude * _deltas.unit(context, self)
        cube = {site: self._cube(context, site) * (magnitude / _deltas.size_of_cube(context, self, site)) for site in context.shapes}
        return _State(context=context, delta=_deltas.projected(context, self, cube))

    def ask(self, state: _State) -> dict[str, Edit]:
        return _deltas.edits(state.delta)

    def tell(self, state: _State, losses: Float[Tensor, "N"], gradients: Mapping[str, Any]) -> _State:
        if state.step + 1 >= self.passes:  # nothing reads a move after the last pass
            return replace(state, step=state.step + 1)
        length = self.step_length * _deltas.unit(state.context, self)
        delta = _deltas.stepped(state.context, self, state.delta, gradients, length)
        return replace(state, delta=delta, step=state.step + 1)

    def _cube(self, context: PerturbationContext, site: str) -> Float[Tensor, "N T D"]:
        dim, dtype = context.shapes[site][1], _deltas.precision(context)

        def one(length: int, generator: torch.Generator) -> Tensor:
            return 2 * torch.rand(length, dim, generator=generator, device=generator.device, dtype=dtype) - 1

        return balls.fill(context.allowed, dim, one, generators=context.generators, dtype=dtype)


__all__ = ["FreeLB"]

"""Ascent whose every pass also trains."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from advalign.errors import ConfigError
from advalign.functional import balls, deltas
from advalign.interfaces import Adversary, PerturbationContext
from advalign.interfaces.adversary import DROPOUTS
from advalign.ranges import Bound, Count, NonNegative, OneOf
from advalign.types import Edit, Scope, Unit

COUNTS = ("K", "K+1")


@dataclass(frozen=True, kw_only=True)
class _State:
    context: PerturbationContext
    delta: dict[str, Tensor]
    step: int = 0


@dataclass(frozen=True, kw_only=True)
class FreeLB(Adversary[_State]):
    """g_θ = 1/K Σ_k ∇_θ loss(h + δ_k), δ_{k+1} = Π(δ_k + α ∇_δ / ||∇_δ||_F)   (arXiv:1909.11764, algorithm 1).

    δ_0 = U(-1, 1) m / sqrt(n_b d), or 0: then the first pass is clean. Lengths are absolute, one ball per row, as in the paper. Each pass
    trains on loss / passes. With `radius: .inf` (no bound; 0 in the released code) and more steps it is FreeLB++ (arXiv:2108.12777).
    Ours: padding is never moved (there masked in δ_0 only), n_b counts the allowed tokens, and δ_0 is projected too.
    """

    radius: Bound = 0.3
    """adv_max_norm of the released scripts, MNLI with RoBERTa-large; so are the next three defaults."""
    steps: Count = 2
    """K."""
    step_length: NonNegative = 0.1
    """α, absolute (adv_lr)."""
    init_magnitude: NonNegative = 0.1
    """m, absolute (adv_init_mag); 0 starts at δ_0 = 0."""
    count: Annotated[str, OneOf(COUNTS, "count")] = "K"
    """Passes: "K" (released code) or "K+1" (its fairseq version)."""
    scope: Scope = "row"
    """One ball per token or per row."""
    relative_to: Unit = "absolute"
    """Unit of the lengths: absolute or mean_embedding_norm."""
    dropout: Annotated[str, OneOf(DROPOUTS, "dropout policy")] = "sync"
    """off, sync or fresh. The released code draws one set of masks in the first pass and reuses it in the others."""

    trains_every_pass: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.inner is not None:
            raise ConfigError(
                "freelb.inner: the passes that train are also the ascent, so they ascend the objectives on their view; for another use "
                "kind 'pgd'."
            )

    @property
    def passes(self) -> int:
        return self.steps + (self.count == "K+1")

    @property
    def starts_at_zero(self) -> bool:
        return self.init_magnitude == 0

    def start(self, context: PerturbationContext) -> _State:
        magnitude = self.init_magnitude * context.unit
        cube = {site: self._cube(context, site) * (magnitude / deltas.cube_size(context, self.threat, site)) for site in context.shapes}
        return _State(context=context, delta=deltas.project(context, self.threat, cube))

    def ask(self, state: _State) -> dict[str, Edit]:
        return deltas.as_edits(state.delta)

    def tell(self, state: _State, losses: Float[Tensor, "N"], gradients: Mapping[str, Any]) -> _State:
        if state.step + 1 >= self.passes:  # nothing reads a move after the last pass
            return replace(state, step=state.step + 1)
        length = self.step_length * state.context.unit
        delta = deltas.step(state.context, self.threat, state.delta, gradients, length)
        return replace(state, delta=delta, step=state.step + 1)

    def _cube(self, context: PerturbationContext, site: str) -> Float[Tensor, "N T D"]:
        """U(-1, 1) at every allowed position."""
        dim, dtype = context.shapes[site][1], deltas.delta_dtype(context)

        def draw(length: int, generator: torch.Generator) -> Tensor:
            return 2 * torch.rand(length, dim, generator=generator, device=generator.device, dtype=dtype) - 1

        return balls.fill(context.allowed, dim, draw, generators=context.generators, dtype=dtype)


__all__ = ["FreeLB"]

"""One vector for all tokens of all rows."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from advalign.errors import ConfigError
from advalign.functional import balls, deltas
from advalign.interfaces import Adversary, Memory, PerturbationContext
from advalign.ranges import NonNegative, Positive
from advalign.types import Edit


@dataclass(frozen=True, kw_only=True)
class Universal(Adversary[PerturbationContext]):
    """δ_bt = v for every allowed token; once per update v ← Π(v + s r · steepest(Σ_bt ∇_δ_bt loss))   (arXiv:1811.11304, algorithm 2).

    The gradient is that of the pass which trains, summed over the whole update and all ranks, so training costs no extra pass and v does
    not depend on the split into micro-batches. v lives as long as the run and is saved with it.
    Ours: the paper's perturbation has the shape of an image, here texts have no common shape, so one vector per site; steps are
    the steepest of the ball.
    """

    radius: NonNegative = 0.05
    """Radius of the ball, in the unit `relative_to`."""
    step_size: Positive = 0.1
    """s, a fraction of the radius; our default."""
    random_start: bool = False
    """Whether v starts uniform in the ball; False: it starts at zero."""
    steps: int = field(default=1, init=False)
    """One step per update."""

    memory_scope: ClassVar[str] = "global"
    trains_every_pass: ClassVar[bool] = True
    passes: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.scope != "token":
            raise ConfigError(f"universal.scope: '{self.scope}' given; one vector for all tokens has a ball per token, set scope: token.")
        if self.inner is not None:
            raise ConfigError(
                "universal.inner: the pass that trains is also the ascent, so it ascends the objectives on its view; for another use "
                "kind 'pgd'."
            )

    @property
    def starts_at_zero(self) -> bool:
        return not self.random_start

    def start(self, context: PerturbationContext) -> PerturbationContext:
        vectors = context.memory.setdefault("vectors", {})
        for site, (_, dim) in context.shapes.items():
            vectors[site] = vectors[site].to(context.allowed.device) if site in vectors else self._initial(context, site, dim)
        # end_update() is not given the context.
        context.memory["radius"] = float(context.radius)
        return context

    def ask(self, state: PerturbationContext) -> dict[str, Edit]:
        vectors = state.memory["vectors"]
        mask = state.allowed[..., None].to(deltas.delta_dtype(state))
        return deltas.as_edits({site: mask * self._project(vectors[site].to(mask), state.radius) for site in state.shapes})

    def tell(self, state: PerturbationContext, losses: Float[Tensor, "N"], gradients: Mapping[str, Any]) -> PerturbationContext:
        sums = state.memory.setdefault("gradients", {})
        for site, gradient in deltas.mask_gradients(state, gradients).items():
            total = gradient.sum((0, 1))
            sums[site] = sums[site] + total if site in sums else total
        return state

    def end_update(self, memory: Memory, all_reduce: Callable[[Tensor], Tensor]) -> None:
        sums = memory.pop("gradients", {})
        for site, vector in memory.get("vectors", {}).items():
            gradient = all_reduce(sums.get(site, torch.zeros_like(vector)).to(vector))
            direction = balls.steepest(gradient[None, None], ball=self.ball, scope="token")[0, 0]
            memory["vectors"][site] = self._project(vector + self.step_size * memory["radius"] * direction, memory["radius"])

    def _project(self, vector: Float[Tensor, "D"], radius: float) -> Float[Tensor, "D"]:
        return balls.project(vector[None, None], ball=self.ball, scope="token", radius=radius)[0, 0]

    def _initial(self, context: PerturbationContext, site: str, dim: int) -> Float[Tensor, "D"]:
        """Zero, or uniform in the ball from a stream of the run and the learner: the same for every micro-batch and rank."""
        dtype, device = deltas.delta_dtype(context), context.allowed.device
        if not self.random_start:
            return torch.zeros(dim, dtype=dtype, device=device)
        digest = hashlib.blake2b(repr((context.key[:1], context.key[2:3], "universal", site)).encode(), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest))
        one = torch.ones(1, 1, dtype=torch.bool)
        drawn = balls.sample(one, dim, ball=self.ball, scope="token", radius=context.radius, generators=[generator], dtype=dtype)
        return drawn[0, 0].to(device)


__all__ = ["Universal"]

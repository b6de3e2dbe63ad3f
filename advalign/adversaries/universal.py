"""One vector for all tokens of all rows."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from advalign.adversaries import _deltas
from advalign.errors import ConfigError
from advalign.functional import balls
from advalign.protocols import Ground, Perturber
from advalign.types import Edit


@dataclass(frozen=True, kw_only=True)
class _State:
    ground: Ground


@dataclass(frozen=True, kw_only=True)
class Universal(Perturber):
    """δ_bt = v for every allowed token; once per update v ← Π(v + s r · steepest(Σ_bt ∇_δ_bt loss))   (arXiv:1811.11304, algorithm 2).

    The gradient is that of the pass which trains, summed over the whole update and all ranks, so training costs no pass more than
    without an adversary and v does not depend on the split into micro-batches. v lives as long as the run and is saved with it.
    Ours: the paper's perturbation has the shape of an image, here texts have no common shape, so one vector per site; steps are
    the steepest of the ball.
    """

    radius: float = 0.05
    step_size: float = 0.1  # ours; a fraction of the radius
    random_start: bool = False
    steps: int = field(default=1, init=False)

    keeps: ClassVar[str] = "all"
    accumulate: ClassVar[str] = "every"
    passes: ClassVar[int] = 1

    def __post_init__(self) -> None:
        balls.check(self.threat, "universal")
        if self.scope != "token":
            raise ConfigError(f"universal.scope: '{self.scope}' given; one vector for all tokens has a ball per token, set scope: token.")
        if not self.step_size > 0:
            raise ConfigError(f"universal.step_size: {self.step_size} given; a fraction of the radius above 0.")
        if self.inner is not None:
            raise ConfigError("universal.inner: the pass that trains is the ascent, so it climbs the terms on its view; use kind 'pgd'.")

    @property
    def starts_at_zero(self) -> bool:
        return not self.random_start

    def start(self, ground: Ground) -> _State:
        vectors = ground.memory.setdefault("vectors", {})
        for site, (_, dim) in ground.shapes.items():
            vectors[site] = vectors[site].to(ground.allowed.device) if site in vectors else self._first(ground, site, dim)
        # settle() is not shown the ground.
        ground.memory["radius"] = float(ground.radius)
        return _State(ground=ground)

    def ask(self, state: _State) -> dict[str, Edit]:
        ground, vectors = state.ground, state.ground.memory["vectors"]
        where = ground.allowed[..., None].to(_deltas.precision(ground))
        inside = {site: where * self._inside(vectors[site].to(where), ground.radius) for site in ground.shapes}
        return _deltas.edits(inside)

    def tell(self, state: _State, losses: Float[Tensor, "N"], gradients: Mapping[str, Any]) -> _State:
        sums = state.ground.memory.setdefault("gradients", {})
        for site, gradient in _deltas.cleaned(state.ground, gradients).items():
            here = gradient.sum((0, 1))
            sums[site] = sums[site] + here if site in sums else here
        return state

    def settle(self, memory: dict[str, Any], all_reduce: Callable[[Tensor], Tensor]) -> None:
        sums = memory.pop("gradients", {})
        for site, vector in memory.get("vectors", {}).items():
            slope = all_reduce(sums.get(site, torch.zeros_like(vector)).to(vector))
            direction = balls.steepest(slope[None, None], ball=self.ball, scope="token")[0, 0]
            memory["vectors"][site] = self._inside(vector + self.step_size * memory["radius"] * direction, memory["radius"])

    def _inside(self, vector: Float[Tensor, "D"], radius: float) -> Float[Tensor, "D"]:
        return balls.project(vector[None, None], ball=self.ball, scope="token", radius=radius)[0, 0]

    def _first(self, ground: Ground, site: str, dim: int) -> Float[Tensor, "D"]:
        """Zero, or uniform in the ball from a stream of the run and the learner: the same for every micro-batch and rank."""
        dtype, device = _deltas.precision(ground), ground.allowed.device
        if not self.random_start:
            return torch.zeros(dim, dtype=dtype, device=device)
        digest = hashlib.blake2b(repr((ground.key[:1], ground.key[2:3], "universal", site)).encode(), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest))
        one = torch.ones(1, 1, dtype=torch.bool)
        drawn = balls.sample(one, dim, ball=self.ball, scope="token", radius=ground.radius, generators=[generator], dtype=dtype)
        return drawn[0, 0].to(device)


__all__ = ["Universal"]

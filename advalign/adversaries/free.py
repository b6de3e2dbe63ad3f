"""Free adversarial training: one backward pass for the parameters and the deltas, replayed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from advalign.adversaries import _deltas
from advalign.errors import ConfigError
from advalign.functional import balls
from advalign.interfaces import Adversary, PerturbationContext
from advalign.types import Edit, fit


@dataclass(frozen=True, kw_only=True)
class _State:
    context: PerturbationContext
    delta: dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Free(Adversary):
    """Each minibatch m times: θ ← θ - η ∇_θ loss(h + δ), δ ← Π(δ + s r · steepest(∇_δ)), both of one backward   (arXiv:1904.12843).

    m is the learner's `epochs`: one update each, and no pass more than training without an adversary has. Between replays a delta is
    kept. `carry`: it also goes to the row in the same place of the next minibatch, cropped or filled with zeros, as in algorithm 1;
    false starts anew with every draw, as the FreeAT of the FreeLB code does (random_start: true).
    Ours: the step is the steepest of the ball (sign for Linf, as in the paper); the paper divides its number of epochs by m, so do that.
    """

    radius: float = 0.05
    step_size: float = 1.0  # "δ ← δ + ε sign(g)", algorithm 1; a fraction of the radius
    random_start: bool = False  # "Initialize δ ← 0"
    carry: bool = True
    steps: int = 1

    memory_scope: ClassVar[str] = "rows"
    trains_every_pass: ClassVar[bool] = True
    passes: ClassVar[int] = 1

    def __post_init__(self) -> None:
        balls.check(self.threat, "free")
        if self.steps != 1:
            raise ConfigError(f"free.steps: {self.steps} given; one step per update, the number of replays is `epochs` of the learner.")
        if not self.step_size > 0:
            raise ConfigError(f"free.step_size: {self.step_size} given; a fraction of the radius above 0.")
        if self.inner is not None:
            raise ConfigError("free.inner: the pass that trains is the ascent, so it climbs the terms on its view; use kind 'pgd'.")

    @property
    def starts_at_zero(self) -> bool:
        return not self.random_start

    def start(self, context: PerturbationContext) -> _State:
        fresh = _deltas.uniform(context, self, zero=not self.random_start)
        kept = self._kept(context)
        for n, place in enumerate(self._places(context)):
            for site, old in kept.get(place, {}).items():
                if site in fresh and old.shape[1] == fresh[site].shape[2]:
                    fresh[site][n] = fit(old[None], fresh[site].shape[1])[0].to(fresh[site])
        inside = {site: balls.masked(x, context.allowed) for site, x in fresh.items()}
        return _State(context=context, delta=_deltas.projected(context, self, inside))

    def ask(self, state: _State) -> dict[str, Edit]:
        return _deltas.edits(state.delta)

    def tell(self, state: _State, losses: Float[Tensor, "N"], gradients: Mapping[str, Any]) -> _State:
        context = state.context
        delta = _deltas.stepped(context, self, state.delta, gradients, self.step_size * context.radius)
        kept = self._kept(context)
        for n, place in enumerate(self._places(context)):
            if context.allowed[n].any():
                width = int(context.allowed[n].nonzero().max()) + 1
                kept[place] = {site: x[n, :width].clone() for site, x in delta.items()}
        return _State(context=context, delta=delta)

    def row_memory(self, memory: dict[str, Any]) -> dict[str, Any]:
        """The deltas of now, by place."""
        return next(iter(memory.values()), {})

    def _kept(self, context: PerturbationContext) -> dict[str, Any]:
        """Deltas by place, of this draw (seed, learner, step, repeat), or of all draws."""
        draw = "carried" if self.carry else "/".join(map(str, context.key[:5]))
        for other in [name for name in context.memory if name != draw]:
            del context.memory[other]
        return context.memory.setdefault(draw, {})

    def _places(self, context: PerturbationContext) -> list[str]:
        """A row's place in its draw: the minibatch it is in, and its number there."""
        return [f"{context.key[6] if len(context.key) > 6 else 0}/{name}" for name in context.names]


__all__ = ["Free"]

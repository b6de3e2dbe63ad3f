"""Free adversarial training: one backward pass for the parameters and the deltas, replayed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from advalign.errors import ConfigError
from advalign.functional import balls, deltas
from advalign.interfaces import Adversary, Memory, PerturbationContext
from advalign.ranges import NonNegative, Positive, whole
from advalign.types import Edit, fit


@dataclass(frozen=True, kw_only=True)
class _State:
    context: PerturbationContext
    delta: dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Free(Adversary[_State]):
    """Each minibatch m times: θ ← θ - η ∇_θ loss(h + δ), δ ← Π(δ + s r · steepest(∇_δ)), both of one backward   (arXiv:1904.12843).

    m is the learner's `epochs`: one update each, with as many passes as training without an adversary. Between replays a delta is kept.
    Ours: the step is the steepest of the ball (sign for Linf, as in the paper); the paper divides its number of epochs by m, so do that.
    """

    radius: NonNegative = 0.05
    """Radius of the ball, in the unit `relative_to`."""
    step_size: Positive = 1.0
    """s, a fraction of the radius ("δ ← δ + ε sign(g)", algorithm 1)."""
    random_start: bool = False
    """Whether a new delta is drawn uniformly in the ball; False: it is zero ("Initialize δ ← 0")."""
    carry: bool = True
    """Whether a delta also goes to the row at the same place of the next minibatch, cropped or zero-padded, as in algorithm 1; False starts
    anew with every draw, as the FreeAT of the FreeLB code does (with random_start: true)."""
    steps: Annotated[int, whole(1, 1)] = 1
    """Steps per update; always 1."""

    memory_scope: ClassVar[str] = "rows"
    trains_every_pass: ClassVar[bool] = True
    passes: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.inner is not None:
            raise ConfigError(
                "free.inner: the pass that trains is also the ascent, so it ascends the objectives on its view; for another use kind 'pgd'."
            )

    @property
    def starts_at_zero(self) -> bool:
        return not self.random_start

    def start(self, context: PerturbationContext) -> _State:
        delta = deltas.uniform(context, self.threat) if self.random_start else deltas.zeros(context)
        stored = self._stored(context)
        for n, place in enumerate(self._places(context)):
            for site, old in stored.get(place, {}).items():
                if site in delta and old.shape[1] == delta[site].shape[2]:
                    delta[site][n] = fit(old[None], delta[site].shape[1])[0].to(delta[site])
        masked = {site: balls.masked(x, context.allowed) for site, x in delta.items()}
        return _State(context=context, delta=deltas.project(context, self.threat, masked))

    def ask(self, state: _State) -> dict[str, Edit]:
        return deltas.as_edits(state.delta)

    def tell(self, state: _State, losses: Float[Tensor, "N"], gradients: Mapping[str, Any]) -> _State:
        context = state.context
        delta = deltas.step(context, self.threat, state.delta, gradients, self.step_size * context.radius)
        stored = self._stored(context)
        for n, place in enumerate(self._places(context)):
            if context.allowed[n].any():
                width = int(context.allowed[n].nonzero().max()) + 1
                stored[place] = {site: x[n, :width].clone() for site, x in delta.items()}
        return _State(context=context, delta=delta)

    def row_memory(self, memory: Memory) -> dict[str, Any]:
        """The current deltas, by place."""
        return next(iter(memory.values()), {})

    def _stored(self, context: PerturbationContext) -> dict[str, Any]:
        """Deltas by place, of this draw (seed, learner, step, repeat), or of all draws."""
        draw = "carried" if self.carry else "/".join(map(str, context.key[:5]))
        for other in [name for name in context.memory if name != draw]:
            del context.memory[other]
        return context.memory.setdefault(draw, {})

    def _places(self, context: PerturbationContext) -> list[str]:
        """A row's place in its draw, whatever minibatch it is in."""
        return list(context.names)


__all__ = ["Free"]

"""A discrete edit, and a continuous attack around it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from advalign.adversaries._unbounded import UnboundedAdversary
from advalign.errors import ConfigError
from advalign.interfaces import Adversary, Memory, PerturbationContext
from advalign.plugins import kind_of
from advalign.ranges import Fraction
from advalign.types import Edit, ThreatModel


@dataclass(frozen=True)
class _State:
    context: PerturbationContext
    half: Any
    """State of the half whose turn it is."""
    edit: Edit | None = None
    """The final edit of the discrete half; None while that half runs."""
    step: int = 0


@dataclass(frozen=True, kw_only=True)
class Mixed(UnboundedAdversary[_State]):
    """max over ||δ|| <= r of loss(e(w') + δ),  w' = discrete(w) with probability α, else w   (MixAT, arXiv:2505.16947).

    In the paper w' is a rephrased prompt, prepared beforehand; ours comes from any discrete adversary, run on the current model, and its
    evaluations count: `steps` is the sum of both halves. The coin is tossed per row, in the paper per batch.
    `where` and `share` are those of both halves; dropout, inner and probability are set here, not on a half.
    """

    family: ClassVar[str] = "discrete"

    discrete: Adversary
    """The adversary that replaces words."""
    continuous: Adversary
    """The adversary that adds to hidden states of the changed rows."""
    discrete_probability: Fraction = 0.5
    """α: probability that the words of a row change ("alpha = 0.5", the dynamic mix of the paper's main results)."""
    where: str = field(default="all", init=False)
    """Set on the halves."""
    share: str = field(default="row", init=False)
    """One delta per row."""
    special: bool = field(default=True, init=False)
    """Set on the halves."""
    steps: int = field(default=0, init=False)
    """Passes of both halves together."""

    def __post_init__(self) -> None:
        if self.discrete.family != "discrete":
            raise ConfigError(f"mixed.discrete: '{kind_of(type(self.discrete))}' replaces no words; give synonyms or characters.")
        if self.continuous.family != "continuous" or self.continuous.trains_every_pass or self.continuous.memory_scope == "rows":
            raise ConfigError(
                f"mixed.continuous: '{kind_of(type(self.continuous))}' given; it must add to hidden states, train in its last pass "
                "only and keep nothing by row (warm: false), as pgd does."
            )
        for name, half in (("discrete", self.discrete), ("continuous", self.continuous)):
            if half.probability != 1 or half.dropout != "off" or half.inner is not None:
                raise ConfigError(f"mixed.{name}: probability, dropout and inner belong to both halves; set them on mixed itself.")
        if self.continuous.share != "row" or self.continuous.where != self.discrete.where:
            raise ConfigError(
                f"mixed.continuous: share '{self.continuous.share}' and where '{self.continuous.where}' given; share must be 'row' "
                f"and where that of the discrete half, '{self.discrete.where}'."
            )
        object.__setattr__(self, "steps", self.discrete.passes + self.continuous.passes)

    def describe(self) -> tuple[str, ...]:
        threat = self.continuous.threat
        unit = " x mean embedding norm" if threat.relative_to == "mean_embedding_norm" else ""
        words = ", ".join(self.discrete.describe() or (kind_of(type(self.discrete)),))
        around = f"{threat.ball} ball per {threat.scope} at {', '.join(threat.sites)}, radius {threat.radius:.3g}{unit}"
        return (f"with probability {self.discrete_probability:.3g} {words}", f"around it {around}")

    @property
    def threat(self) -> ThreatModel:
        """The continuous half's, with the embedding among its sites: words change there."""
        threat = self.continuous.threat
        return replace(threat, sites=tuple(dict.fromkeys(("embedding", *threat.sites))))

    @property
    def starts_at_zero(self) -> bool:
        return self.continuous.starts_at_zero

    @property
    def removes_targets(self) -> bool:
        return self.discrete.removes_targets

    def start(self, context: PerturbationContext) -> _State:
        streams = [torch.Generator().manual_seed(_derived_seed(g.initial_seed())) for g in context.generators]
        # One coin per row, tossed in the stream of its own discrete half: the continuous half draws what it would draw alone.
        tossed = torch.stack([torch.rand((), generator=g) < self.discrete_probability for g in streams])
        allowed = context.allowed & tossed[:, None].to(context.allowed.device)
        half = self.discrete.start(replace(context, allowed=allowed, radius=0.0, generators=streams))
        return self._switch(_State(context, half))

    def ask(self, state: _State) -> dict[str, Edit]:
        if state.edit is None:
            return dict(self.discrete.ask(state.half))
        edits = dict(self.continuous.ask(state.half))
        embedding = edits.get("embedding", Edit())
        return edits | {"embedding": replace(embedding, tokens=state.edit.tokens, origin=state.edit.origin)}

    def tell(self, state: _State, losses: Float[Tensor, "N"], gradients: Mapping[str, Any]) -> _State:
        adversary = self.discrete if state.edit is None else self.continuous
        half = adversary.tell(state.half, losses, gradients)
        return self._switch(replace(state, half=half, step=state.step + 1))

    def end_update(self, memory: Memory, all_reduce: Callable[[Tensor], Tensor]) -> None:
        """The memory of the continuous half moves as it would alone."""
        self.continuous.end_update(memory, all_reduce)

    def _switch(self, state: _State) -> _State:
        """After the last step of the discrete half the continuous one starts, on the changed rows."""
        if state.edit is not None or state.step < self.discrete.passes:
            return state
        edit = self.discrete.ask(state.half)["embedding"]
        assert edit.tokens is not None
        context, width = state.context, edit.tokens.ids.shape[1]
        shapes = {site: (width, context.shapes[site][1]) for site in self.continuous.sites}
        allowed = move_allowed(context.allowed, edit)
        half = self.continuous.start(replace(context, shapes=shapes, allowed=allowed, tokens=edit.tokens))
        return replace(state, half=half, edit=edit)


def move_allowed(allowed: Bool[Tensor, "B T0"], edit: Edit) -> Bool[Tensor, "B T"]:
    """Where a delta is allowed after an edit: where it was before, and at new pieces (only allowed words are ever replaced)."""
    assert edit.tokens is not None
    assert edit.origin is not None
    moved = torch.zeros_like(edit.tokens.mask)
    original = torch.zeros_like(edit.tokens.mask)
    row, position = (edit.origin >= 0).nonzero(as_tuple=True)
    target = edit.origin[row, position]
    original[row, target] = True
    moved[row, target] = allowed[row, position]
    return moved | (edit.tokens.mask & ~original)


def _derived_seed(seed: int) -> int:
    """A seed far from `seed` (splitmix64)."""
    z = (seed + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return (z ^ (z >> 31)) >> 1


__all__ = ["Mixed"]

"""Where an adversary may move, and what it does there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from jaxtyping import Bool, Float, Int
from torch import Tensor

from advalign.checked import Checked
from advalign.ranges import Bound, Distinct, Length, Matches, OneOf
from advalign.types.rows import Tokens

BALLS = ("L2", "Linf", "L1")
SCOPES = ("token", "row")
UNITS = ("mean_embedding_norm", "absolute")
PLACES = ("prompt", "response", "all", "system", "user", "last_user", "assistant", "tool")
SHARES = ("row", "group")

Ball = Annotated[str, OneOf(BALLS, "ball")]
"""Norm of a ball."""
Site = Annotated[str, Matches(r"embedding|layer:-?\d+", "'embedding' or 'layer:k', the output of block k,")]
"""A place in the network."""
Sites = Annotated[tuple[Site, ...], Length(), Distinct()]
"""What is perturbed."""
Unit = Annotated[str, OneOf(UNITS, "unit")]
"""Unit of a radius."""
Scope = Annotated[str, OneOf(SCOPES, "scope")]
"""What has a ball of its own."""
Place = Annotated[str, OneOf(PLACES, "region")]
"""Positions that may be perturbed."""
Share = Annotated[str, OneOf(SHARES, "way to share")]
"""What has a delta of its own."""


@dataclass(frozen=True, kw_only=True)
class ThreatModel(Checked):
    """Where an adversary may move, and how far. A radius always has a ball, a scope and a unit."""

    radius: Bound
    """Size of the ball; unit: `relative_to`."""
    ball: Ball = "L2"
    """Norm of the ball: L2, Linf or L1."""
    sites: Sites = ("embedding",)
    """Where it moves: "embedding" or "layer:k", the output of block k (negative k from the end)."""
    relative_to: Unit = "mean_embedding_norm"
    """Unit of the radius: mean_embedding_norm (mean L2 norm of the rows of the embedding matrix) or absolute."""
    scope: Scope = "token"
    """One ball per token or per row."""
    where: Place = "all"
    """Positions it may touch: prompt (real tokens that are not targets), response (targets), all, or the contents of messages: system,
    user, last_user, assistant or tool."""
    share: Share = "row"
    """One delta per row, or one per group."""
    special: bool = True
    """Whether special tokens may move."""


@dataclass(frozen=True)
class Edit:
    """What an adversary does at a site: hidden states h become h - (h . ablate) ablate at `where`, then h + add."""

    add: Float[Tensor, "B T D"] | None = None
    """Added to the hidden states; zero wherever the adversary may not act."""
    tokens: Tokens | None = None
    """At "embedding" only: rows that are run INSTEAD, perhaps longer or shorter; `add` then has their width."""
    origin: Int[Tensor, "B T0"] | None = None
    """With `tokens`: `origin[b, t]` says where position t of the row went (-1: removed)."""
    ablate: Float[Tensor, "D"] | None = None
    """A direction of norm 1 that is projected out."""
    where: Bool[Tensor, "B T"] | None = None
    """Positions at which `ablate` acts."""
    common: bool = False
    """Whether rows of a group have one delta (`share: group`), so that a beginning which they share may run once, edited."""

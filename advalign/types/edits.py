"""Where an adversary may move, and what it does there."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor

from advalign.types.rows import Tokens


@dataclass(frozen=True, kw_only=True)
class ThreatModel:
    """Where an adversary may move, and how far. A radius is never bare: it has a ball, a scope and a unit.
    sites: "embedding" or "layer:k" (the output of block k). relative_to: "mean_embedding_norm" | "absolute".
    scope: one ball per "token" or per "row". where: "prompt" (real tokens that are no target) | "response" | "all".
    share: one delta per "row" or one per "group". special: whether special tokens may move."""

    radius: float
    ball: str = "L2"
    sites: tuple[str, ...] = ("embedding",)
    relative_to: str = "mean_embedding_norm"
    scope: str = "token"
    where: str = "all"
    share: str = "row"
    special: bool = True


@dataclass(frozen=True)
class Edit:
    """What an adversary does at a site. Hidden states h become h - (h . ablate) ablate at `where`, then h + add.

    add: zero wherever it may not act. ablate: a direction of norm 1. tokens (at "embedding" only): rows that are run INSTEAD,
    perhaps longer or shorter; `add` then has their width, and `origin[b, t]` says where position t of the row went (-1: gone).
    """

    add: Float[Tensor, "B T D"] | None = None
    tokens: Tokens | None = None
    origin: Int[Tensor, "B T0"] | None = None
    ablate: Float[Tensor, "D"] | None = None
    where: Bool[Tensor, "B T"] | None = None

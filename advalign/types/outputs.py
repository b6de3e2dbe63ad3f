"""What a forward returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from advalign.types.rows import Rows


@dataclass(frozen=True, kw_only=True)
class Outputs(Rows):
    """The outputs of one forward: those that an objective declared it reads, by the names of these fields."""

    logprobs: Float[Tensor, "B T"] | None = None
    """log p(ids[t] | ids[<t]), zero off target."""
    entropy: Float[Tensor, "B T"] | None = None
    """H(p(. | ids[<t])), zero off target."""
    values: Float[Tensor, "B T"] | None = None
    """V(ids[<t]) of the value head, zero off target."""
    scores: Float[Tensor, "B"] | None = None
    """The score head's number per row."""
    token_scores: Float[Tensor, "B T"] | None = None
    """The score head at token t, not shifted, zero at padding."""
    score_gradients: Float[Tensor, "B T D"] | None = None
    """Of each row's score with respect to its input embeddings, edits included; part of the graph."""
    class_logits: Float[Tensor, "B C"] | None = None
    """Logits of a classifier."""
    distribution: Distribution | None = None
    """Lazy: `d.head(torch.where(target[..., None], d.hidden, 0))` are logits "B T V", index t about token t."""
    hidden: Mapping[str, Float[Tensor, "B T D"]] | None = None
    """{site: hidden states}, not shifted; the need "hidden:layer:3" asks for one site."""
    reader: ScoreReader | None = None
    """Of a scorer that reads hidden states: `reader.score(hidden, mask)` is "B"."""

    def detach(self) -> Outputs:
        """The same numbers without gradient."""
        return self.map_tensors(lambda x: x.detach())

    def gather(self, origin: Int[Tensor, "B T0"]) -> Outputs:
        """Outputs of changed rows, at the positions of the original rows; zero at those that were removed (-1)."""

        def restore(x: Tensor) -> Tensor:
            index, removed = origin.clamp(min=0), origin < 0
            wide = (slice(None), slice(None), *[None] * (x.ndim - 2))
            return x.gather(1, index[wide].expand(*index.shape, *x.shape[2:])).masked_fill(removed[wide], 0)

        columns = {n: getattr(self, n) for n in ("logprobs", "entropy", "values", "token_scores", "score_gradients")}
        new: dict[str, Any] = {n: restore(x) for n, x in columns.items() if x is not None}
        if self.distribution is not None:
            new["distribution"] = replace(self.distribution, hidden=restore(self.distribution.hidden))
        if self.hidden is not None:
            new["hidden"] = {site: restore(x) for site, x in self.hidden.items()}
        return replace(self, **new)


@dataclass(frozen=True, kw_only=True)
class Distribution(Rows):
    """Next-token distributions, unexpanded."""

    hidden: Float[Tensor, "B T D"]
    """`hidden[b, t]` predicts token t."""
    head: Callable[[Tensor], Tensor]
    """Maps "N D" to logits "N V"."""


@dataclass(frozen=True, kw_only=True)
class ScoreReader(Rows):
    """A network that reads another one's hidden states."""

    score: Callable[[Tensor, Tensor], Tensor]
    """`score(hidden "B T D", mask "B T") -> "B"`, with the gradients of both networks."""


NEEDS = tuple(f.name for f in fields(Outputs))
"""What an objective may read."""

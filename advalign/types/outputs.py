"""What a forward gave."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from advalign.types.rows import Rows


@dataclass(frozen=True, kw_only=True)
class Outputs(Rows):
    """What one forward gave, only as far as an objective declared the need (the field names are the needs).
    `distribution`: hidden states that predict token t, and the head: two-view divergences are computed from them in
    chunks, so that no B x T x V tensor is stored. `hidden`: {site: "B T D"}, not shifted; the need "hidden:layer:3" asks for one.
    `token_scores[t]`: the score head at token t, not shifted, zero at padding. `score_gradients`: of each row's score with respect to
    the input embeddings it was computed from, edits included; part of the graph. `reader`: of a scorer that reads hidden states."""

    logprobs: Float[Tensor, "B T"] | None = None
    entropy: Float[Tensor, "B T"] | None = None
    values: Float[Tensor, "B T"] | None = None
    scores: Float[Tensor, "B"] | None = None
    token_scores: Float[Tensor, "B T"] | None = None
    score_gradients: Float[Tensor, "B T D"] | None = None
    class_logits: Float[Tensor, "B C"] | None = None
    distribution: Distribution | None = None
    hidden: Mapping[str, Float[Tensor, "B T D"]] | None = None
    reader: ScoreReader | None = None

    def detach(self) -> Outputs:
        return self._each(lambda x: x.detach())

    def gather(self, origin: Int[Tensor, "B T0"]) -> Outputs:
        """Outputs of changed rows, back at the positions of the rows they stand for; zero at those that are gone (-1)."""

        def back(x: Tensor) -> Tensor:
            index, gone = origin.clamp(min=0), origin < 0
            wide = (slice(None), slice(None), *[None] * (x.ndim - 2))
            return x.gather(1, index[wide].expand(*index.shape, *x.shape[2:])).masked_fill(gone[wide], 0)

        columns = {n: getattr(self, n) for n in ("logprobs", "entropy", "values", "token_scores", "score_gradients")}
        new: dict[str, Any] = {n: back(x) for n, x in columns.items() if x is not None}
        if self.distribution is not None:
            new["distribution"] = replace(self.distribution, hidden=back(self.distribution.hidden))
        if self.hidden is not None:
            new["hidden"] = {site: back(x) for site, x in self.hidden.items()}
        return replace(self, **new)


@dataclass(frozen=True, kw_only=True)
class Distribution(Rows):
    """Next-token distributions, unexpanded. `hidden[b, t]` predicts token t; `head` maps "N D" to logits "N V"."""

    hidden: Float[Tensor, "B T D"]
    head: Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class ScoreReader(Rows):
    """A network that reads another one's hidden states: `score(hidden "B T D", mask "B T") -> "B"`, with the gradients of both."""

    score: Callable[[Tensor, Tensor], Tensor]


NEEDS = tuple(f.name for f in fields(Outputs))

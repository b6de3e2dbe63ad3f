"""Greedy substitution of words, the queries of many examples batched together."""

import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from advalign.attacks._words_base import WordAttack
from advalign.attacks._words_search import Request, Search, Substitutions, TextScore, WordSearch
from advalign.ranges import OneOf

__all__ = ["Words"]

RANKS = ("leave_one_out", "unknown", "saliency", "gain", "gradient")
STYLES: Mapping[str, tuple[str, tuple[str, ...]]] = {  # style -> (rank, sources)
    "textfooler": ("leave_one_out", ("synonyms",)),
    "textbugger": ("leave_one_out", ("bugs", "synonyms")),
    "pwws": ("saliency", ("synonyms",)),
    "deepwordbug": ("unknown", ("characters",)),
    "bae": ("leave_one_out", ("masked_lm",)),
    "a2t": ("gradient", ("synonyms",)),
}


@dataclass(frozen=True, kw_only=True)
class Words(WordAttack):
    """For words i in order of importance: x ← argmin over c in C(w_i) of p(y | x with w_i := c), until f(x) ≠ y.

    Ours: a candidate is taken only if p(y | x) falls; of several that fool the model, the most similar (without an encoder the first
    in the lexicon's order); any text on the way that keeps the constraints and fools the model ends the search. Constraints are the same
    for all styles and are fields, so that numbers compare.
    Every example has its own random stream, so results depend neither on order nor on `batch_size`; in a pair the prompt is edited.
    """

    style: Annotated[str, OneOf(STYLES, "style")] = "deepwordbug"
    """Order and sources: like TextFooler (arXiv:1907.11932), TextBugger (arXiv:1812.05271), PWWS (Ren et al., ACL 2019), DeepWordBug
    (arXiv:1801.04354), BAE (arXiv:2004.01970) or A2T (arXiv:2109.00544)."""
    rank: Annotated[str, OneOf(RANKS, "rank")] | None = None
    """Importance of a word, None: the style's. leave_one_out: p(y | x) - p(y | x without w_i); unknown: w_i := [UNK] instead; gain: the
    best candidate's fall of p; saliency: softmax_i(fall under [UNK]) times gain; gradient: L1 norm of the loss's gradient at w_i, one
    query for all words."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order == "gradient":
            object.__setattr__(self, "access", "gradients")

    @property
    def label(self) -> str:
        return f"style '{self.style}'"

    @property
    def order(self) -> str:
        """The rank that is used."""
        return STYLES[self.style][0] if self.rank is None else self.rank

    @property
    def origins(self) -> tuple[str, ...]:
        return STYLES[self.style][1] if self.sources is None else tuple(self.sources)

    def search(self, search: WordSearch, clean: TextScore) -> Search:
        fixed: dict[int, str] = {}
        order = yield from self._ranked(search, clean, fixed)
        substitutions: Substitutions = {}
        logprob = clean.logprob
        for place in order:
            if search.success is not None:
                return
            (row,) = yield from search.candidates([(substitutions, place)], words=[[fixed[place]]] if place in fixed else None)
            scored = yield from search.score(row)
            if search.success is None and scored and scored[0][0] < logprob - 1e-12:
                logprob, candidate = scored[0]
                substitutions = candidate.substitutions

    def _ranked(self, search: WordSearch, clean: TextScore, fixed: dict[int, str]) -> Generator[Request, Any, list[int]]:
        """Places, the most important first. Ranking by gain fixes each word's candidate."""
        places, rank = list(search.options), self.order
        fall = dict.fromkeys(places, 0.0)
        if rank == "gradient":
            norms = yield Request("gradient")
            return sorted(places, key=lambda i: -(norms or fall)[i])
        if rank != "gain":
            blank = "" if rank == "leave_one_out" else "[UNK]"
            answers = yield Request("score", [search.text({place: blank}) for place in places])
            fall = {i: _fall(clean, score) for i, score in zip(places, answers, strict=True)}
        if rank in ("leave_one_out", "unknown"):
            return sorted(places, key=lambda i: -fall[i])
        gain = {}
        for place in places:
            (row,) = yield from search.candidates([({}, place)])
            scored = yield from search.score(row)
            if search.success is not None:
                return []
            if scored:
                gain[place], fixed[place] = _fall(clean, TextScore(scored[0][0], False)), scored[0][1].word
        top = max(fall.values())
        weight = {i: math.exp(fall[i] - top) if rank == "saliency" else 1.0 for i in gain}
        return sorted(gain, key=lambda i: -weight[i] * gain[i])


def _fall(before: TextScore, after: TextScore | None) -> float:
    """By how much p(y) fell; -inf where no query was left."""
    return -math.inf if after is None else math.exp(before.logprob) - math.exp(after.logprob)

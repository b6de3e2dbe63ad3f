"""Beam search over substitutions of words."""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from advalign.attacks._words_base import WordAttack
from advalign.attacks._words_search import Request, Search, Substitutions, TextScore, WordSearch
from advalign.ranges import Count

__all__ = ["Beam"]


@dataclass(frozen=True, kw_only=True)
class Beam(WordAttack):
    """K_0 = {x};  K_t = the `width` texts of lowest p(y | .) among those one substitution away from K_{t-1}, until f(x) ≠ y.

    Every place is open at every step, so no importance is guessed: with a width that keeps everything this is the exhaustive search,
    with width 1 the greedy one that looks at all words before each step. Where p(y) of the best kept text no longer falls the search goes
    on until the limit of words.

    Beam search as in TextAttack (arXiv:2005.05909); substitutes and constraints as in `words`. Ours: a text reached by two orders of
    the same substitutions is one text, and is sent once.
    """

    width: Count = 8
    """Texts that are kept."""
    places: Count | None = None
    """Words that may change, those whose [UNK] costs p(y) most, one query each; None: all."""

    def search(self, search: WordSearch, clean: TextScore) -> Search:
        places = yield from self._open(search)
        beam: list[Substitutions] = [{}]
        for _ in range(search.limit):
            moves = [(substitutions, place) for substitutions in beam for place in places if place not in substitutions]
            rows = yield from search.candidates(moves)
            distinct = {candidate.text: candidate for row in rows for candidate in row}
            scored = yield from search.score(list(distinct.values()))
            if search.success is not None or not scored:
                return
            beam = [candidate.substitutions for _, candidate in scored[: self.width]]

    def _open(self, search: WordSearch) -> Generator[Request, Any, list[int]]:
        """The places that may change."""
        places = list(search.options)
        if self.places is None or len(places) <= self.places:
            return places
        answers = yield Request("score", [search.text({place: "[UNK]"}) for place in places])
        logprobs = {i: score.logprob for i, score in zip(places, answers, strict=True) if score is not None}
        return sorted(sorted(logprobs, key=logprobs.__getitem__)[: self.places])

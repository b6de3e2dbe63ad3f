"""Beam search over substitutions of words."""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, ClassVar

from advalign.attacks._words_base import WordAttack
from advalign.attacks._words_search import Ask, Asking, Chosen, Seen, WordSearch
from advalign.errors import ConfigError

__all__ = ["Beam"]


@dataclass(frozen=True, kw_only=True)
class Beam(WordAttack):
    """K_0 = {x};  K_t = the `width` texts of lowest p(y | .) among those one substitution away from K_{t-1}, until f(x) ≠ y.

    Every place is open at every step, so no importance is guessed: with a width that keeps everything this is the exhaustive search,
    with width 1 the greedy one that looks at all words before each step. places: only so many words, those whose [UNK] costs p(y)
    most, one query each; None: all. Where p(y) of the best kept text no longer falls the search goes on until the limit of words.

    Beam search as in TextAttack (arXiv:2005.05909); substitutes and constraints as in `words`. Ours: a text reached by two orders of
    the same substitutions is one text, and is asked once.
    """

    width: int = 8
    places: int | None = None

    name: ClassVar[str] = "beam"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width < 1 or (self.places is not None and self.places < 1):
            raise ConfigError(f"attacks.beam: width {self.width}, places {self.places} given; both are at least 1.")

    def search(self, search: WordSearch, now: Seen) -> Asking:
        places = yield from self._open(search)
        kept: list[Chosen] = [{}]
        for _ in range(search.limit):
            wanted = [(chosen, place) for chosen in kept for place in places if place not in chosen]
            offers = yield from search.offers(wanted)
            different = {offer.text: offer for row in offers for offer in row}
            scored = yield from search.judge(list(different.values()))
            if search.found is not None or not scored:
                return
            kept = [offer.chosen for _, offer in scored[: self.width]]

    def _open(self, search: WordSearch) -> Generator[Ask, Any, list[int]]:
        found = list(search.options)
        if self.places is None or len(found) <= self.places:
            return found
        answers = yield Ask("score", [search.text({place: "[UNK]"}) for place in found])
        left = {i: seen.label for i, seen in zip(found, answers, strict=True) if seen is not None}
        return sorted(sorted(left, key=left.__getitem__)[: self.places])

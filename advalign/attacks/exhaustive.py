"""Every combination of a few substitutions: an upper bound of every search."""

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from advalign.attacks import _words_edits as spelling
from advalign.attacks._words_base import WordAttack
from advalign.attacks._words_search import Search, TextScore, WordSearch
from advalign.interfaces import Target
from advalign.ranges import Count
from advalign.types import Budget, Example, Proposal

__all__ = ["Exhaustive"]

CHUNK = 256  # texts of one request to the target


@dataclass(frozen=True, kw_only=True)
class Exhaustive(WordAttack):
    """Is there a set A of at most k words and c_i in C(w_i), i in A, with f(x with w_i := c_i for i in A) ≠ y?  All are tried.

    An oracle: where this finds nothing, no search over the same substitutes and constraints does, so the gap between the two is what
    the search missed. Fewest words first, so what it finds has as few changes as possible.

    Ours: substitutes of a masked language model are those for the text as it was, one word masked at a time; similarity is to the
    original text, in a window around each change. What is enumerated here is what arXiv:1909.00986 bounds.
    """

    edits: Count = 2
    """k."""
    texts: Count = 20_000
    """An example with more texts is refused before anything is sent, and is in no rate; raise it, or lower `candidates` or `edits`."""

    def search(self, search: WordSearch, clean: TextScore) -> Search:
        places = list(search.options)
        words = yield from search.words([({}, place) for place in places])
        options = dict(zip(places, words, strict=True))
        for size in range(1, min(self.edits, search.limit, len(places)) + 1):
            combinations = _combinations(options, size)
            while part := list(itertools.islice(combinations, CHUNK)):
                # All but the last substitution are in place; the last is the move, and every window is compared.
                moves = [(dict(pairs[:-1]), pairs[-1][0]) for pairs in part]
                rows = yield from search.candidates(moves, whole=True, words=[[pairs[-1][1]] for pairs in part])
                yield from search.score([candidate for row in rows for candidate in row])
                if search.success is not None:
                    return

    def propose(self, target: Target, examples: Sequence[Example], budget: Budget, rng: random.Random) -> list[Proposal]:
        """One proposal per example; where there are more texts than allowed nothing is sent, and the proposal says so."""
        numbers = [self.count(example) for example in examples]
        allowed = [e for e, number in zip(examples, numbers, strict=True) if number <= self.texts]
        proposals = iter(super().propose(target, allowed, budget, rng) if allowed else [])
        reason = "{} texts within {} substitutions, {} are allowed"
        return [
            next(proposals) if number <= self.texts else Proposal(refused=reason.format(number, self.edits, self.texts), queries=0)
            for number in numbers
        ]

    def count(self, example: Example) -> int:
        """The most texts there can be: the sum over sets of at most k places of the product of their substitutes."""
        in_context = self.candidates if "masked_lm" in self.origins else 0
        rng = random.Random(0)
        sums = [1] + [0] * self.edits  # elementary symmetric polynomials of the numbers of substitutes
        for word in spelling.pieces(example.text)[1::2]:
            number = len(self.options(word, rng)) + (in_context if spelling.is_open(word) else 0)
            sums = [total + (number * sums[d - 1] if d else 0) for d, total in enumerate(sums)]
        return sum(sums[1:])


def _combinations(options: dict[int, list[str]], size: int) -> Iterator[tuple[tuple[int, str], ...]]:
    """Every choice of `size` places and a substitute for each."""
    for places in itertools.combinations(options, size):
        for words in itertools.product(*(options[place] for place in places)):
            yield tuple(zip(places, words, strict=True))

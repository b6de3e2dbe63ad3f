"""A genetic search over substitutions of words."""

import random
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch

from advalign.attacks import _words_edits as edits
from advalign.attacks._words_base import WordAttack
from advalign.attacks._words_search import Candidate, Request, Search, Substitutions, TextScore, WordSearch
from advalign.ranges import Count, whole

__all__ = ["Population"]

Member = tuple[Substitutions, float]
"""(substitutions, log p(y))"""


@dataclass(frozen=True, kw_only=True)
class Population(WordAttack):
    """P_0 = S times perturb(x);  P_g = {best of P_{g-1}} + (S - 1) times perturb(cross(a, b)),  a, b ~ 1 - p(y | .), until f(x) ≠ y.

    perturb draws a place in proportion to the number of its substitutes and takes the one of lowest p(y); cross takes each word
    from either parent (arXiv:1804.07998, section 4.2).

    Ours: substitutes and constraints as in `words` (theirs: neighbours in counter-fitted vectors, filtered by a language model);
    a child that changes too many words loses changes by chance; of texts with windows, each change's window is compared with the
    original. All texts of a generation are one batch, and every example has its own random stream. `candidates` is their K of 4, here 8.
    """

    size: Annotated[int, whole(2)] = 60
    """S; 60 as published."""
    generations: Count = 20
    """Most generations; 20 as published."""

    def search(self, search: WordSearch, clean: TextScore) -> Search:
        start: Member = ({}, clean.logprob)
        members = yield from self._perturb(search, [start] * self.size)
        for _ in range(self.generations - 1):
            if search.success is not None or search.num_queries >= search.max_queries:
                return
            best = min(members, key=lambda member: member[1])
            parents = _draw(members, 2 * (self.size - 1), search.rng)
            children: list[Member] = [(_cross(search, a, b), max(a[1], b[1])) for a, b in zip(parents[::2], parents[1::2], strict=True)]
            members = [best, *(yield from self._perturb(search, children))]

    def _perturb(self, search: WordSearch, members: Sequence[Member]) -> Generator[Request, Any, list[Member]]:
        """Each member with one substitution more; a member without one that fits is unchanged."""
        places = list(search.options)
        weights = [max(len(search.options[place]), self.candidates if "masked_lm" in self.origins else 0) for place in places]
        moves = [(substitutions, search.rng.choices(places, weights)[0]) for substitutions, _ in members]
        rows = yield from search.candidates(moves, whole=True)
        distinct = {candidate.text: candidate for row in rows for candidate in row}
        scored = yield from search.score(list(distinct.values()))
        logprobs = {candidate.text: value for value, candidate in scored}
        return [_lowest([c for c in row if c.text in logprobs], logprobs, member) for row, member in zip(rows, members, strict=True)]


def _lowest(candidates: Sequence[Candidate], logprobs: dict[str, float], default: Member) -> Member:
    """The candidate of lowest log p(y)."""
    if not candidates:
        return default
    best = min(candidates, key=lambda candidate: logprobs[candidate.text])
    return best.substitutions, logprobs[best.text]


def _draw(members: Sequence[Member], number: int, rng: random.Random) -> list[Member]:
    """Parents, in proportion to 1 - p(y)."""
    fitness = (-torch.expm1(torch.tensor([logprob for _, logprob in members], dtype=torch.float64))).clamp(min=0).tolist()
    return rng.choices(members, fitness if sum(fitness) > 0 else None, k=number)


def _cross(search: WordSearch, first: Member, second: Member) -> Substitutions:
    """Each word from either parent; then changes are dropped until few enough are left."""
    a, b = first[0], second[0]
    child: dict[int, str] = {}
    for place in sorted({*a, *b}):
        word = (a if search.rng.random() < 0.5 else b).get(place)
        if word is not None:
            child[place] = word
    while sum(edits.cost(word) for word in child.values()) > search.limit:
        del child[search.rng.choice(sorted(child))]
    return child

"""A genetic search over substitutions of words."""

import random
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from advalign.attacks import _words_edits as edits
from advalign.attacks._words_base import WordAttack
from advalign.attacks._words_search import Ask, Asking, Chosen, Offer, Seen, WordSearch
from advalign.errors import ConfigError

__all__ = ["Population"]

Member = tuple[Chosen, float]  # substitutions, log p(y)


@dataclass(frozen=True, kw_only=True)
class Population(WordAttack):
    """P_0 = S times perturb(x);  P_g = {best of P_{g-1}} + (S - 1) times perturb(cross(a, b)),  a, b ~ 1 - p(y | .), until f(x) ≠ y.

    perturb draws a place in proportion to the number of its substitutes and takes the one of lowest p(y); cross takes each word
    from either parent. size S and generations: arXiv:1804.07998, section 4.2 (S = 60, G = 20); `candidates` is its K of 4, here 8.

    Ours: substitutes and constraints as in `words` (theirs: neighbours in counter-fitted vectors, filtered by a language model);
    a child that changes too many words loses changes by chance; of texts with windows, each change's window is compared with the
    original. All texts of a generation are one batch, and every example has its own random stream.
    """

    size: int = 60
    generations: int = 20

    name: ClassVar[str] = "population"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size < 2 or self.generations < 1:
            raise ConfigError(f"attacks.population: size {self.size}, generations {self.generations} given; at least 2 and 1 are needed.")

    def search(self, search: WordSearch, now: Seen) -> Asking:
        start: Member = ({}, now.label)
        members = yield from self._perturbed(search, [start] * self.size)
        for _ in range(self.generations - 1):
            if search.found is not None or search.spent >= search.left:
                return
            best = min(members, key=lambda member: member[1])
            parents = _drawn(members, 2 * (self.size - 1), search.rng)
            children: list[Member] = [(_crossed(search, a, b), max(a[1], b[1])) for a, b in zip(parents[::2], parents[1::2], strict=True)]
            members = [best, *(yield from self._perturbed(search, children))]

    def _perturbed(self, search: WordSearch, members: Sequence[Member]) -> Generator[Ask, Any, list[Member]]:
        """Each member with one substitution more; one for which there is none stays as it is."""
        places = list(search.options)
        weights = [max(len(search.options[place]), self.candidates if "masked_lm" in self.origins else 0) for place in places]
        wanted = [(chosen, search.rng.choices(places, weights)[0]) for chosen, _ in members]
        rows = yield from search.offers(wanted, whole=True)
        different = {offer.text: offer for row in rows for offer in row}
        scored = yield from search.judge(list(different.values()))
        label = {offer.text: value for value, offer in scored}
        return [_lowest([o for o in row if o.text in label], label, member) for row, member in zip(rows, members, strict=True)]


def _lowest(offers: Sequence[Offer], label: dict[str, float], otherwise: Member) -> Member:
    if not offers:
        return otherwise
    best = min(offers, key=lambda offer: label[offer.text])
    return best.chosen, label[best.text]


def _drawn(members: Sequence[Member], number: int, rng: random.Random) -> list[Member]:
    """Parents, in proportion to 1 - p(y)."""
    fitness = (-torch.expm1(torch.tensor([label for _, label in members], dtype=torch.float64))).clamp(min=0).tolist()
    return rng.choices(members, fitness if sum(fitness) > 0 else None, k=number)


def _crossed(search: WordSearch, first: Member, second: Member) -> Chosen:
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

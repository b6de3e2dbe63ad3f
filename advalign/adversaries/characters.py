"""Misspelling: single characters change inside words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch

from advalign.adversaries._discrete import ORDERS, Discrete
from advalign.adversaries._word_reader import Pieces, Word, WordReader
from advalign.ranges import Count, Distinct, Fraction, Length, OneOf, whole

ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
# Letters of other scripts that look like Latin ones.
ALIKE = dict(zip("aceiopsxyjh", "\u0430\u0441\u0435\u0456\u043e\u0440\u0455\u0445\u0443\u0458\u04bb", strict=True))

Choose = Callable[[int], int]  # a random number below its argument


@dataclass(frozen=True, kw_only=True)
class Characters(Discrete):
    """max of loss(w') over w' with at most budget · n words changed, each by one character   (after DeepWordBug, arXiv:1801.04354).

    Misspellings are drawn per word, from the row's own stream, and re-tokenised.
    Ours: the paper scores words by deleting them; here by gradient, as in `synonyms`.
    """

    budget: Fraction = 0.1
    """Fraction of the words that may change."""
    order: Annotated[str, OneOf(ORDERS, "order")] = "norm"
    """norm or gain. A misspelt word falls into other pieces, so its gain is a rougher guide than that of a synonym."""
    edits: Annotated[tuple[Annotated[str, OneOf(EDITS, "edit")], ...], Length(), Distinct()] = ("swap", "delete", "insert", "keyboard")
    """swap (two neighbours), delete, insert, keyboard (a neighbouring key), homoglyph (a letter of another script that looks the same)."""
    candidates: Count = 4
    """Different misspellings per word."""
    keep_first: bool = True
    """Whether the first character stays."""
    min_length: Annotated[int, whole(2)] = 4
    """Characters of the shortest word that changes."""

    def options(
        self, reader: WordReader, words: Sequence[Word], ids: Sequence[int], generator: torch.Generator
    ) -> list[tuple[Pieces, ...]]:
        def choose(below: int) -> int:
            return int(torch.randint(below, (), generator=generator))

        spellings = [self.misspell(word.text, choose) for word in words]
        return [reader.write(word, tuple(ids[word.start : word.stop]), texts) for word, texts in zip(words, spellings, strict=True)]

    def misspell(self, word: str, choose: Choose) -> list[str]:
        """Up to `candidates` different misspellings, the edits taking turns."""
        if len(word) < self.min_length:
            return []
        head, body = (word[:1], word[1:]) if self.keep_first else ("", word)
        drawn = [head + EDITS[self.edits[n % len(self.edits)]](body, choose) for n in range(self.candidates)]
        return [text for text in dict.fromkeys(drawn) if text != word]


def swap(text: str, choose: Choose) -> str:
    """Two neighbours that differ change places."""
    places = [i for i in range(len(text) - 1) if text[i] != text[i + 1]]
    if not places:
        return text
    i = places[choose(len(places))]
    return text[:i] + text[i + 1] + text[i] + text[i + 2 :]


def delete(text: str, choose: Choose) -> str:
    """One character less."""
    i = choose(len(text))
    return text[:i] + text[i + 1 :]


def insert(text: str, choose: Choose) -> str:
    """A letter from beside the one it follows on the keyboard, else that letter again."""
    i = choose(len(text))
    near = _near(text[i]) or text[i]
    return text[: i + 1] + near[choose(len(near))] + text[i + 1 :]


def keyboard(text: str, choose: Choose) -> str:
    """A letter becomes its neighbour in the same row of a QWERTY keyboard."""
    return _substitute(text, choose, _near)


def homoglyph(text: str, choose: Choose) -> str:
    """A letter becomes one of another script that looks the same."""
    return _substitute(text, choose, lambda letter: ALIKE.get(letter, ""))


def _substitute(text: str, choose: Choose, others: Callable[[str], str]) -> str:
    """One letter becomes one of its `others`."""
    places = [i for i, letter in enumerate(text) if others(letter)]
    if not places:
        return text
    i = places[choose(len(places))]
    new = others(text[i])
    return text[:i] + new[choose(len(new))] + text[i + 1 :]


def _near(letter: str) -> str:
    """The keys beside a letter."""
    for row in ROWS:
        i = row.find(letter.lower())
        if i >= 0:
            near = row[max(i - 1, 0) : i] + row[i + 1 : i + 2]
            return near.upper() if letter.isupper() else near
    return ""


EDITS: Mapping[str, Callable[[str, Choose], str]] = {
    "swap": swap,
    "delete": delete,
    "insert": insert,
    "keyboard": keyboard,
    "homoglyph": homoglyph,
}

__all__ = ["Characters"]

"""Substitution of words by words that mean the same."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch

from advalign.adversaries import _lexicon
from advalign.adversaries._discrete import Discrete
from advalign.adversaries._word_reader import Pieces, Word, WordReader, cased
from advalign.ranges import Count, Fraction, Words
from advalign.types import CONTENT


@dataclass(frozen=True, kw_only=True)
class Synonyms(Discrete):
    """max of loss(w') over w' with w'_i in {w_i} or syn(w_i), at most budget · n words changed   (A2T, arXiv:2109.00544).

    Greedy, by first-order gains g · (e' - e). The paper ranks words by the norm of their gradient (`order: norm`), tries the substitutes
    of one after the other by forward passes and stops at the first success. Ours: all substitutes are scored to first order and ranked
    together (`order: gain`), the budget is spread over `steps` evaluations, each with a fresh gradient; only what raised the loss is
    kept, and nothing stops early. There is no tagger and no sentence encoder: the lexicon is the constraint.
    """

    lexicon: Annotated[Words, CONTENT]
    """JSON file (plain or .gz) of word -> substitutes."""
    budget: Fraction = 0.1
    """Fraction of the words that may change (max_rate=0.1 of the authors' recipe, without its minimum of 4 words)."""
    candidates: Count = 20
    """Substitutes per word, the first in the lexicon ("max_candidates=20", the same recipe)."""
    keep: tuple[Words, ...] = ()
    """Words that never change."""

    def options(
        self, reader: WordReader, words: Sequence[Word], ids: Sequence[int], generator: torch.Generator
    ) -> list[tuple[Pieces, ...]]:
        lexicon = _lexicon.read(self.lexicon, "synonyms.lexicon")
        options = []
        for word in words:
            synonyms = () if word.text.lower() in self.keep else lexicon.get(word.text) or lexicon.get(word.text.lower(), ())
            texts = [cased(text, word.text) for text in synonyms[: self.candidates]]
            options.append(reader.write(word, tuple(ids[word.start : word.stop]), texts))
        return options


__all__ = ["Synonyms"]

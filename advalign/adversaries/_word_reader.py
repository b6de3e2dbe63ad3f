"""Where the words of a row are, and how a tokenizer would write other words in their place.

A word is a run of pieces: the first begins it, the others are glued to it ("##ing" of word pieces; no "Ġ" or "▁" in byte-level
and sentencepiece vocabularies). Which pieces are glued is read from the vocabulary; everything else is tested with the tokenizer: a run
is a word only if it decodes to letters and those encode to the same pieces again, and so is a substitute.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import NamedTuple
from weakref import WeakKeyDictionary

from advalign.models import Encoder

APOSTROPHES = "'’`"
JOINTS = "-_/@\\"
Pieces = tuple[int, ...]


class Word(NamedTuple):
    """Pieces start..stop of a row."""

    start: int
    stop: int
    text: str
    lead: str
    """The space before it, where the tokenizer keeps it in the word."""


class _Piece(NamedTuple):
    text: str
    glued: bool
    letters: bool
    space: bool = False
    """A space alone, which the pieces after it are glued to."""


class WordReader:
    """The words of one tokenizer; what the tokenizer answered is cached."""

    def __init__(self, encoder: Encoder) -> None:
        self.tokenizer = encoder.tokenizer
        self.never = frozenset(self.tokenizer.all_special_ids) | {
            i for i, token in getattr(self.tokenizer, "added_tokens_decoder", {}).items() if token.special
        }
        self.marker = _marker(self.tokenizer.get_vocab())
        self.encoded: dict[str, Pieces] = {}
        self.pieces: dict[int, _Piece] = {}
        self.read: dict[Pieces, tuple[str, str] | None] = {}
        self.written: dict[tuple[str, Pieces, str], Pieces | None] = {}
        self.template = self._template(encoder)

    def words(self, ids: Sequence[int], allowed: Sequence[bool]) -> list[Word]:
        """Words whose pieces are all allowed, in order; parts of "don't" or "well-known" are not words."""
        words, start = [], 0
        pieces = [self._piece(i) for i in ids]
        while start < len(ids):
            stop = start + 1
            if pieces[start].letters or (pieces[start].space and stop < len(ids) and pieces[stop].letters and pieces[stop].glued):
                while stop < len(ids) and pieces[stop].letters and pieces[stop].glued:
                    stop += 1
                if all(allowed[start:stop]) and not self._joined(pieces, start, stop):
                    word = self._read(tuple(ids[start:stop]))
                    words += [] if word is None else [Word(start, stop, *word)]
            start = stop
        return words

    def write(self, word: Word, pieces: Pieces, texts: Sequence[str]) -> tuple[Pieces, ...]:
        """The pieces of each text in the place of a word that has `pieces` now; texts that do not survive the tokenizer are left out."""
        keys = [(word.lead, pieces, text) for text in texts]
        self._encode(list(dict.fromkeys(lead + text for lead, _, text in keys if (lead, pieces, text) not in self.written)))
        for key in keys:
            if key not in self.written:
                self.written[key] = self._survivor(*key)
        return tuple(dict.fromkeys(new for key in keys if (new := self.written[key]) is not None))

    def content(self, ids: Sequence[int], end: int) -> tuple[int, int]:
        """(start, stop) of the text in a prompt of `end` tokens; the rest is the chat template. (0, 0): they cannot be separated."""
        before, after = self.template
        stop = end - len(after)
        if tuple(ids[: len(before)]) != before or tuple(ids[max(stop, 0) : end]) != after or stop < len(before):
            return 0, 0
        return len(before), stop

    # ------------------------------------------------------------------------------------------------- the tokenizer

    def _read(self, pieces: Pieces) -> tuple[str, str] | None:
        """(text, lead) of a run of pieces, if it is a word."""
        if pieces not in self.read:
            text = self._decode(pieces)
            leads = [lead for lead in ("", " ") if text.isalpha() and self._encode([lead + text])[0] == pieces]
            self.read[pieces] = (text, leads[0]) if leads and not self.never & set(pieces) else None
        return self.read[pieces]

    def _survivor(self, lead: str, old: Pieces, text: str) -> Pieces | None:
        (new,) = self._encode([lead + text])
        if not new or new == old or self.never & set(new):
            return None
        return new if self._encode([lead + self._decode(new)])[0] == new else None

    def _encode(self, texts: Sequence[str]) -> list[Pieces]:
        fresh = [text for text in texts if text not in self.encoded]
        if fresh:
            for text, ids in zip(fresh, self.tokenizer(fresh, add_special_tokens=False)["input_ids"], strict=True):
                self.encoded[text] = tuple(ids)
        return [self.encoded[text] for text in texts]

    def _decode(self, pieces: Sequence[int]) -> str:
        return str(self.tokenizer.convert_tokens_to_string(self.tokenizer.convert_ids_to_tokens(list(pieces)))).strip()

    def _piece(self, number: int) -> _Piece:
        if number not in self.pieces:
            self.pieces[number] = self._classify(number)
        return self.pieces[number]

    def _classify(self, number: int) -> _Piece:
        if number in self.never:
            return _Piece("", False, False)
        token = self.tokenizer.convert_ids_to_tokens(number)
        if self.marker == "##":
            glued, text = len(token) > 2 and token.startswith("##"), token.removeprefix("##")
        else:
            glued, text = self.marker != "" and not token.startswith(self.marker), self._decode([number])
        # Part of a character of several bytes decodes to the replacement character.
        letters = any(c.isalnum() or c == "\ufffd" for c in text)
        return _Piece(text, glued, letters, space=self.marker in ("Ġ", "▁") and token == self.marker)

    def _joined(self, pieces: Sequence[_Piece], start: int, stop: int) -> bool:
        """Whether an apostrophe or a hyphen ties the run to its neighbours. Word pieces do not say where spaces were: there an
        apostrophe always does, a hyphen never."""
        blind = self.marker in ("##", "")
        ties = APOSTROPHES if blind else APOSTROPHES + JOINTS
        before = pieces[start - 1].text[-1:] if start and (blind or pieces[start].glued) else ""
        after = pieces[stop].text[:1] if stop < len(pieces) and (blind or pieces[stop].glued) else ""
        return any(c and c in ties for c in (before, after))

    def _template(self, encoder: Encoder) -> tuple[Pieces, Pieces]:
        """Ids before and after a prompt in the chat template: what two prompts of one different word each have in common."""
        if not getattr(self.tokenizer, "chat_template", None):
            return (), ()
        vocabulary = (self._read((i,)) for i in sorted(self.tokenizer.get_vocab().values()))
        texts = [word[0] for word in islice(filter(None, vocabulary), 2)]
        if len(texts) < 2:
            return (), ()  # a vocabulary without words
        one, two = encoder.prompts(texts)
        before = next(i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b)
        after = next(i for i, (a, b) in enumerate(zip(one[::-1], two[::-1], strict=False)) if a != b)
        return tuple(one[:before]), tuple(one[len(one) - after :])


_READERS: WeakKeyDictionary[Encoder, WordReader] = WeakKeyDictionary()


def reader_of(encoder: Encoder) -> WordReader:
    """The reader of an encoder's tokenizer, built once."""
    if encoder not in _READERS:
        _READERS[encoder] = WordReader(encoder)
    return _READERS[encoder]


def cased(text: str, like: str) -> str:
    """`text` in upper case, capitalised or unchanged, as `like` is written."""
    if len(like) > 1 and like.isupper():
        return text.upper()
    return text[:1].upper() + text[1:] if like[:1].isupper() else text


def _marker(vocabulary: Mapping[str, int]) -> str:
    """What the vocabulary marks: "##" glued pieces, "Ġ" or "▁" pieces after a space, " " (a piece of its own), "" nothing."""
    patterns = {"##": r"##\w", "Ġ": "Ġ", "▁": "▁"}
    counts = {marker: sum(bool(re.match(pattern, token)) for token in vocabulary) for marker, pattern in patterns.items()}
    best = max(counts, key=lambda marker: counts[marker])
    return best if counts[best] else " " if " " in vocabulary else ""

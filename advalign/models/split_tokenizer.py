"""A copy of a fast tokenizer that reads special tokens as text, but for those that stand behind an alias.

The copy has, for each special token, an added token of the same flags with a text that nobody else writes: where the original would read
<|im_end|> as a token, the copy is given that alias, and everything else, <|im_end|> too, is split as any other text. So one encoding, with
one normaliser and one set of merges, reads some of the special tokens of a text.
"""

from __future__ import annotations

import secrets
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tokenizers import AddedToken, Encoding, Tokenizer

Span = tuple[int, int]
AsText = Callable[[Sequence[int]], list[int]]
"""Replaces special tokens among the ids of a text."""


@dataclass(frozen=True, kw_only=True)
class Segments:
    """A text, or a pair of texts, as a tokenizer joins them."""

    ids: list[int]
    """Token ids."""
    types: list[int]
    """The tokenizer's token types: the segment of every token."""
    counts: list[int]
    """Tokens of each text that are there, without what the tokenizer adds."""
    length: int
    """Tokens before the row was cut."""
    lost_end: bool
    """Whether the last text lost its end."""


def segments_of(cut: Encoding, whole: Encoding, side: str) -> Segments:
    """A row that lost tokens at the `side` of its texts, beside the whole one."""
    counts, before = ([encoding.sequence_ids.count(k) for k in range(encoding.n_sequences)] for encoding in (cut, whole))
    lost = side == "right" and counts[-1] < before[-1]
    return Segments(ids=list(cut.ids), types=list(cut.type_ids), counts=counts, length=len(whole.ids), lost_end=lost)


class SplitTokenizer:
    """A copy of a fast tokenizer that reads special tokens as text and aliases as special tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self.core = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self.core.no_padding()
        self.core.no_truncation()
        self.core.encode_special_tokens = True
        # Nobody can write an alias into a text: it holds a random number, which no result depends on.
        nonce = secrets.token_hex(8)
        added = {str(token): (i, token) for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.alias = {text: f"\U00100000{nonce}.{i}\U00100001" for text, (i, _) in added.items()}
        flags = ("lstrip", "rstrip", "single_word")
        self.core.add_tokens(
            [
                AddedToken(self.alias[text], special=False, normalized=False, **{flag: getattr(token, flag) for flag in flags})
                for text, (_, token) in added.items()
            ]
        )
        self.number = {self.core.token_to_id(self.alias[text]): i for text, (i, _) in added.items()}

    def ids(self, as_text: AsText, text: str, tokens: Sequence[Span]) -> tuple[list[int], list[Span]]:
        """Ids and the characters of each, in `text`."""
        written, edits = self._write(text, tokens)
        encoding = self.core.encode(written, add_special_tokens=False)
        return self._numbers(as_text, encoding), [(_origin(edits, a), _origin(edits, b)) for a, b in encoding.offsets]

    def segments(self, as_text: AsText, row: Sequence[str], tokens: Sequence[Sequence[Span]], limit: int, side: str) -> Segments:
        """A text or a pair of texts, as the tokenizer joins them, within `limit` tokens."""
        texts = [self._write(text, spans)[0] for text, spans in zip(row, tokens, strict=True)]
        first, second = texts[0], texts[1] if len(texts) > 1 else None
        whole = cut = self.core.encode(first, second)
        if len(whole.ids) > limit:
            self.core.enable_truncation(limit, direction=side)
            cut = self.core.encode(first, second)
            self.core.no_truncation()
        return replace(segments_of(cut, whole, side), ids=self._numbers(as_text, cut))

    def _numbers(self, as_text: AsText, encoding: Encoding) -> list[int]:
        """Ids of the original tokenizer. Special tokens that the post-processor adds stay; others are words of a text."""
        texts = as_text([i for i, special in zip(encoding.ids, encoding.special_tokens_mask, strict=True) if not special])
        words = iter(texts)
        ids = [i if special else next(words) for i, special in zip(encoding.ids, encoding.special_tokens_mask, strict=True)]
        return [self.number.get(i, i) for i in ids]

    def _write(self, text: str, tokens: Sequence[Span]) -> tuple[str, list[tuple[int, int]]]:
        """The text with aliases at `tokens`, and (place behind an alias, how much longer the text is up to there)."""
        pieces, edits, place, longer = [], [], 0, 0
        for start, end in tokens:
            alias = self.alias[text[start:end]]
            pieces += [text[place:start], alias]
            place, longer = end, longer + len(alias) - (end - start)
            edits.append((end + longer, longer))
        return "".join([*pieces, text[place:]]), edits


def _origin(edits: Sequence[tuple[int, int]], place: int) -> int:
    """Where a character of the written text is in the original; aliases begin and end where their tokens do."""
    number = bisect_right([end for end, _ in edits], place)
    return place - (edits[number - 1][1] if number else 0)


__all__ = ["AsText", "Segments", "Span", "SplitTokenizer", "segments_of"]

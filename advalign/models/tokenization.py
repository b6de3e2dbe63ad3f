"""Text to token ids, without what a tokenizer adds by itself and without special tokens that a text only spells out.

    prompt    = prefix + text              <bos> the cat sat            tokenizer(text), its end left out
    response  = text                       on the mat                   (its ending is the encoder's)
    segments  = tokenizer(first, second)   [CLS] the cat [SEP] sat [SEP], and the token types that go with it

A special token spelled out in a text is text, as with `split_special_tokens=True` of transformers. In a rendered conversation those of the
template are tokens and those inside a content are text, in one encoding: a copy of the tokenizer reads special tokens as text, and has for
each an alias with the same flags that it reads as a token; the aliases are written where the template's own tokens stand.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from tokenizers import Encoding
from transformers import PreTrainedTokenizerFast

from advalign.errors import ConfigError, unknown
from advalign.models.split_tokenizer import Segments, Span, SplitTokenizer, segments_of

READINGS = ("text", "tokens")
PROBES = 50  # words of the vocabulary that are tried for what the tokenizer puts around them


class TextReader:
    """How a tokenizer reads text."""

    tokenizer: Any
    """A tokenizer of transformers."""
    special_tokens_in_text: str
    """What a special token is that a text spells out: text, or tokens."""

    def __init__(self, tokenizer: Any, special_tokens_in_text: str = "text") -> None:
        if special_tokens_in_text not in READINGS:
            raise unknown("model.options.special_tokens_in_text", "reading", special_tokens_in_text, READINGS)
        self.tokenizer, self.special_tokens_in_text = tokenizer, special_tokens_in_text
        self._warned = False
        self._key: tuple[Any, ...] = ()
        self._cache: dict[str, Any] = {}

    # ------------------------------------------------------------------------------------------ special tokens

    def _cached(self, name: str, build: Callable[[], Any]) -> Any:
        """What was built from the tokenizer as it is now: tokens may be added to it, or named, at any time."""
        key = len(self.tokenizer), *map(str, self.tokenizer.special_tokens_map.values())
        if key != self._key:
            self._key, self._cache = key, {}
        if name not in self._cache:
            self._cache[name] = build()
        return self._cache[name]

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """{special token: id}, named ones and others that were added as special."""
        return self._cached("special_tokens", self._special_tokens)  # type: ignore[no-any-return]

    def _special_tokens(self) -> dict[str, int]:
        added = {str(token): int(i) for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        return added | dict(zip(self.tokenizer.all_special_tokens, self.tokenizer.all_special_ids, strict=True))

    @property
    def special_ids(self) -> frozenset[int]:
        """Tokens without text. (The unknown token has some.)"""
        build = lambda: frozenset(self._special_tokens().values()) - {self.tokenizer.unk_token_id}  # noqa: E731
        return self._cached("special_ids", build)  # type: ignore[no-any-return]

    @property
    def _pattern(self) -> re.Pattern[str] | None:
        return self._cached("pattern", self._compiled)  # type: ignore[no-any-return]

    def _compiled(self) -> re.Pattern[str] | None:
        texts = sorted((text for text in self.special_tokens if text), key=lambda text: (-len(text), text))
        return re.compile("|".join(map(re.escape, texts))) if texts else None

    def spelled(self, text: str) -> list[Span]:
        """Where a text spells out a special token."""
        return [] if self._pattern is None else [match.span() for match in self._pattern.finditer(text)]

    def _reads_apart(self, *texts: str | None, read: Collection[str] = ()) -> bool:
        """Whether special tokens in these texts, those of `read` apart, must be read as text, which the tokenizer would not do; said
        once."""
        if self.special_tokens_in_text == "tokens":
            return False
        spelled = next((text[a:b] for text in texts if text for a, b in self.spelled(text) if text[a:b] not in read), None)
        if spelled is not None and not self._warned:
            self._warned = True
            warnings.warn(
                f"encoder: a text spells out the special token '{spelled}', which is read as text; model.options.special_tokens_in_text: "
                "tokens reads it as the token.",
                stacklevel=2,
            )
        return spelled is not None

    # ----------------------------------------------------------------------------------------------------- ids

    @property
    def prefix(self) -> tuple[int, ...]:
        """What the tokenizer puts in front of a text."""
        return self.affixes[0]

    @property
    def affixes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What the tokenizer puts in front of a text and behind it."""
        return self._cached("affixes", self._affixes)  # type: ignore[no-any-return]

    def _affixes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        special = frozenset(self.special_tokens.values())
        words = (self.tokenizer.decode([i]) for i in sorted(self.tokenizer.get_vocab().values()) if i not in special)
        for word in ("a", *islice(words, PROBES)):
            inner, whole = (list(self.tokenizer(word, add_special_tokens=s)["input_ids"]) for s in (False, True))
            starts = [i for i in range(len(whole)) if inner and whole[i : i + len(inner)] == inner]
            if starts:
                return tuple(whole[: starts[0]]), tuple(whole[starts[0] + len(inner) :])
        return (), ()

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts that something follows: behind what the tokenizer puts in front of a text, without what it puts behind."""
        prefix = list(self.prefix)
        rows = self.texts(texts)
        return [ids if prefix and ids[: len(prefix)] == prefix else prefix + ids for ids in rows]

    def texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts alone."""
        apart = [self._reads_apart(text) for text in texts]
        plain = [text for text, split in zip(texts, apart, strict=True) if not split]
        rows = iter(self.tokenizer(plain, add_special_tokens=False, verbose=False)["input_ids"] if plain else ())
        return [self._split_ids(text)[0] if split else list(next(rows)) for text, split in zip(texts, apart, strict=True)]

    def rendered(self, text: str, contents: Iterable[Span]) -> tuple[list[int], list[Span]]:
        """Ids of a rendered conversation and the characters of each; inside `contents` special tokens are text."""
        spans = list(contents)
        if not self._reads_apart(*(text[a:b] for a, b in spans)):
            if isinstance(self.tokenizer, PreTrainedTokenizerFast):
                encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
                return list(encoded["input_ids"]), [(int(a), int(b)) for a, b in encoded["offset_mapping"]]
            ids = list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
            return ids, self._guessed_offsets(ids, 0)
        return self._split_ids(text, [(a, b) for a, b in self.spelled(text) if not any(c <= a and b <= d for c, d in spans)])

    def segments(
        self, first: Sequence[str], second: Sequence[str | None] | None, *, limit: int, side: str, read: Collection[str] = ()
    ) -> list[Segments]:
        """Rows as the tokenizer joins a text and, where there is one, a second; the longer text loses tokens at its `side` (left, right)
        until the row has `limit`. The special tokens `read` are tokens wherever a text spells them."""
        texts = [(a,) if b is None else (a, b) for a, b in zip(first, second if second is not None else [None] * len(first), strict=True)]
        apart = [self._reads_apart(*row, read=read) or bool(read) for row in texts]
        rows: dict[int, Segments] = {}
        for paired in (False, True):
            numbers = [i for i, row in enumerate(texts) if not apart[i] and (len(row) > 1) == paired]
            rows |= dict(zip(numbers, self._joined([texts[i] for i in numbers], limit, side), strict=True))
        return [rows[i] if i in rows else self._joined_apart(row, limit, side, read) for i, row in enumerate(texts)]

    def offsets(self, text: str, pair: str | None, *, limit: int, side: str) -> tuple[list[Span], list[int | None]]:
        """The characters of every token of a row of `segments`, and which of the texts they are of (None: the tokenizer's own)."""
        own, self.tokenizer.truncation_side = self.tokenizer.truncation_side, side
        try:
            split = self._reads_apart(text, pair)
            options = {"truncation": True, "max_length": limit, "return_offsets_mapping": True, "split_special_tokens": split}
            row = self.tokenizer(text, pair, **options)
        finally:
            self.tokenizer.truncation_side = own
        return [(int(a), int(b)) for a, b in row["offset_mapping"]], row.sequence_ids()

    # ------------------------------------------------------------------------------------------------- helpers

    def _joined(self, rows: Sequence[tuple[str, ...]], limit: int, side: str) -> list[Segments]:
        """Rows as the tokenizer itself joins them; all of them are pairs, or none is."""
        if not rows:
            return []
        if not isinstance(self.tokenizer, PreTrainedTokenizerFast):
            return [self._joined_in_python([self._bare(text) for text in row], limit, side) for row in rows]
        whole = self._call(rows)
        long = [i for i, encoding in enumerate(whole) if len(encoding.ids) > limit]
        cut = dict(enumerate(whole))
        if long:
            own, self.tokenizer.truncation_side = self.tokenizer.truncation_side, side
            try:
                cut |= dict(zip(long, self._call([rows[i] for i in long], truncation=True, max_length=limit), strict=True))
            finally:
                self.tokenizer.truncation_side = own
        return [segments_of(cut[i], encoding, side) for i, encoding in enumerate(whole)]

    def _call(self, rows: Sequence[tuple[str, ...]], **options: Any) -> list[Encoding]:
        pairs = [row[1] for row in rows] if len(rows[0]) > 1 else None
        encoded = self.tokenizer([row[0] for row in rows], text_pair=pairs, verbose=False, **options)
        return list(encoded.encodings)

    def _bare(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _joined_in_python(self, parts: list[list[int]], limit: int, side: str) -> Segments:
        """Texts, as ids, as a tokenizer in Python joins them."""
        length = len(self.tokenizer.build_inputs_with_special_tokens(*parts))
        own, self.tokenizer.truncation_side = self.tokenizer.truncation_side, side
        try:
            first, second, _ = self.tokenizer.truncate_sequences(parts[0], *parts[1:], num_tokens_to_remove=length - limit)
        finally:
            self.tokenizer.truncation_side = own
        cut = [first, second][: len(parts)]
        ids, types = self.tokenizer.build_inputs_with_special_tokens(*cut), self.tokenizer.create_token_type_ids_from_sequences(*cut)
        lost = side == "right" and len(cut[-1]) < len(parts[-1])
        return Segments(ids=list(ids), types=list(types), counts=[len(part) for part in cut], length=length, lost_end=lost)

    @property
    def _copy(self) -> SplitTokenizer | None:
        """None: the tokenizer is written in Python."""
        if not isinstance(self.tokenizer, PreTrainedTokenizerFast):
            return None
        return self._cached("copy", lambda: SplitTokenizer(self.tokenizer))  # type: ignore[no-any-return]

    def _joined_apart(self, row: Sequence[str], limit: int, side: str, read: Collection[str]) -> Segments:
        """A row in which special tokens are text, but for those that are `read`."""
        tokens = [[(a, b) for a, b in self.spelled(text) if self._is_read(text[a:b], read)] for text in row]
        if self._copy is not None:
            return self._copy.segments(self.as_text, row, tokens, limit, side)
        return self._joined_in_python([self._split_ids(text, spans)[0] for text, spans in zip(row, tokens, strict=True)], limit, side)

    def _is_read(self, token: str, read: Collection[str]) -> bool:
        return token in read or self.special_tokens_in_text == "tokens"

    def _split_ids(self, text: str, tokens: Sequence[Span] = ()) -> tuple[list[int], list[Span]]:
        """Ids of a text in which special tokens are text, but for those at `tokens`; and the characters of each."""
        if self._copy is not None:
            return self._copy.ids(self.as_text, text, tokens)
        ids: list[int] = []
        offsets: list[Span] = []
        place = 0
        for start, end in [*tokens, (len(text), len(text))]:
            if text[place:start]:
                piece = self.tokenizer(text[place:start], add_special_tokens=False, split_special_tokens=True, verbose=False)
                piece_ids = list(piece["input_ids"])
                ids, offsets = ids + self.as_text(piece_ids), offsets + self._guessed_offsets(piece_ids, place)
            if end > start:
                ids, offsets = [*ids, self.special_tokens[text[start:end]]], [*offsets, (start, end)]
            place = end
        return ids, offsets

    def _guessed_offsets(self, ids: Sequence[int], shift: int) -> list[Span]:
        """Of a tokenizer that gives none: what decoding each further token adds."""
        ends = [len(self.tokenizer.decode(list(ids[: i + 1]))) + shift for i in range(len(ids))]
        return list(zip([shift, *ends[:-1]], ends, strict=True)) if ids else []

    def as_text(self, ids: Sequence[int]) -> list[int]:
        """Ids of a text in which a special token is a word of the vocabulary too (whole words): an unknown word."""
        unknown_id, special = self.tokenizer.unk_token_id, self.special_ids
        if unknown_id is None and (spelled := special.intersection(ids)):
            raise ConfigError(
                f"encoder: this tokenizer has no unknown token and reads '{self.tokenizer.convert_ids_to_tokens(min(spelled))}' in a text "
                "as its special token; give model.options.special_tokens_in_text: tokens."
            )
        return [unknown_id if i in special else i for i in ids]


__all__ = ["READINGS", "TextReader"]

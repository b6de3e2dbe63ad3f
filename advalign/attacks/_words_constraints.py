"""What an edited text must keep: parts of speech, similarity of sentences, numbers of edits."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, Self

from advalign.attacks._parts_of_speech import agree, read_tags, tags_of
from advalign.checked import Checked
from advalign.errors import unknown
from advalign.ranges import Natural, OneOf, Words, number, whole
from advalign.types import CONTENT

REFERENCES = ("original", "previous")


@dataclass(frozen=True, kw_only=True)
class WordConstraints(Checked, section="attacks.constraints"):
    """What an edited text must keep."""

    tags: Annotated[Words, CONTENT] | None = None
    """JSON of word -> {part of speech: ...}: a substitute must be able to be a part of speech that the word can be; a word that is not
    listed agrees with all."""
    verb_is_noun: bool = True
    """Whether a noun may replace a verb, and the reverse."""
    encoder: Annotated[Words, CONTENT] | None = None
    """Sentence encoder (folder, hub id or package:module/folder), the mean of its last hidden states."""
    similarity: Annotated[float, number(-1, 1)] = 0.8
    """Least cosine to the text it is compared with. An angular threshold a is the cosine cos(pi (1 - a))."""
    window: Annotated[int, whole(2)] | None = None
    """Words around the change that are compared; shorter texts pass. None: whole texts."""
    against: Annotated[str, OneOf(REFERENCES, "text")] = "original"
    """The text it is compared with: original, or previous (before the last change)."""
    characters: Natural | None = None
    """Most edits of characters in all; None: any."""
    at_least: Natural = 0
    """Words that may change however short the text is."""

    @classmethod
    def from_config(cls, config: Self | Mapping[str, Any]) -> Self:
        """From the mapping in a configuration."""
        if not isinstance(config, Mapping):
            return config
        names = [f.name for f in fields(cls)]
        for name in config:
            if name not in names:
                raise unknown("attacks.constraints", "constraint", name, names)
        return cls(**config)

    def agrees(self, word: str, substitute: str) -> bool:
        """Whether both words can be the same part of speech."""
        if self.tags is None:
            return True
        tags = read_tags(self.tags, "attacks.constraints.tags")
        return agree(tags_of(tags, word), tags_of(tags, substitute), verb_is_noun=self.verb_is_noun)


def window(words: Sequence[str], pieces: Sequence[str], place: int, size: int) -> str:
    """`size` words around word number `place`, with what is between them. `pieces`: [gap, word, gap, ..., word, gap]."""
    half, n = (size - 1) / 2, len(words)
    if place - half < 0:
        start, end = 0, min(size, n) - 1
    elif place + half >= n:
        start, end = max(0, n - size), n - 1
    else:
        start, end = place - math.ceil(half), place + math.floor(half)
    return "".join(pieces[2 * start + 1 : 2 * end + 2])

"""Text comparisons that judges share."""

import re
from collections.abc import Sequence

from advalign.errors import ConfigError


def has_word_character(text: str) -> bool:
    """Whether there is a letter or a digit in it."""
    return any(c.isalnum() for c in text)


def folded(text: str) -> str:
    """For comparison: case, typographic quotes and runs of white space make no difference."""
    straight = text.replace("\u2019", "'").replace("\u2018", "'").replace("\u201c", '"').replace("\u201d", '"')
    return " ".join(straight.casefold().split())


def contains(text: str, phrase: str) -> bool:
    """Whether `phrase` occurs in `text` as whole words, both folded."""
    pattern = folded(phrase)
    edges = [r"(?<!\w)" if pattern[:1].isalnum() else "", r"(?!\w)" if pattern[-1:].isalnum() else ""]
    return re.search(edges[0] + re.escape(pattern) + edges[1], folded(text)) is not None


def check_phrases(path: str, phrases: Sequence[str]) -> None:
    """Refuses a single text and empty phrases: an empty phrase would match everything."""
    if isinstance(phrases, str) or any(not isinstance(p, str) or not p.strip() for p in phrases):
        raise ConfigError(f"{path}: {phrases!r} given; a list of phrases, none of them empty, is needed.")


__all__ = ["check_phrases", "contains", "folded", "has_word_character"]

"""What judges of text share."""

import re
from collections.abc import Sequence

from advalign.errors import ConfigError


def says_something(text: str) -> bool:
    """Whether there is a letter or a digit in it."""
    return any(c.isalnum() for c in text)


def plain(text: str) -> str:
    """Folded for comparison: case, typographic quotes and runs of white space make no difference."""
    straight = text.replace("\u2019", "'").replace("\u2018", "'").replace("\u201c", '"').replace("\u201d", '"')
    return " ".join(straight.casefold().split())


def has(text: str, phrase: str) -> bool:
    """Whether `phrase` stands in `text` as whole words, folded."""
    wanted = plain(phrase)
    edges = [r"(?<!\w)" if wanted[:1].isalnum() else "", r"(?!\w)" if wanted[-1:].isalnum() else ""]
    return re.search(edges[0] + re.escape(wanted) + edges[1], plain(text)) is not None


def phrases(where: str, given: Sequence[str]) -> tuple[str, ...]:
    """`given` as a tuple; an empty phrase would match everything."""
    if isinstance(given, str) or any(not isinstance(p, str) or not p.strip() for p in given):
        raise ConfigError(f"{where}: {given!r} given; a list of phrases, none of them empty, is needed.")
    return tuple(given)


__all__ = ["has", "phrases", "plain", "says_something"]

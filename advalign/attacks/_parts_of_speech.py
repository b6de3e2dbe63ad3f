"""Parts of speech of words by lookup: n, v, a, r."""

from collections.abc import Mapping
from functools import lru_cache

from advalign.attacks._tables import read_table
from advalign.errors import ConfigError

ENDINGS = ("", "s", "es", "d", "ed", "ing", "r", "er", "st", "est", "ly")

Tags = Mapping[str, frozenset[str]]
"""{word: parts of speech}"""


@lru_cache(maxsize=4)
def read_tags(reference: str, path: str) -> Tags:
    """Of a JSON object, word -> {part of speech: ...}. `path` names the field in an error."""
    table = read_table(reference, path)
    wrong = next((word for word, entry in table.items() if not isinstance(entry, dict)), None)
    if wrong is not None:
        raise ConfigError(f"{path}: in {reference} the entry '{wrong}' is not an object {{part of speech: words}}.")
    return {word: frozenset(entry) for word, entry in table.items()}


def tags_of(tags: Tags, word: str) -> frozenset[str]:
    """What a word can be, by itself or by its stem; empty where it is not listed."""
    word = word.lower()
    for ending in ENDINGS:
        if word.endswith(ending) and (parts := tags.get(word[: len(word) - len(ending)])):
            return parts
    return frozenset()


def agree(first: frozenset[str], second: frozenset[str], *, verb_is_noun: bool) -> bool:
    """Whether two words can be the same part of speech; a word that is not listed agrees with all."""
    swap = verb_is_noun and bool(first & {"n", "v"}) and bool(second & {"n", "v"})
    return not first or not second or bool(first & second) or swap

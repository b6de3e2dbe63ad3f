"""Files that the recipes of TextAttack read in place of what they would download."""

from collections.abc import Mapping
from functools import lru_cache

from advalign.attacks._parts_of_speech import Tags
from advalign.attacks._stopwords import STOPWORDS
from advalign.attacks._tables import existing_file, read_table
from advalign.errors import ConfigError

Lexicon = Mapping[str, tuple[str, ...]]
"""{word: substitutes}"""


def check(argument: str, reference: str | None) -> None:
    """Refuses a file that does not exist."""
    if reference is not None:
        existing_file(reference, f"attacks.textattack.{argument}", _content(argument))


@lru_cache(maxsize=4)
def read_lexicon(argument: str, reference: str) -> tuple[Lexicon, Tags]:
    """({word: substitutes}, {word: parts of speech}) of a JSON object: word -> list, or word -> {n, v, a, r: list}."""
    table = read_table(reference, f"attacks.textattack.{argument}")
    words, tags = {}, {}
    for word, entry in table.items():
        by_tag = entry if isinstance(entry, dict) else {"": entry}
        # A word of several parts of speech has one list of substitutes; the part-of-speech constraint sorts them out.
        words[word] = tuple(dict.fromkeys(w for ws in by_tag.values() for w in ws if w != word))
        tags[word] = frozenset(by_tag) - {""}
    return words, tags


def read_entities(argument: str, reference: str) -> Mapping[str, str]:
    """{word: type of named entity} of a JSON object."""
    table = read_table(reference, f"attacks.textattack.{argument}")
    if wrong := next((word for word, kind in table.items() if not isinstance(kind, str)), None):
        raise ConfigError(f"attacks.textattack.{argument}: '{wrong}' has no type of named entity; 'checklist' reads word -> PER or LOC.")
    return table


def read_stopwords(reference: str | None) -> frozenset[str]:
    """The words of a text file; without one, our own list."""
    if reference is None:
        return STOPWORDS
    file = existing_file(reference, "attacks.textattack.stopwords", _content("stopwords"))
    return frozenset(file.read_text(encoding="utf-8").split())


def _content(argument: str) -> str:
    return "text file of words" if argument == "stopwords" else "JSON file (plain or .gz)"

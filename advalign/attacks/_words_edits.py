"""What a word may become: substitutes from a file, and edits of its characters. Text is cut into words and what lies between them."""

import gzip
import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import chain, zip_longest
from pathlib import Path

from advalign.attacks._textattack_support import STOPWORDS
from advalign.errors import ConfigError

WORD = re.compile(r"([^\W_]+(?:['’-][^\W_]+)*)")
# Treebanks split "do n't": the negation is a word of its own there.
UNTOUCHED = STOPWORDS | {"n't", "nt", "wo", "ca"}
LETTERS = "abcdefghijklmnopqrstuvwxyz"
# Cyrillic, Greek and other letters and digits that look like the Latin letter.
ALIKE = dict(zip("abcdehijklmnopqrsuvwxyz", "аЬсԁеһіјκӏmոорԛгѕυνԝхуz", strict=True)) | {"f": "ƒ", "g": "ɡ", "t": "τ", "m": "м", "z": "ᴢ"}


def pieces(text: str) -> list[str]:
    """[gap, word, gap, ..., word, gap]: words at odd places; their concatenation is the text."""
    return WORD.split(text)


def is_open(word: str) -> bool:
    """Whether a word may be changed: it has a letter and is no stop word."""
    return any(c.isalpha() for c in word) and word.lower() not in UNTOUCHED


def cased(word: str, like: str) -> str:
    """`word` written as `like` is: upper case, capitalised, or as it stands."""
    if len(like) > 1 and like.isupper():
        return word.upper()
    return word[:1].upper() + word[1:] if like[:1].isupper() else word


@lru_cache(maxsize=4)
def lexicon(given: str) -> Mapping[str, tuple[str, ...]]:
    """{word: substitutes} of a JSON object: word -> list, or word -> {part of speech: list}, which are interleaved."""
    path = Path(given).expanduser()
    if not path.is_file():
        raise ConfigError(f"attacks.words.lexicon: there is no file {path}; a JSON file (plain or .gz), word -> substitutes, is needed.")
    content = path.read_bytes()
    table = json.loads(gzip.decompress(content) if path.suffix == ".gz" else content)
    if not isinstance(table, dict):
        raise ConfigError(f"attacks.words.lexicon: {path} holds a JSON {type(table).__name__}; an object word -> words is needed.")
    return {word: _flat(word, entry) for word, entry in table.items()}


def _flat(word: str, entry: Sequence[str] | Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    # No tagger says which part of speech a word is here: the lists take turns, so that each is heard under a cap.
    lists = entry.values() if isinstance(entry, dict) else [entry]
    turns = chain.from_iterable(zip_longest(*lists))
    return tuple(dict.fromkeys(w for w in turns if w is not None and w != word))


def synonyms(word: str, table: Mapping[str, tuple[str, ...]], number: int) -> list[str]:
    found = table.get(word) or table.get(word.lower(), ())
    return [cased(w, word) for w in found[:number]]


# ---------------------------------------------------------------------------------------- edits of characters


def swap(word: str, rng: random.Random) -> str:
    """Two neighbours change places."""
    i = rng.randrange(len(word) - 1)
    return word[:i] + word[i + 1] + word[i] + word[i + 2 :]


def swap_inside(word: str, rng: random.Random) -> str:
    """The same, but the first and the last letter stay."""
    if len(word) < 4:
        return word
    return word[0] + swap(word[1:-1], rng) + word[-1]


def substitute(word: str, rng: random.Random) -> str:
    i = rng.randrange(len(word))
    return word[:i] + rng.choice(LETTERS) + word[i + 1 :]


def delete(word: str, rng: random.Random) -> str:
    i = rng.randrange(len(word))
    return word[:i] + word[i + 1 :]


def delete_inside(word: str, rng: random.Random) -> str:
    return word if len(word) < 3 else word[0] + delete(word[1:-1], rng) + word[-1]


def insert(word: str, rng: random.Random) -> str:
    i = rng.randrange(len(word) + 1)
    return word[:i] + rng.choice(LETTERS) + word[i:]


def space(word: str, rng: random.Random) -> str:
    i = rng.randrange(1, len(word))
    return word[:i] + " " + word[i:]


def homoglyph(word: str, rng: random.Random) -> str:
    """One letter becomes another that looks like it."""
    known = [i for i, c in enumerate(word) if c.lower() in ALIKE]
    if not known:
        return word
    i = rng.choice(known)
    return word[:i] + ALIKE[word[i].lower()] + word[i + 1 :]


Change = Callable[[str, random.Random], str]
CHARACTERS: Mapping[str, tuple[Change, ...]] = {
    "characters": (swap, substitute, delete, insert),
    "bugs": (homoglyph, space, swap_inside, delete_inside),
}


def respelled(word: str, changes: Sequence[Change], number: int, rng: random.Random) -> list[str]:
    """Up to `number` different spellings, the changes taking turns; a change that finds nothing new passes."""
    if len(word) < 2:
        return []
    found: dict[str, None] = {}
    for turn in range(2 * number):
        new = changes[turn % len(changes)](word, rng)
        if new.strip() and new != word and len(found) < number:
            found.setdefault(new)
    return list(found)


@lru_cache(maxsize=100_000)
def apart(a: str, b: str) -> int:
    """Levenshtein's distance, in characters."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


def cost(word: str) -> int:
    """A word that was cut in two is two changes."""
    return max(1, len(word.split()))

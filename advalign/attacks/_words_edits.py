"""Substitutes of words from a file, and edits of their characters. Text is cut into words and the gaps between them."""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import chain, zip_longest

from advalign.attacks._stopwords import STOPWORDS
from advalign.attacks._tables import read_table

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
    """Whether a word may change: it has a letter and is not a stop word."""
    return any(c.isalpha() for c in word) and word.lower() not in UNTOUCHED


def cased(word: str, like: str) -> str:
    """`word` in upper case, capitalised or unchanged, as `like` is written."""
    if len(like) > 1 and like.isupper():
        return word.upper()
    return word[:1].upper() + word[1:] if like[:1].isupper() else word


@lru_cache(maxsize=4)
def read_lexicon(reference: str, path: str) -> Mapping[str, tuple[str, ...]]:
    """{word: substitutes} of a JSON object: word -> list, or word -> {part of speech: list}, which are interleaved. `path` names the field
    in an error."""
    return {word: _flat(word, entry) for word, entry in read_table(reference, path).items()}


def _flat(word: str, entry: Sequence[str] | Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    # No tagger decides which part of speech a word is: the lists take turns, so that each is represented under a cap.
    lists = entry.values() if isinstance(entry, dict) else [entry]
    turns = chain.from_iterable(zip_longest(*lists))
    return tuple(dict.fromkeys(w for w in turns if w is not None and w != word))


def synonyms(word: str, lexicon: Mapping[str, tuple[str, ...]], number: int) -> list[str]:
    """The first `number` substitutes of a word, cased as it is."""
    substitutes = lexicon.get(word) or lexicon.get(word.lower(), ())
    return [cased(w, word) for w in substitutes[:number]]


# ---------------------------------------------------------------------------------------- edits of characters


def swap(word: str, rng: random.Random) -> str:
    """Two neighbours change places."""
    i = rng.randrange(len(word) - 1)
    return word[:i] + word[i + 1] + word[i] + word[i + 2 :]


def swap_inside(word: str, rng: random.Random) -> str:
    """Two neighbours change places; the first and the last letter stay."""
    if len(word) < 4:
        return word
    return word[0] + swap(word[1:-1], rng) + word[-1]


def substitute(word: str, rng: random.Random) -> str:
    """One letter becomes a random one."""
    i = rng.randrange(len(word))
    return word[:i] + rng.choice(LETTERS) + word[i + 1 :]


def delete(word: str, rng: random.Random) -> str:
    """One letter less."""
    i = rng.randrange(len(word))
    return word[:i] + word[i + 1 :]


def delete_inside(word: str, rng: random.Random) -> str:
    """One letter less; the first and the last stay."""
    return word if len(word) < 3 else word[0] + delete(word[1:-1], rng) + word[-1]


def insert(word: str, rng: random.Random) -> str:
    """One random letter more."""
    i = rng.randrange(len(word) + 1)
    return word[:i] + rng.choice(LETTERS) + word[i:]


def space(word: str, rng: random.Random) -> str:
    """A space inside the word."""
    i = rng.randrange(1, len(word))
    return word[:i] + " " + word[i:]


def homoglyph(word: str, rng: random.Random) -> str:
    """One letter becomes another that looks like it."""
    places = [i for i, c in enumerate(word) if c.lower() in ALIKE]
    if not places:
        return word
    i = rng.choice(places)
    return word[:i] + ALIKE[word[i].lower()] + word[i + 1 :]


Change = Callable[[str, random.Random], str]
CHARACTERS: Mapping[str, tuple[Change, ...]] = {
    "characters": (swap, substitute, delete, insert),
    "bugs": (homoglyph, space, swap_inside, delete_inside),
}


def respell(word: str, changes: Sequence[Change], number: int, rng: random.Random) -> list[str]:
    """Up to `number` different spellings, the changes taking turns; a change that gives nothing new is skipped."""
    if len(word) < 2:
        return []
    spellings: dict[str, None] = {}
    for turn in range(2 * number):
        new = changes[turn % len(changes)](word, rng)
        if new.strip() and new != word and len(spellings) < number:
            spellings.setdefault(new)
    return list(spellings)


@lru_cache(maxsize=100_000)
def distance(a: str, b: str) -> int:
    """Levenshtein distance, in characters."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


def cost(word: str) -> int:
    """Words of a substitute: one that was cut in two counts as two changes."""
    return max(1, len(word.split()))

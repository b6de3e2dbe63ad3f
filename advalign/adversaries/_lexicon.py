"""Files that list the substitutes of words."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from advalign import data
from advalign.errors import ConfigError

Lexicon = Mapping[str, tuple[str, ...]]


def read(reference: str, path: str) -> Lexicon:
    """{word: substitutes} of a JSON object, plain or .gz: word -> list of words, or word -> {part of speech: list}.

    Words without substitutes are left out. `path` names the field in an error."""
    file = Path(data.expand(reference))
    if not file.is_file():
        raise ConfigError(f"{path}: there is no file '{file}'; it takes a JSON object (plain or .gz) of word: [substitutes].")
    try:
        return _read(file, file.stat().st_mtime_ns)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path}: '{file}' cannot be read as JSON ({error}).") from error
    except _FormatError as error:
        raise ConfigError(f"{path}: in '{file}' {error}; it takes a JSON object of word: [substitutes].") from error


class _FormatError(Exception):
    """What is wrong with the content of a file."""


@lru_cache(maxsize=4)
def _read(file: Path, modified: int) -> Lexicon:
    content = file.read_bytes()
    table = json.loads(gzip.decompress(content) if file.suffix == ".gz" else content)
    if not isinstance(table, dict):
        raise _FormatError(f"there is a {type(table).__name__}")
    lexicon = {word: tuple(dict.fromkeys(w for w in _words(word, entry) if w != word)) for word, entry in table.items()}
    return {word: substitutes for word, substitutes in lexicon.items() if substitutes}


def _words(word: str, entry: Any) -> Iterator[str]:
    """Lists by part of speech take turns, because no tagger decides which part of speech a word is."""
    lists = list(entry.values()) if isinstance(entry, dict) else [entry]
    if not all(isinstance(words, list) and all(isinstance(w, str) for w in words) for words in lists):
        raise _FormatError(f"the entry '{word}' is not a list of words")
    for turn in range(max(map(len, lists), default=0)):
        yield from (words[turn] for words in lists if turn < len(words))

"""The corpus behind the task `sentences`: its sentences, which words they can be asked for by, and on which side each one is."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from advalign import data as loading
from advalign.errors import ConfigError, unknown
from advalign.tasks._common import hashed

WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
SENTENCE = re.compile(r"[^.!?\n]+[.!?]")
QUOTED = re.compile(r"[\"“”«»()\[\]{}<>|*_#]")
COLUMNS = ("text", "story", "sentence", "response", "completion", "output")
Asked = tuple[tuple[str, ...], int]


def spelled(text: str) -> list[str]:
    """Words in lower case, as they are compared; "dog's" is one, and is not "dog"."""
    return WORD.findall(text.lower())


def one_sentence(text: str) -> bool:
    return SENTENCE.fullmatch(text.strip()) is not None


def split(texts: Iterable[str], shortest: int, longest: int) -> list[str]:
    """Distinct sentences of these lengths, without quotations and brackets, in the order of the texts."""
    found: dict[str, None] = {}
    for text in texts:
        for piece in re.split(r"(?<=[.!?])[\"”'’]*\s+", text):
            plain = " ".join(piece.split())
            if shortest <= len(plain.split()) <= longest and one_sentence(plain) and not QUOTED.search(plain):
                found[plain] = None
    return list(found)


def texts_of(data: Any) -> list[str]:
    """One text per row of a reference."""
    rows = loading.rows(data)
    if not rows:
        raise ConfigError(f"tasks.sentences.data: {data} has no rows.")
    column = next((name for name in COLUMNS if name in rows[0]), None)
    if column is None:
        raise unknown("tasks.sentences.data", "column of texts", next(iter(rows[0])), COLUMNS)
    return [str(row[column]) for row in rows]


@dataclass
class Corpus:
    """`words` can be asked for; `index` {(held out?, word): sentences}; `asked` {split: (words, limit), each once}."""

    sentences: list[str]
    words: list[str]
    index: dict[tuple[bool, str], set[int]] = field(default_factory=dict)
    spoken: list[frozenset[str]] = field(default_factory=list)
    asked: dict[str, list[Asked]] = field(default_factory=dict)

    def that_meet(self, words: Sequence[str], limit: int, held: bool) -> list[str]:
        """Sentences of one side with all `words` and at most `limit` words, in corpus order."""
        return [s for s in (self.sentences[i] for i in sorted(self._with(words, held))) if len(s.split()) <= limit]

    def beside(self, words: Sequence[str], held: bool) -> list[str]:
        """Words that stand with all of `words` in some sentence of that side."""
        return sorted({other for i in self._with(words, held) for other in self.spoken[i]} - set(words))

    def _with(self, words: Sequence[str], held: bool) -> set[int]:
        places = [self.index.get((held, word), set()) for word in words]
        return set.intersection(*places) if places else {i for (side, _), found in self.index.items() if side == held for i in found}


def build(options: Mapping[str, Any]) -> Corpus:
    """`options`: the fields of the task."""
    sentences = split(texts_of(options["data"]), options["shortest"], options["longest"])
    counts = Counter(word for sentence in sentences for word in spelled(sentence))
    first, last = options["ranks"]
    words = sorted(counts, key=lambda word: (-counts[word], word))[first:last]
    corpus, allowed, number = Corpus(sentences, words), set(words), options["num_words"]
    found: dict[str, set[Asked]] = {"train": set(), "test": set(), "ood": set()}
    for i, sentence in enumerate(sentences):
        own = frozenset(spelled(sentence)) & allowed
        corpus.spoken.append(own)
        ranked = sorted(own, key=lambda word: hashed(f"{sentence}/{word}"))
        if len(ranked) < number:
            continue
        asked = tuple(sorted(ranked[:number]))
        held = hashed(" ".join(asked)) < options["held_out"]
        for word in own:
            corpus.index.setdefault((held, word), set()).add(i)
        limit = len(sentence.split()) + int(hashed(sentence) * (options["slack"] + 1))
        found["test" if held else "train"].add((asked, limit))
        if held and len(ranked) > number:
            found["ood"].add((tuple(sorted(ranked[: number + 1])), limit))
    corpus.asked = {name: sorted(those) for name, those in found.items()}
    if not all(corpus.asked.values()):
        sizes = ", ".join(f"{name} {len(those)}" for name, those in corpus.asked.items())
        raise ConfigError(
            f"tasks.sentences.data: {len(sentences)} sentences of {options['data']} give too few prompts ({sizes}); "
            "more text, or wider ranks."
        )
    return corpus

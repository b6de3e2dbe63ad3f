"""The corpus behind the task `sentences`: its sentences, which words they can be asked for by, and in which split each one is."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from advalign import data as loading
from advalign.errors import ConfigError, unknown
from advalign.tasks._common import hash_fraction

WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
SENTENCE = re.compile(r"[^.!?\n]+[.!?]")
QUOTED = re.compile(r"[\"“”«»()\[\]{}<>|*_#]")
COLUMNS = ("text", "story", "sentence", "response", "completion", "output")
Request = tuple[tuple[str, ...], int]
"""The words that a prompt asks for, and its limit of words."""


def words_of(text: str) -> list[str]:
    """Words in lower case, as they are compared; "dog's" is one, and is not "dog"."""
    return WORD.findall(text.lower())


def one_sentence(text: str) -> bool:
    return SENTENCE.fullmatch(text.strip()) is not None


def split_sentences(texts: Iterable[str], shortest: int, longest: int) -> list[str]:
    """Distinct sentences of these lengths, without quotations and brackets, in the order of the texts."""
    sentences: dict[str, None] = {}
    for text in texts:
        for piece in re.split(r"(?<=[.!?])[\"”'’]*\s+", text):
            sentence = " ".join(piece.split())
            if shortest <= len(sentence.split()) <= longest and one_sentence(sentence) and not QUOTED.search(sentence):
                sentences[sentence] = None
    return list(sentences)


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
    """The sentences of a corpus, indexed by the words that can be asked for."""

    sentences: list[str]
    """All of them, in the order of the texts."""
    words: list[str]
    """The words that can be asked for."""
    index: dict[tuple[bool, str], set[int]] = field(default_factory=dict)
    """{(held out, word): numbers of the sentences with it}"""
    words_by_sentence: list[frozenset[str]] = field(default_factory=list)
    """Of `words`, those in each sentence."""
    requests: dict[str, list[Request]] = field(default_factory=dict)
    """{split: what can be asked for, each once}"""

    def meeting(self, words: Sequence[str], limit: int, held_out: bool) -> list[str]:
        """Sentences of one side with all `words` and at most `limit` words, in corpus order."""
        return [s for s in (self.sentences[i] for i in sorted(self._with(words, held_out))) if len(s.split()) <= limit]

    def co_occurring(self, words: Sequence[str], held_out: bool) -> list[str]:
        """Words that are with all of `words` in some sentence of that side."""
        return sorted({other for i in self._with(words, held_out) for other in self.words_by_sentence[i]} - set(words))

    def _with(self, words: Sequence[str], held_out: bool) -> set[int]:
        by_word = [self.index.get((held_out, word), set()) for word in words]
        if by_word:
            return set.intersection(*by_word)
        return {i for (side, _), numbers in self.index.items() if side == held_out for i in numbers}


def build_corpus(options: Mapping[str, Any]) -> Corpus:
    """`options`: the fields of the task."""
    sentences = split_sentences(texts_of(options["data"]), options["shortest"], options["longest"])
    counts = Counter(word for sentence in sentences for word in words_of(sentence))
    first, last = options["ranks"]
    words = sorted(counts, key=lambda word: (-counts[word], word))[first:last]
    corpus, allowed, number = Corpus(sentences, words), set(words), options["num_words"]
    requests: dict[str, set[Request]] = {"train": set(), "test": set(), "ood": set()}
    for i, sentence in enumerate(sentences):
        candidates = frozenset(words_of(sentence)) & allowed
        corpus.words_by_sentence.append(candidates)
        ranked = sorted(candidates, key=lambda word: hash_fraction(f"{sentence}/{word}"))
        if len(ranked) < number:
            continue
        wanted = tuple(sorted(ranked[:number]))
        held_out = hash_fraction(" ".join(wanted)) < options["held_out"]
        for word in candidates:
            corpus.index.setdefault((held_out, word), set()).add(i)
        limit = len(sentence.split()) + int(hash_fraction(sentence) * (options["slack"] + 1))
        requests["test" if held_out else "train"].add((wanted, limit))
        if held_out and len(ranked) > number:
            requests["ood"].add((tuple(sorted(ranked[: number + 1])), limit))
    corpus.requests = {name: sorted(distinct) for name, distinct in requests.items()}
    if not all(corpus.requests.values()):
        sizes = ", ".join(f"{name} {len(distinct)}" for name, distinct in corpus.requests.items())
        raise ConfigError(
            f"tasks.sentences.data: {len(sentences)} sentences of {options['data']} give too few prompts ({sizes}); "
            "more text, or wider ranks."
        )
    return corpus

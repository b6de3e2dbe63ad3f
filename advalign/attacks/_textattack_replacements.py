"""Offline replacements of what TextAttack's recipes would download. Imported by `_textattack_adapter` only."""

import contextlib
import functools
import math
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import transformers
from jaxtyping import Float
from textattack.constraints.semantics.sentence_encoders import SentenceEncoder
from textattack.shared import AbstractWordEmbedding, AttackedText
from textattack.shared.data import NAMED_ENTITIES, PERSON_NAMES
from textattack.transformations import WordSwapMaskedLM
from textattack.transformations.word_swaps import WordSwap, WordSwapHomoglyphSwap
from torch import Tensor

from advalign.attacks._parts_of_speech import agree, tags_of
from advalign.attacks._pretrained import load_pretrained
from advalign.attacks._stopwords import STOPWORDS
from advalign.attacks._textattack_patches import patched


class Substitutes(AbstractWordEmbedding):
    """A lexicon as a word embedding: the neighbours of a word are its substitutes, in their order, and are within every distance; all
    other words are at an infinite distance."""

    def __init__(self, words: Mapping[str, Sequence[str]]) -> None:
        self._words = words
        self._names = list(dict.fromkeys([*words, *(w for near in words.values() for w in near)]))
        self._index = {word: i for i, word in enumerate(self._names)}

    def _name(self, index: str | int) -> str:
        return index if isinstance(index, str) else self._names[index]

    def _near(self, a: str | int, b: str | int) -> bool:
        one, other = self._name(a), self._name(b)
        return one == other or other in self._words.get(one, ()) or one in self._words.get(other, ())

    def __getitem__(self, index: str | int) -> None:
        return None

    def get_mse_dist(self, a: str | int, b: str | int) -> float:
        return 0.0 if self._near(a, b) else math.inf

    def get_cos_sim(self, a: str | int, b: str | int) -> float:
        return 1.0 if self._near(a, b) else 0.0

    def word2index(self, word: str) -> int:
        return self._index[word]

    def index2word(self, index: int) -> str:
        return self._names[index]

    def nearest_neighbours(self, index: str | int, topn: int) -> list[int]:
        return [self._index[w] for w in self._words.get(self._name(index), ())[:topn]]


class SynonymSwap(WordSwap):
    """WordNet's synonyms from a file: `WordSwapWordNet` without nltk's data."""

    words: Mapping[str, Sequence[str]] = types.MappingProxyType({})

    def __init__(self, language: str = "eng", **kwargs: Any) -> None:
        super().__init__(**kwargs)

    def _get_replacement_words(self, word: str) -> list[str]:
        synonyms = self.words.get(word) or self.words.get(word.lower(), ())
        return [w.capitalize() if word[:1].isupper() and word[1:].islower() else w for w in synonyms]


class HomoglyphSwap(WordSwapHomoglyphSwap):
    """The released wheel lacks the table of intentional homoglyphs: its own one-to-one table is used for both."""

    def __init__(self, **kwargs: Any) -> None:
        try:
            super().__init__(**kwargs)
        except FileNotFoundError:
            self.homos_intentional = {key: [value] for key, value in self.homos.items()}


class Tags:
    """Parts of speech by lookup, in place of a tagger."""

    def __init__(self, tags: Mapping[str, frozenset[str]]) -> None:
        self._tags = tags

    def __call__(self, word: str) -> frozenset[str]:
        return tags_of(self._tags, word)

    def constrain(self, constraint: Any) -> None:
        """`constraint` (a PartOfSpeech) reads this table instead of a tagger."""
        constraint._get_pos = lambda before, word, after: self(word)
        constraint._can_replace_pos = functools.partial(agree, verb_is_noun=constraint.allow_verb_noun_swap)

    def tag_at(self, text: Any, index: int) -> str:
        """One tag, in the words of flair's tagger (CLARE merges by it)."""
        names = {"n": "NOUN", "v": "VERB", "a": "ADJ", "r": "ADV"}
        tags = self(text.words[index])
        return next((name for letter, name in names.items() if letter in tags), "X")


@functools.lru_cache(maxsize=2)
def _encoder(path: str) -> tuple[Any, Any]:
    return load_pretrained(transformers.AutoModel, path, "attacks.textattack.encoder")


class SentenceEncoderAdapter(SentenceEncoder):
    """Mean of a transformer's last hidden states, in place of the Universal Sentence Encoder and of SBERT.

    A sentence is encoded once per example: TextAttack sends the reference again with every candidate. Where texts shorter than
    the window pass anyway, none is encoded: TextAttack encodes them and throws the number away.
    """

    path = ""
    """Where the transformer is loaded from."""
    similarity: float | None = None
    """In place of the recipe's threshold; None: the recipe's."""

    def __init__(self, threshold: float = 0.8, large: bool = False, metric: str = "angular", model_name: str = "", **kwargs: Any) -> None:
        super().__init__(threshold=threshold if self.similarity is None else self.similarity, metric=metric, **kwargs)
        self.vectors: dict[str, Tensor] = {}
        self.num_encoded = 0

    def clear_cache(self) -> None:
        self.vectors.clear()

    def _check_constraint_many(self, transformed_texts: Sequence[Any], reference_text: Any) -> Any:
        if self.skip_text_shorter_than_window and all(len(text.words) < self.window_size for text in transformed_texts):
            for text in transformed_texts:
                text.attack_attrs["similarity_score"] = 1.0
            return list(transformed_texts)
        return super()._check_constraint_many(transformed_texts, reference_text)

    @torch.no_grad()
    def encode(self, sentences: Sequence[str]) -> Float[Tensor, "B D"]:
        tokenizer, model = _encoder(self.path)
        new = sorted((s for s in dict.fromkeys(sentences) if s not in self.vectors), key=len)
        self.num_encoded += len(new)
        for start in range(0, len(new), 32):
            part = new[start : start + 32]
            batch = tokenizer(part, padding=True, truncation=True, return_tensors="pt").to(model.device)
            mask = batch["attention_mask"].unsqueeze(-1)
            means = (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
            self.vectors.update(zip(part, means, strict=True))
        return torch.stack([self.vectors[sentence] for sentence in sentences])


class Entities:
    """Named entities by lookup, in the tags of flair: S-PER alone, B-, I-, E- in a run of one type, O for no entity."""

    def __init__(self, table: Mapping[str, str] | None) -> None:
        """`table`: word -> PER, LOC, ...; without it a capitalised word is looked up in TextAttack's own lists of names and of places."""
        self._types = table

    def type_of(self, word: str) -> str:
        """PER, LOC, ..., or "" where the word is not an entity."""
        if self._types is not None:
            return self._types.get(word) or self._types.get(word.lower(), "")
        if not word[:1].isupper() or word.lower() in STOPWORDS:
            return ""
        # Places first: many are names as well.
        tables = (("LOC", NAMED_ENTITIES, ("country", "nationality", "city")), ("PER", PERSON_NAMES, ("first", "last")))
        name = word if word[1:].islower() else word.capitalize()
        return next((kind for kind, table, lists in tables if any(name in _listed(tuple(table[x])) for x in lists)), "")

    def tag_at(self, text: Any, index: int, model_name: str = "ner") -> Any:
        """The tag of one word, as flair's tagger returns it."""
        kind = self.type_of(text.words[index])
        if not kind:
            return types.SimpleNamespace(value="O", score=1.0)
        before = index > 0 and self.type_of(text.words[index - 1]) == kind
        after = index + 1 < len(text.words) and self.type_of(text.words[index + 1]) == kind
        place = {(False, False): "S", (False, True): "B", (True, True): "I", (True, False): "E"}[before, after]
        return types.SimpleNamespace(value=f"{place}-{kind}", score=1.0)


@functools.lru_cache(maxsize=8)
def _listed(names: tuple[str, ...]) -> frozenset[str]:
    return frozenset(names)


@contextlib.contextmanager
def tagged(tags: Mapping[str, frozenset[str]] | None, entities: Mapping[str, str] | None) -> Iterator[None]:
    """Inside, TextAttack's texts look parts of speech and named entities up instead of calling flair."""
    methods: dict[str, Any] = {"ner_of_word_index": Entities(entities).tag_at}
    if tags is not None:
        methods["pos_of_word_index"] = Tags(tags).tag_at
    with patched(AttackedText, **{name: _method(look_up) for name, look_up in methods.items()}):
        yield


def _method(look_up: Any) -> Any:
    return lambda text, index, *rest: look_up(text, index, *rest)


def masked_swap(path: str, **kwargs: Any) -> Any:
    """TextAttack's swap by a masked language model, with the model at `path`."""
    arguments: dict[str, Any] = {"masked_language_model": path, **kwargs}
    if isinstance(name := arguments["masked_language_model"], str):
        loaded = load_pretrained(transformers.AutoModelForMaskedLM, name, "attacks.textattack.masked_lm")
        arguments["tokenizer"], arguments["masked_language_model"] = loaded
    return WordSwapMaskedLM(**arguments)


def unpad(transformation: Any) -> None:
    """A masked language model reads texts padded to the longest of a call; TextAttack pads each to 512 tokens."""
    for part in getattr(transformation, "transformations", [transformation]):
        if hasattr(part, "_lm_tokenizer"):
            part._encode_text = functools.partial(_encoded, part)


def _encoded(part: Any, text: Any) -> Any:
    batch = part._lm_tokenizer(text, max_length=part.max_length, truncation=True, padding=True, return_tensors="pt")
    return batch.to(part._language_model.device)

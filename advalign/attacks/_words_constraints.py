"""What an edited text must keep, and the models that say so: parts of speech, similarity of sentences, substitutes in context."""

import gzip
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import torch
import transformers
from torch import Tensor

from advalign.attacks._textattack_support import model_path
from advalign.errors import ConfigError, unknown

ENDINGS = ("", "s", "es", "d", "ed", "ing", "r", "er", "st", "est", "ly")
CACHED = 50_000  # sentences; at 384 numbers each 77 MB


@dataclass(frozen=True, kw_only=True)
class WordConstraints:
    """tags: JSON of word -> {part of speech: ...}: a substitute must be able to be what the word can be; one that is not listed may.
    verb_is_noun: a noun may stand for a verb. encoder: sentence encoder (folder, hub id or package:module/folder), mean of the last
    hidden states; cosine >= similarity to the original text, or `against` the "previous" one, in a window of so many words around
    the change (shorter texts pass), None: whole texts. An angular threshold a is the cosine cos(pi (1 - a)).
    characters: at most so many edits of characters in all. at_least: so many words may change however short the text is."""

    tags: str | None = None
    verb_is_noun: bool = True
    encoder: str | None = None
    similarity: float = 0.8
    window: int | None = None
    against: str = "original"
    characters: int | None = None
    at_least: int = 0

    def __post_init__(self) -> None:
        if self.against not in ("original", "previous"):
            raise unknown("attacks.constraints.against", "text", self.against, ("original", "previous"))
        if not -1 <= self.similarity <= 1 or (self.window is not None and self.window < 2) or self.at_least < 0:
            raise ConfigError(
                f"attacks.constraints: similarity {self.similarity}, window {self.window}, at_least {self.at_least} given; "
                "similarity is in [-1, 1], a window has at least 2 words, at_least is no less than 0."
            )

    @classmethod
    def of(cls, given: Self | Mapping[str, Any]) -> Self:
        """From the mapping that a configuration holds."""
        if not isinstance(given, Mapping):
            return given
        known = [f.name for f in fields(cls)]
        for name in given:
            if name not in known:
                raise unknown("attacks.constraints", "constraint", name, known)
        return cls(**given)

    def agrees(self, word: str, substitute: str) -> bool:
        """Whether both words can be the same part of speech."""
        if self.tags is None:
            return True
        table = tags(self.tags)
        return agree(parts(table, word), parts(table, substitute), verb_is_noun=self.verb_is_noun)


# ------------------------------------------------------------------------------------------- parts of speech


@lru_cache(maxsize=4)
def tags(given: str) -> Mapping[str, frozenset[str]]:
    """{word: parts of speech} of a JSON object, word -> {part of speech: ...}."""
    path = Path(given).expanduser()
    if not path.is_file():
        raise ConfigError(f"attacks.constraints.tags: there is no file {path}; a JSON file (plain or .gz) is needed.")
    content = path.read_bytes()
    table = json.loads(gzip.decompress(content) if path.suffix == ".gz" else content)
    if not isinstance(table, dict) or not all(isinstance(entry, dict) for entry in table.values()):
        raise ConfigError(f"attacks.constraints.tags: {path} holds no JSON object of word -> {{part of speech: words}}.")
    return {word: frozenset(entry) for word, entry in table.items()}


def parts(table: Mapping[str, frozenset[str]], word: str) -> frozenset[str]:
    """What a word can be, by itself or by its stem; nothing where it is not listed."""
    word = word.lower()
    for ending in ENDINGS:
        if word.endswith(ending) and (found := table.get(word[: len(word) - len(ending)])):
            return found
    return frozenset()


def agree(a: frozenset[str], b: frozenset[str], *, verb_is_noun: bool) -> bool:
    """Unknown words agree with all."""
    swap = verb_is_noun and bool(a & {"n", "v"}) and bool(b & {"n", "v"})
    return not a or not b or bool(a & b) or swap


# --------------------------------------------------------------------------------------------------- windows


def window(words: Sequence[str], texts: Sequence[str], place: int, size: int) -> str:
    """`size` words around word number `place`, with what stands between them. `texts`: [gap, word, gap, ..., word, gap]."""
    half, n = (size - 1) / 2, len(words)
    if place - half < 0:
        start, end = 0, min(size, n) - 1
    elif place + half >= n:
        start, end = max(0, n - size), n - 1
    else:
        start, end = place - math.ceil(half), place + math.floor(half)
    return "".join(texts[2 * start + 1 : 2 * end + 2])


# ---------------------------------------------------------------------------------------------------- models


class Similarity:
    """Unit vectors of sentences; each is encoded once, in batches of similar length."""

    def __init__(self, given: str) -> None:
        path = model_path(given, "attacks.constraints.encoder")
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        self.model = transformers.AutoModel.from_pretrained(path).eval()
        self.known: dict[str, Tensor] = {}
        self.num_encoded = 0

    def cosines(self, pairs: Sequence[tuple[str, str]], device: torch.device | str = "cpu") -> list[float]:
        if len(self.known) > CACHED:
            self.known.clear()
        self._encode([text for text in dict.fromkeys(t for pair in pairs for t in pair) if text not in self.known], device)
        if not pairs:
            return []
        first, second = (torch.stack([self.known[pair[i]] for pair in pairs]) for i in (0, 1))
        return (first * second).sum(1).tolist()

    @torch.inference_mode()
    def _encode(self, texts: Sequence[str], device: torch.device | str) -> None:
        self.num_encoded += len(texts)
        model = self.model.to(device)
        for rows, batch in batches(self.tokenizer, texts, device):
            mask = batch["attention_mask"].unsqueeze(-1)
            hidden = model(**batch).last_hidden_state
            vectors = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
            self.known.update((texts[i], v) for i, v in zip(rows, vectors.double().cpu(), strict=True))


class MaskedLM:
    """The words a masked language model would put in the place of its mask token, the likeliest first."""

    def __init__(self, given: str) -> None:
        path = model_path(given, "attacks.masked_lm")
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        self.model = transformers.AutoModelForMaskedLM.from_pretrained(path).eval()
        self.mask: str = self.tokenizer.mask_token
        names = self.tokenizer.convert_ids_to_tokens(list(range(len(self.tokenizer))))
        marked = sum(name.startswith("Ġ") for name in names) > len(names) / 4
        self.words = [_word(name, marked) for name in names]
        self.allowed = torch.tensor([bool(word) for word in self.words])
        self.known: dict[tuple[str, int], list[str]] = {}

    def fill(self, texts: Sequence[str], number: int, device: torch.device | str = "cpu") -> list[list[str]]:
        if len(self.known) > CACHED:
            self.known.clear()
        new = [text for text in dict.fromkeys(texts) if (text, number) not in self.known]
        model = self.model.to(device)
        with torch.inference_mode():
            for rows, batch in batches(self.tokenizer, new, device):
                for i, ids in zip(rows, self._best(model, batch, number), strict=True):
                    self.known[new[i], number] = [self.words[k] for k in ids]
        return [self.known[text, number] for text in texts]

    def _best(self, model: Any, batch: Mapping[str, Tensor], number: int) -> list[list[int]]:
        here = batch["input_ids"] == self.tokenizer.mask_token_id
        there = here.any(1).tolist()  # a mask beyond the model's length was cut off
        head = next((getattr(model, name) for name in ("cls", "lm_head") if hasattr(model, name)), None)
        # The head costs as much as the encoder: it reads the masked position alone.
        at = here.int().argmax(1)
        rows = torch.arange(len(at), device=at.device)
        logits = model(**batch).logits[rows, at] if head is None else head(model.base_model(**batch).last_hidden_state[rows, at])
        scores = logits[:, : len(self.words)].masked_fill(~self.allowed.to(logits.device), -math.inf)
        found = scores.topk(min(number, int(self.allowed.sum()))).indices.tolist()
        return [ids if known else [] for ids, known in zip(found, there, strict=True)]


def _word(name: str, marked: bool) -> str:
    """The whole word that a token stands for, or nothing."""
    if marked != name.startswith("Ġ") or name.startswith("##"):
        return ""
    name = name.removeprefix("Ġ").removeprefix("▁")
    return name if name.replace("'", "").replace("-", "").isalpha() else ""


def batches(tokenizer: Any, texts: Sequence[str], device: torch.device | str) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """(indices, tokens) of batches, the longest texts first, each padded to its own longest."""
    if not texts:
        return
    # On a processor a token costs least in small batches, whose hidden states stay in its cache.
    tokens = 512 if torch.device(device).type == "cpu" else 16_384
    rows = tokenizer(list(texts), truncation=True)["input_ids"]
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    while order:
        number = max(1, tokens // len(rows[order[0]]))
        part, order = order[:number], order[number:]
        batch = tokenizer.pad({"input_ids": [rows[i] for i in part]}, padding=True, return_tensors="pt")
        yield part, {name: x.to(device) for name, x in batch.items()}


@lru_cache(maxsize=2)
def similarity(given: str) -> Similarity:
    return Similarity(given)


@lru_cache(maxsize=2)
def masked_lm(given: str) -> MaskedLM:
    return MaskedLM(given)

"""Models that attacks on words use: similarity of sentences, and substitutes in context."""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
import transformers
from torch import Tensor

from advalign.attacks._pretrained import load_pretrained

CACHED = 50_000  # sentences; at 384 numbers each 77 MB


class Similarity:
    """Unit vectors of sentences; each is encoded once, in batches of similar length."""

    def __init__(self, reference: str) -> None:
        self.tokenizer, self.model = load_pretrained(transformers.AutoModel, reference, "attacks.constraints.encoder")
        self.vectors: dict[str, Tensor] = {}
        self.num_encoded = 0

    def cosines(self, pairs: Sequence[tuple[str, str]], device: torch.device | str = "cpu") -> list[float]:
        """The cosine similarity of each pair of texts."""
        if len(self.vectors) > CACHED:
            self.vectors.clear()
        self._encode([text for text in dict.fromkeys(t for pair in pairs for t in pair) if text not in self.vectors], device)
        if not pairs:
            return []
        first, second = (torch.stack([self.vectors[pair[i]] for pair in pairs]) for i in (0, 1))
        return (first * second).sum(1).tolist()

    @torch.inference_mode()
    def _encode(self, texts: Sequence[str], device: torch.device | str) -> None:
        self.num_encoded += len(texts)
        model = self.model.to(device)
        for rows, batch in batches(self.tokenizer, texts, device):
            mask = batch["attention_mask"].unsqueeze(-1)
            hidden = model(**batch).last_hidden_state
            vectors = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
            self.vectors.update((texts[i], v) for i, v in zip(rows, vectors.double().cpu(), strict=True))


class MaskedLM:
    """The words a masked language model puts in the place of its mask token, the likeliest first."""

    def __init__(self, reference: str) -> None:
        self.tokenizer, self.model = load_pretrained(transformers.AutoModelForMaskedLM, reference, "attacks.masked_lm")
        self.mask: str = self.tokenizer.mask_token
        names = self.tokenizer.convert_ids_to_tokens(list(range(len(self.tokenizer))))
        marked = sum(name.startswith("Ġ") for name in names) > len(names) / 4
        self.words = [_word(name, marked) for name in names]
        self.allowed = torch.tensor([bool(word) for word in self.words])
        self.filled: dict[tuple[str, int], list[str]] = {}

    def fill(self, texts: Sequence[str], number: int, device: torch.device | str = "cpu") -> list[list[str]]:
        """The `number` likeliest words at the mask of each text."""
        if len(self.filled) > CACHED:
            self.filled.clear()
        new = [text for text in dict.fromkeys(texts) if (text, number) not in self.filled]
        model = self.model.to(device)
        with torch.inference_mode():
            for rows, batch in batches(self.tokenizer, new, device):
                for i, ids in zip(rows, self._best(model, batch, number), strict=True):
                    self.filled[new[i], number] = [self.words[k] for k in ids]
        return [self.filled[text, number] for text in texts]

    def _best(self, model: Any, batch: Mapping[str, Tensor], number: int) -> list[list[int]]:
        is_mask = batch["input_ids"] == self.tokenizer.mask_token_id
        has_mask = is_mask.any(1).tolist()  # a mask beyond the model's length was cut off
        head = next((getattr(model, name) for name in ("cls", "lm_head") if hasattr(model, name)), None)
        # The head costs as much as the encoder: it reads the masked position alone.
        place = is_mask.int().argmax(1)
        rows = torch.arange(len(place), device=place.device)
        logits = model(**batch).logits[rows, place] if head is None else head(model.base_model(**batch).last_hidden_state[rows, place])
        scores = logits[:, : len(self.words)].masked_fill(~self.allowed.to(logits.device), -math.inf)
        best = scores.topk(min(number, int(self.allowed.sum()))).indices.tolist()
        return [ids if masked else [] for ids, masked in zip(best, has_mask, strict=True)]


def _word(name: str, marked: bool) -> str:
    """The whole word of a token, or ""."""
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
def similarity(reference: str) -> Similarity:
    """The sentence encoder of a reference, loaded once."""
    return Similarity(reference)


@lru_cache(maxsize=2)
def masked_lm(reference: str) -> MaskedLM:
    """The masked language model of a reference, loaded once."""
    return MaskedLM(reference)

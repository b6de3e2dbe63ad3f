"""Suffixes of prompts as token ids that mean the same as text: what is decoded and encoded again must come back."""

import random
from collections.abc import Sequence
from typing import Any

from jaxtyping import Int
from torch import Tensor

from advalign.errors import ConfigError

Suffix = tuple[int, ...]


class Places:
    """Where a suffix lies among the ids of `prompt + suffix`, template included. `closed`: ids that are no text."""

    def __init__(self, encoder: Any) -> None:
        self.encoder = encoder
        tokenizer = encoder.tokenizer
        self.closed = sorted({i for i in tokenizer.all_special_ids if i is not None})
        self.size = len(tokenizer)
        # A byte-level token carries its own space; where the tokenizer drops spaces, words need one between them.
        self.space = "" if encoder.decode(tokenizer(" a", add_special_tokens=False)["input_ids"])[:1] == " " else " "

    def text(self, prompt: str, suffix: Suffix) -> str:
        return f"{prompt}{self.space}{self.encoder.decode(suffix)}"

    def surviving(self, prompt: str, found: Sequence[Suffix]) -> list[Suffix]:
        """Those whose text is encoded to the prompt, exactly these ids, and what the template puts behind."""
        bare = self.encoder.prompt(prompt)
        rows = self.encoder.prompts([self.text(prompt, s) for s in found]) if found else []
        return [s for s, ids in zip(found, rows, strict=True) if _place(bare, ids, s) is not None]

    def find(self, prompt: str, suffix: Suffix) -> int:
        """The position of the suffix's first token."""
        place = _place(self.encoder.prompt(prompt), self.encoder.prompt(self.text(prompt, suffix)), suffix)
        assert place is not None
        return place

    def anchor(self, prompt: str, suffix: Suffix) -> int:
        """The position of any suffix's first token. One suffix may be found too far back, where it begins like what the template puts
        behind it; the place that several have in common is the right one."""
        others = [s for i in range(self.size) if i not in set(self.closed) for s in [(i,)]][:32]
        return min(self.find(prompt, s) for s in (suffix, *self.surviving(prompt, others)))

    def first(self, prompt: str, initial: str, length: int, rng: random.Random) -> Suffix:
        """The tokens of `initial`, again and again up to `length`; where that does not survive, random tokens that do."""
        ids = self.encoder.tokenizer(self._spaced(initial), add_special_tokens=False)["input_ids"]
        start: Suffix = tuple((ids * length)[:length])
        if ids and self.surviving(prompt, [start]):
            return start
        open_ids = [i for i in range(self.size) if i not in set(self.closed)]
        kept: Suffix = ()
        for _ in range(200 * length):
            longer = (*kept, rng.choice(open_ids))
            kept = longer if self.surviving(prompt, [longer]) else kept
            if len(kept) == length:
                return kept
        raise ConfigError(f"attacks.tokens: no suffix of {length} tokens survives decoding and encoding with this tokenizer.")

    def _spaced(self, initial: str) -> str:
        return initial if self.space else f" {initial}"


def swapped(suffix: Suffix, options: Int[Tensor, "n k"], rng: random.Random) -> Suffix:
    """One position, uniform, becomes one of its options, uniform."""
    place = rng.randrange(len(suffix))
    new = int(options[place, rng.randrange(options.shape[1])])
    return (*suffix[:place], new, *suffix[place + 1 :])


def _place(bare: Sequence[int], ids: Sequence[int], suffix: Suffix) -> int | None:
    """`start` with ids = bare[:start] + suffix + bare[start:], the latest there is."""
    if len(ids) != len(bare) + len(suffix):
        return None
    for start in range(len(bare), -1, -1):
        if list(ids[:start]) == list(bare[:start]) and tuple(ids[start : start + len(suffix)]) == suffix:
            return start if list(ids[start + len(suffix) :]) == list(bare[start:]) else None
    return None


__all__ = ["Places", "Suffix", "swapped"]

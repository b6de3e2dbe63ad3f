"""Suffixes of prompts as token ids that survive decoding and encoding: the same ids must come back."""

import random
from collections.abc import Sequence

from jaxtyping import Int
from torch import Tensor

from advalign.errors import ConfigError
from advalign.models import Encoder
from advalign.types.messages import Prompt, attackable, with_attackable

Suffix = tuple[int, ...]


class SuffixEncoder:
    """Prompts with suffixes as text and as ids, the chat template included."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        tokenizer = encoder.tokenizer
        self.special_ids = sorted({*encoder.special_ids, *tokenizer.all_special_ids})
        self.vocabulary_size = len(tokenizer)
        # A byte-level token carries its own space; where the tokenizer drops spaces, words need one between them.
        self.space = "" if encoder.decode(tokenizer(" a", add_special_tokens=False)["input_ids"])[:1] == " " else " "

    def text(self, prompt: Prompt, suffix: Suffix) -> str:
        """The text of the prompt that an attack rewrites, with the suffix behind it. White space at its end that the chat template drops
        is dropped here."""
        text = attackable(prompt)
        if text != text.rstrip() and self._drops_space(prompt):
            text = text.rstrip()
        return f"{text}{self.space}{self.encoder.decode(suffix)}"

    def prompts(self, prompt: Prompt, suffixes: Sequence[Suffix]) -> list[list[int]]:
        """Ids of the prompt with each suffix."""
        return self.encoder.prompts([with_attackable(prompt, self.text(prompt, s)) for s in suffixes]) if suffixes else []

    def _drops_space(self, prompt: Prompt) -> bool:
        """Whether the chat template writes the prompt without the white space at the end of its text."""
        if self.encoder.template is None:
            return False
        bare = with_attackable(prompt, attackable(prompt).rstrip())
        return self.encoder.prompt(bare) == self.encoder.prompt(prompt)

    def survivors(self, prompt: Prompt, suffixes: Sequence[Suffix]) -> list[Suffix]:
        """The suffixes whose text is encoded to the prompt, exactly these ids, and the rest of the template."""
        ids = self.encoder.prompt(prompt)
        rows = self.prompts(prompt, suffixes)
        return [s for s, row in zip(suffixes, rows, strict=True) if _position(ids, row, s) is not None]

    def find(self, prompt: Prompt, suffix: Suffix) -> int:
        """The position of the suffix's first token."""
        position = _position(self.encoder.prompt(prompt), self.prompts(prompt, [suffix])[0], suffix)
        assert position is not None
        return position

    def anchor(self, prompt: Prompt, suffix: Suffix) -> int:
        """The position of any suffix's first token. `find` goes too far back where a suffix begins like the end of the template; the
        position that several suffixes have in common is the right one."""
        others = [s for i in range(self.vocabulary_size) if i not in set(self.special_ids) for s in [(i,)]][:32]
        return min(self.find(prompt, s) for s in (suffix, *self.survivors(prompt, others)))

    def initial(self, prompt: Prompt, text: str, length: int, rng: random.Random) -> Suffix:
        """The tokens of `text`, repeated up to `length`; where that does not survive, random tokens that do."""
        ids = self.encoder.tokenizer(text if self.space else f" {text}", add_special_tokens=False)["input_ids"]
        start: Suffix = tuple((ids * length)[:length])
        if ids and self.survivors(prompt, [start]):
            return start
        open_ids = [i for i in range(self.vocabulary_size) if i not in set(self.special_ids)]
        suffix: Suffix = ()
        for _ in range(200 * length):
            longer = (*suffix, rng.choice(open_ids))
            suffix = longer if self.survivors(prompt, [longer]) else suffix
            if len(suffix) == length:
                return suffix
        raise ConfigError(f"attacks.tokens: no suffix of {length} tokens survives decoding and encoding with this tokenizer.")


def swap_one(suffix: Suffix, options: Int[Tensor, "n k"], rng: random.Random) -> Suffix:
    """One position, uniform, becomes one of its options, uniform."""
    place = rng.randrange(len(suffix))
    new = int(options[place, rng.randrange(options.shape[1])])
    return (*suffix[:place], new, *suffix[place + 1 :])


def _position(prompt: Sequence[int], ids: Sequence[int], suffix: Suffix) -> int | None:
    """The latest `start` with ids = prompt[:start] + suffix + prompt[start:]."""
    if len(ids) != len(prompt) + len(suffix):
        return None
    for start in range(len(prompt), -1, -1):
        if list(ids[:start]) == list(prompt[:start]) and tuple(ids[start : start + len(suffix)]) == suffix:
            return start if list(ids[start + len(suffix) :]) == list(prompt[start:]) else None
    return None


__all__ = ["Suffix", "SuffixEncoder", "swap_one"]

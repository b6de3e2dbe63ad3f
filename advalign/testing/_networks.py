"""The models that a check runs: two blocks of 16 numbers, from scratch, over a hundred words."""

from __future__ import annotations

from collections.abc import Sequence

from advalign.models import Network, load
from advalign.types import Example

ADJECTIVES = ("good", "bad", "great", "dull", "fine", "poor")
NOUNS = ("movie", "plot", "actor", "scene", "story", "music")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def questions() -> list[Example]:
    """ "one plus two =" -> "three"; every example verifies its answer."""
    pairs = [(a, b) for a in range(6) for b in range(5)]
    return [_sum(a, b) for a, b in pairs]


def _sum(a: int, b: int) -> Example:
    answer = DIGITS[a + b]
    return Example(
        prompt=f"{DIGITS[a]} plus {DIGITS[b]} =",
        answer=answer,
        id=f"{a}+{b}",
        meta={"response": answer},
        verify=lambda text: float(text.strip() == answer),
    )


def reviews() -> list[Example]:
    """Short sentences with a label of two classes."""
    return [
        Example(prompt=f"the {noun} was really {adjective}", label=i % 2, id=f"{noun}/{adjective}")
        for noun in NOUNS
        for i, adjective in enumerate(ADJECTIVES)
    ]


def texts() -> list[str]:
    """Everything the tokenizers know."""
    return [text for e in questions() for text in (e.text, e.answer or "")] + [e.text for e in reviews()]


def network(head: str, *, dtype: str = "float32", extra: Sequence[str] = ()) -> Network:
    """An untrained model that reads the words of `texts` (and of `extra`)."""
    spec = "scratch:encoder-tiny?hidden_size=16" if head == "classifier" else "scratch:tiny-gpt2?n_embd=16"
    return load(spec, head=head, tokenizer={"kind": "words"}, texts=[*texts(), *extra], max_length=64, dtype=dtype)

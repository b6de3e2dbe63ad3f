"""Real texts made worse: negatives that differ from the positive in one place (perturbed responses)."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

NUMBER = re.compile(r"\d+")
OPERATOR = re.compile(r"(?<=\s)[-+*/](?=\s)|(?<=\d)[-+*/](?=\d)")


def numbers(text: str, rng: random.Random) -> str | None:
    """One number becomes another of as many digits, or its neighbour."""
    matches = list(NUMBER.finditer(text))
    if not matches:
        return None
    match = rng.choice(matches)
    width, value = len(match.group()), int(match.group())
    low, high = (10 ** (width - 1) if width > 1 else 0), 10**width - 1
    other = rng.choice([v for v in (value - 1, value + 1, rng.randint(low, high)) if v >= 0 and v != value] or [value + 1])
    return text[: match.start()] + str(other) + text[match.end() :]


def operators(text: str, rng: random.Random) -> str | None:
    """One of + - * / becomes another."""
    matches = list(OPERATOR.finditer(text))
    if not matches:
        return None
    match = rng.choice(matches)
    return text[: match.start()] + rng.choice([o for o in "+-*/" if o != match.group()]) + text[match.end() :]


def drop(text: str, rng: random.Random) -> str | None:
    """One word is left out."""
    words = text.split(" ")
    if len(words) < 2:
        return None
    index = rng.randrange(len(words))
    return " ".join(words[:index] + words[index + 1 :])


def repeat(text: str, rng: random.Random) -> str | None:
    """One word is repeated."""
    words = text.split(" ")
    index = rng.randrange(len(words))
    return " ".join(words[: index + 1] + words[index:])


def swap(text: str, rng: random.Random) -> str | None:
    """Two different words change places."""
    words = text.split(" ")
    pairs = [(i, j) for i in range(len(words)) for j in range(i + 1, len(words)) if words[i] != words[j]]
    if not pairs:
        return None
    i, j = rng.choice(pairs)
    words[i], words[j] = words[j], words[i]
    return " ".join(words)


def cut(text: str, rng: random.Random) -> str | None:
    """The end is missing."""
    words = text.split(" ")
    return " ".join(words[: rng.randrange(1, len(words))]) if len(words) > 1 else None


CORRUPTIONS: dict[str, Callable[[str, random.Random], str | None]] = {
    "numbers": numbers, "operators": operators, "drop": drop, "repeat": repeat, "swap": swap, "cut": cut,
}  # fmt: skip


def corrupt(
    text: str, kinds: Sequence[str], rng: random.Random, verify: Callable[[str], float] | None = None, tries: int = 8
) -> str | None:
    """`text` with one corruption of `kinds`, tried in a random order. A text that is still right by `verify` is not a negative, so it is
    drawn again; None where `tries` rounds give none."""
    for _ in range(tries):
        for kind in rng.sample(list(kinds), len(kinds)):
            corrupted = CORRUPTIONS[kind](text, rng)
            if corrupted is not None and corrupted != text and (verify is None or verify(corrupted) < 1):
                return corrupted
    return None

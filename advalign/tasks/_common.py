"""What the tasks share: a split that is a property of the prompt, and distinct draws from a large space."""

import hashlib
import random
from collections.abc import Iterator

from advalign.errors import ConfigError, unknown

SPLITS = ("train", "test", "ood")


def check_split(task: str, split: str) -> None:
    """Raises ConfigError for an unknown split."""
    if split not in SPLITS:
        raise unknown(f"tasks.{task}", "split", split, SPLITS)


def require(ok: bool, sentence: str) -> None:
    """Raises ConfigError with `sentence` unless `ok`."""
    if not ok:
        raise ConfigError(sentence)


def hash_fraction(key: str) -> float:
    """A number in [0, 1) that is a function of the text alone, so that a held-out set is the same for every seed."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def distinct_indices(space: int, rng: random.Random) -> Iterator[int]:
    """The numbers below `space`, each once, in random order; lazily where the space is too large to list."""
    if space <= 100_000:
        yield from rng.sample(range(space), space)
        return
    seen: set[int] = set()
    while len(seen) < space:
        number = rng.randrange(space)
        if number not in seen:
            seen.add(number)
            yield number

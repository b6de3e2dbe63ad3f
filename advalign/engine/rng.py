"""Random streams by name.

Every random choice of a run draws from a stream that is a function of (seed, purpose), never from shared state. A resumed run, another
split into micro-batches or another order of learners therefore draws the same numbers.
"""

from __future__ import annotations

import hashlib
import random

import torch


def seed_of(*key: object) -> int:
    """A seed of 63 bits that depends on every part of the key."""
    digest = hashlib.blake2b("\x1f".join(map(str, key)).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(*key: object) -> torch.Generator:
    """The stream of a key, for tensors."""
    return torch.Generator().manual_seed(seed_of(*key))


def rng(*key: object) -> random.Random:
    """The stream of a key, for choices on the host."""
    return random.Random(seed_of(*key))

"""Random streams by name. Every random choice in a run draws from a stream that is a function of (seed, what for), never
from shared state; so a resumed run, another batch split or another order of learners sees the same numbers."""

from __future__ import annotations

import hashlib
import random

import torch


def seed_of(*key: object) -> int:
    """63 bits that depend on every part of the key."""
    digest = hashlib.blake2b("\x1f".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(*key: object) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(*key))


def rng(*key: object) -> random.Random:
    return random.Random(seed_of(*key))

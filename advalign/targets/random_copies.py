"""Random copies of a row or a text: shared by the ensembles that vote and by the certificates about their votes."""

import math
import random
from collections.abc import Iterator, Sequence, Set
from itertools import combinations

import torch
from torch import Tensor

from advalign.checked import check
from advalign.engine.rng import generator, rng
from advalign.errors import ConfigError, unknown
from advalign.models import Network
from advalign.ranges import ProperFraction

BATCH_TOKENS = 8192
"""Padded tokens of one forward."""
BLOCK = 64
"""Copies whose noise is drawn together."""


def kept_sets(number: int, kept: int, copies: int, key: Sequence[object]) -> list[frozenset[int]]:
    """Sets of kept words: all of them where they are at most `copies`, else that many uniform ones."""
    if math.comb(number, kept) <= copies:
        return all_kept_sets(number, kept)
    return draw_kept_sets(number, kept, copies, rng(*key))


def draw_kept_sets(number: int, kept: int, copies: int, stream: random.Random) -> list[frozenset[int]]:
    """Independent uniform sets of `kept` of the words 0 ... number - 1."""
    return [frozenset(stream.sample(range(number), kept)) for _ in range(copies)]


def all_kept_sets(number: int, kept: int) -> list[frozenset[int]]:
    """Every set of `kept` of the words 0 ... number - 1."""
    return [frozenset(c) for c in combinations(range(number), kept)]


def mask_words(words: Sequence[str], kept: Set[int], mask: str) -> str:
    """The text with every word that is not kept replaced by the mask token."""
    return " ".join(word if i in kept else mask for i, word in enumerate(words))


def gaussian_noise(copies: int, shape: tuple[int, int], sigma: float, network: Network, key: Sequence[object]) -> Iterator[Tensor]:
    """Noise "N T D" of so many copies, in parts for one forward each.

    It is drawn in blocks of a fixed size, so that no result depends on how many copies are run at once.
    """
    dtype = torch.float64 if network.dtype == torch.float64 else torch.float32
    stream, at_once = generator(*key), max(1, BATCH_TOKENS // shape[0])
    for start in range(0, copies, BLOCK):
        block = sigma * torch.randn((BLOCK, *shape), generator=stream, dtype=dtype)
        yield from block[: copies - start].to(network.device).split(at_once)


def absolute_sigma(network: Network, sigma: float, relative_to: str, path: str) -> float:
    """Sigma in numbers of the embedding."""
    units = {"mean_embedding_norm": network.mean_embedding_norm, "absolute": lambda: 1.0}
    if relative_to not in units:
        raise unknown(f"{path}.relative_to", "unit", relative_to, units)
    if not sigma > 0:
        raise ConfigError(f"{path}.sigma: {sigma} given; the standard deviation of the noise is above 0.")
    return sigma * units[relative_to]()


def check_rate(rate: float, path: str) -> None:
    """Refuses a rate of masked words outside [0, 1)."""
    check(ProperFraction, rate, f"{path}.rate")


__all__ = [
    "absolute_sigma", "all_kept_sets", "check_rate", "draw_kept_sets", "gaussian_noise", "kept_sets", "mask_words",
]  # fmt: skip

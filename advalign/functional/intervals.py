"""Intervals and paired tests for rates and scores. Axes: N items (examples, prompts or seeds)."""

import math
from statistics import NormalDist

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def wilson(successes: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """(p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)   (Wilson 1927).

    Non-empty at 0 % and 100 %, where the normal interval vanishes. (0, 1) when nothing was observed.
    """
    assert 0 <= successes <= total
    assert 0 < confidence < 1
    if total == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    rate, scale = successes / total, 1 + z * z / total
    centre = (rate + z * z / (2 * total)) / scale
    half = z * math.sqrt(rate * (1 - rate) / total + z * z / (4 * total * total)) / scale
    # At the ends the formula is exact in algebra, not in floating point.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == total else min(1.0, centre + half)
    return low, high


def paired_bootstrap(
    first: Float[Tensor, "N"], second: Float[Tensor, "N"], *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """mean(first - second) and its percentile interval, items resampled in pairs   (Efron 1979).

    An item is what was drawn independently: an example, a prompt (averaged over its generations) or a seed.
    """
    difference = (first - second).double().cpu()
    count = difference.shape[0]
    assert count > 0
    generator = torch.Generator().manual_seed(seed)
    means, chunk = [], max(1, 2_000_000 // count)
    for start in range(0, resamples, chunk):
        index = torch.randint(count, (min(chunk, resamples - start), count), generator=generator)
        means.append(difference[index].mean(1))
    tail = (1 - confidence) / 2
    low, high = torch.cat(means).quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return difference.mean().item(), low, high


def mcnemar(first: Bool[Tensor, "N"], second: Bool[Tensor, "N"]) -> float:
    """Exact two-sided p value that two classifiers err equally often on the same items: Binomial(b + c, 1/2)   (McNemar 1947)."""
    only_first = int((first & ~second).sum())
    only_second = int((second & ~first).sum())
    discordant = only_first + only_second
    tail = sum(math.comb(discordant, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**discordant)


__all__ = ["mcnemar", "paired_bootstrap", "wilson"]

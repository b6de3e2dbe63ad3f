"""How the success of an attack grows with the number of attempts. Axes: P prompts, K numbers of attempts.

-log ASR(n) = a n^-b   (best-of-N jailbreaking, arXiv:2412.03556, section 4)
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor


def success_curve(broken: Int[Tensor, "P"], attempts: int, numbers: Sequence[int]) -> Float[Tensor, "P K"]:
    """1 - C(A - c, n) / C(A, n): the chance that one of n of a prompt's A attempts is among the c that broke it; unbiased for n
    attempts drawn anew   (the estimator of pass@k, arXiv:2107.03374, eq. 1)."""
    if not numbers or min(numbers) < 1 or max(numbers) > attempts:
        raise ValueError(f"scaling: numbers {list(numbers)} of {attempts} attempts given; each from 1 to {attempts}.")
    total = [math.comb(attempts, n) for n in numbers]
    rows = [[1 - math.comb(attempts - int(c), n) / t for n, t in zip(numbers, total, strict=True)] for c in broken]
    return torch.tensor(rows, dtype=torch.float64).reshape(len(rows), len(numbers))


def power_law(numbers: Sequence[int], rates: Float[Tensor, "K"]) -> tuple[float, float]:
    """(a, b) of log(-log ASR) = log a - b log n by least squares, over the rates strictly between 0 and 1; nan with fewer than two."""
    inside = (rates > 0) & (rates < 1)
    if int(inside.sum()) < 2:
        return math.nan, math.nan
    x = torch.tensor([math.log(n) for n in numbers], dtype=torch.float64)[inside]
    y = (-rates.double()[inside].log()).log()
    x_mean, y_mean = x.mean(), y.mean()
    slope = ((x - x_mean) * (y - y_mean)).sum() / ((x - x_mean) ** 2).sum()
    return float((y_mean - slope * x_mean).exp()), float(-slope)


def forecast(a: float, b: float, number: float) -> float:
    """ASR(n) = exp(-a n^-b)."""
    return math.exp(-a * number**-b)


def fit(
    broken: Int[Tensor, "P"],
    attempts: int,
    *,
    numbers: Sequence[int] | None = None,
    at: Sequence[int] = (),
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, tuple[float, float, float]]:
    """{"a", "b", "asr@n" for n of `at`}: the value and its percentile interval, prompts resampled   (Efron 1979).

    numbers: where the curve is fitted, by default the powers of two up to the attempts. Attempts on one prompt are not independent,
    so prompts are resampled. Resamples without a fit (no success, or only successes) are left out; where more than a tenth are, the
    interval is nan.
    """
    grid = list(numbers or [2**k for k in range(attempts.bit_length()) if 2**k <= attempts])
    curves = success_curve(broken, attempts, grid)
    names = ["a", "b", *(f"asr@{n}" for n in at)]

    def statistics(rates: Tensor) -> list[float]:
        a, b = power_law(grid, rates)
        return [a, b, *(forecast(a, b, n) for n in at)]

    point = statistics(curves.mean(0))
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(len(curves), (resamples, len(curves)), generator=generator)
    resampled = torch.tensor([statistics(curves[i].mean(0)) for i in index], dtype=torch.float64)
    resampled = resampled[~resampled.isnan().any(1)]
    if len(resampled) < 0.9 * resamples:
        return {name: (value, math.nan, math.nan) for name, value in zip(names, point, strict=True)}
    tails = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)
    low, high = resampled.quantile(tails, dim=0).tolist()
    return dict(zip(names, zip(point, low, high, strict=True), strict=True))


__all__ = ["fit", "forecast", "power_law", "success_curve"]

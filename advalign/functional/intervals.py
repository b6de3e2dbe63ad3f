"""Intervals and paired tests for rates and scores. Axes: N items (examples, prompts or seeds)."""

import math
from statistics import NormalDist

import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import t as student
from torch import Tensor


def wilson(successes: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """(p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)   (Wilson 1927).

    Non-empty at 0 % and 100 %, where the normal interval has no width. (0, 1) when nothing was observed.
    """
    assert 0 <= successes <= total
    assert 0 < confidence < 1
    if total == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    return _wilson(successes / total, total, z)


def _wilson(rate: float, total: float, z: float) -> tuple[float, float]:
    scale = 1 + z * z / total
    centre = (rate + z * z / (2 * total)) / scale
    half = z * math.sqrt(rate * (1 - rate) / total + z * z / (4 * total * total)) / scale
    # At the ends the formula is exact in algebra, not in floating point.
    low = 0.0 if rate == 0 else max(0.0, centre - half)
    high = 1.0 if rate == 1 else min(1.0, centre + half)
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


def clustered(broken: Float[Tensor, "N"], attempts: Float[Tensor, "N"], *, confidence: float = 0.95) -> tuple[float, float, float]:
    """p = Σ b_i / Σ a_i over clusters i, and the Wilson interval of p at an effective number n* = p(1 - p) / v of attempts, with
    v = N/(N - 1) Σ (b_i - p a_i)² / (Σ a)² and the t quantile of N - 1 degrees (the ratio estimator's variance as in Cochran 1977,
    section 11; effective sizes as in Korn and Graubard 1998, who put them into the Clopper-Pearson interval).

    A cluster is an example, its attempts are not independent of each other: intervals over attempts are far too narrow. At a rate of
    0 or 1, where v vanishes, n* is the number of clusters; it is never above the number of attempts.
    """
    number, total = attempts.shape[0], float(attempts.sum())
    if number == 0 or total == 0:
        return math.nan, 0.0, 1.0
    rate = float(broken.double().sum()) / total
    if number == 1:
        return rate, *_wilson(rate, 1.0, NormalDist().inv_cdf((1 + confidence) / 2))
    spread = float(((broken.double() - rate * attempts.double()) ** 2).sum())
    variance = number / (number - 1) * spread / total**2
    effective = min(rate * (1 - rate) / variance, total) if variance > 0 else float(number)
    return rate, *_wilson(rate, effective, float(student.ppf((1 + confidence) / 2, number - 1)))


def rogan_gladen(rate: float, *, sensitivity: float, specificity: float) -> float:
    """π = (q + Sp - 1) / (Se + Sp - 1), clipped to [0, 1]: the true rate behind the rate q that an imperfect judge reads
    (Rogan and Gladen 1978)."""
    assert sensitivity + specificity > 1
    return min(max((rate + specificity - 1) / (sensitivity + specificity - 1), 0.0), 1.0)


def corrected_for_judge(
    rate: float, total: float, *, sensitivity: float, specificity: float, labelled: tuple[int, int] | None = None, confidence: float = 0.95
) -> tuple[float, float, float]:
    """The true rate behind `rate`, what a judge reads in `total` (effective) items, and its interval.

    Without `labelled`, Se and Sp are taken as known, and Wilson's ends go through the Rogan-Gladen map. With the numbers of labelled
    positives and negatives that Se and Sp were measured on, their own uncertainty is carried along (Lang and Reiczigel 2014):
    with q', Se', Sp' shrunk by z²/2, 1 and 1 pseudo-observations on each side and n' = n + z², N' = N + 2,
    π' + δ ± z sqrt(q'(1-q')/n' + π'² Se'(1-Se')/N'_Se + (1-π')² Sp'(1-Sp')/N'_Sp) / (Se'+Sp'-1),
    δ = 2 z² (π' Se'(1-Se')/N'_Se - (1-π') Sp'(1-Sp')/N'_Sp).
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    point = rogan_gladen(rate, sensitivity=sensitivity, specificity=specificity)
    if labelled is None:
        low, high = (rogan_gladen(end, sensitivity=sensitivity, specificity=specificity) for end in _wilson(rate, total, z))
        return point, low, high
    size, read = total + z * z, (total * rate + z * z / 2) / (total + z * z)
    caught, cleared = ((n * x + 1) / (n + 2) for n, x in zip(labelled, (sensitivity, specificity), strict=True))
    gain = caught + cleared - 1
    true = (read + cleared - 1) / gain
    doubt = [x * (1 - x) / (n + 2) for n, x in zip(labelled, (caught, cleared), strict=True)]
    shift = 2 * z * z * (true * doubt[0] - (1 - true) * doubt[1])
    half = z * math.sqrt(read * (1 - read) / size + true**2 * doubt[0] + (1 - true) ** 2 * doubt[1]) / gain
    return point, min(max(true + shift - half, 0.0), 1.0), min(max(true + shift + half, 0.0), 1.0)


def corrected_for_judgements(
    violations: Float[Tensor, "N"] | Int[Tensor, "N"],
    number: int,
    *,
    sensitivity: float,
    specificity: float,
    labelled: tuple[int, int] | None = None,
    confidence: float = 0.95,
) -> tuple[float, float, float]:
    """The true rate π of items of whose k = `number` judgements none is a violation, and its interval; `violations`: those the judge
    reported per item. Given the truth, judgements err independently.

    An item without violation is read as one with probability Spᵏ; any other with one between (1 - Se)ᵏ (all k are violations) and
    (1 - Se) Spᵏ⁻¹ (one is). So the rate q that is read leaves π between g⁻(q) = (q / Spᵏ⁻¹ - (1 - Se)) / (Se + Sp - 1) and
    g⁺(q) = (q - (1 - Se)ᵏ) / (Spᵏ - (1 - Se)ᵏ): the interval is [g⁻(low), g⁺(high)], low and high Wilson's. With k = 1 both are
    Rogan and Gladen's map. The point is the mean of ∏ w, w = Se / (Se + Sp - 1) for a judgement that reports none and
    (Se - 1) / (Se + Sp - 1) for one that does (unbiased: each has mean 1 or 0), put into [g⁻(q), g⁺(q)].
    With `labelled`, the limits of Se and Sp widen each end (method of variance estimates recovery, Zou and Donner 2008).
    """
    assert number >= 1
    items = violations.shape[0]
    read = float((violations == 0).double().mean())
    rates = {"sensitivity": sensitivity, "specificity": specificity}
    if number == 1:
        rate, low, high = corrected_for_judge(1 - read, items, **rates, labelled=labelled, confidence=confidence)
        return 1 - rate, 1 - high, 1 - low
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    ends = _wilson(read, items, z)
    low, high = (_true_range(end, number, sensitivity, specificity)[side] for side, end in enumerate(ends))
    least, most = _true_range(read, number, sensitivity, specificity)
    if labelled is not None:
        low, high = _with_doubt_of_rates((read, *ends), number, (sensitivity, specificity), labelled, z)
    count, gain = violations.double(), sensitivity + specificity - 1
    weights = torch.tensor([sensitivity / gain, (sensitivity - 1) / gain], dtype=torch.float64)
    point = float((weights[0] ** (number - count) * weights[1] ** count).mean())
    point = min(max(point if math.isfinite(point) else least, least), most)
    return _clip(point), _clip(low), _clip(high)


def _clip(rate: float) -> float:
    return min(max(rate, 0.0), 1.0)


def _true_range(read: float, number: int, sensitivity: float, specificity: float) -> tuple[float, float]:
    """g⁻(q) and g⁺(q); everything where the judge is as likely to report no violation of an item with one as of an item without."""
    missed = 1 - sensitivity
    least, most = specificity ** (number - 1) * (specificity - missed), specificity**number - missed**number
    if min(least, most) <= 0:
        return -math.inf, math.inf
    return (read - missed * specificity ** (number - 1)) / least, (read - missed**number) / most


def _with_doubt_of_rates(
    read: tuple[float, float, float], number: int, rates: tuple[float, float], labelled: tuple[int, int], z: float
) -> tuple[float, float]:
    """Both ends of the interval, each limit's distance from g⁻ or g⁺ of the estimates added in squares."""
    limits = [_wilson(rate, total, z) for rate, total in zip(rates, labelled, strict=True)]
    variants = [[(end, *rates)] for end in read[1:]]
    for variant in variants:
        variant += [(read[0], end, rates[1]) for end in limits[0]] + [(read[0], rates[0], end) for end in limits[1]]
    centre = _true_range(read[0], number, *rates)
    if not math.isfinite(centre[0]):
        return centre
    ends = []
    for side, sign in ((0, -1), (1, 1)):
        moved = [sign * (_true_range(q, number, *pair)[side] - centre[side]) for q, *pair in variants[side]]
        parts = (moved[0], max(moved[1:3]), max(moved[3:5]))
        ends.append(centre[side] + sign * math.sqrt(sum(max(x, 0.0) ** 2 for x in parts)))
    return ends[0], ends[1]


def mcnemar(first: Bool[Tensor, "N"], second: Bool[Tensor, "N"]) -> float:
    """Exact two-sided p value that two classifiers err equally often on the same items: Binomial(b + c, 1/2)   (McNemar 1947)."""
    only_first = int((first & ~second).sum())
    only_second = int((second & ~first).sum())
    discordant = only_first + only_second
    tail = sum(math.comb(discordant, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**discordant)


__all__ = ["clustered", "corrected_for_judge", "corrected_for_judgements", "mcnemar", "paired_bootstrap", "rogan_gladen", "wilson"]

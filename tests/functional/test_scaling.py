"""Success over attempts: enumeration, exact curves, and intervals that hold what they should."""

import itertools
import math

import pytest
import torch

from advalign.functional import scaling


def test_the_curve_is_the_mean_over_all_subsets():
    """Six attempts of which two broke it: of all subsets of size n, how many hold one of the two."""
    attempts, broke = 6, (1, 4)
    curve = scaling.success_curve(torch.tensor([2]), attempts, range(1, 7))
    for n, value in zip(range(1, 7), curve[0].tolist(), strict=True):
        subsets = list(itertools.combinations(range(attempts), n))
        assert value == pytest.approx(sum(any(i in broke for i in s) for s in subsets) / len(subsets), abs=1e-12)
    assert scaling.success_curve(torch.tensor([0, 6]), 6, [3]).tolist() == [[0.0], [1.0]]


def test_an_exact_power_law_is_recovered_and_forecast():
    numbers = [1, 2, 4, 8, 16]
    rates = torch.tensor([math.exp(-2.5 * n**-0.4) for n in numbers], dtype=torch.float64)
    a, b = scaling.power_law(numbers, rates)
    assert (a, b) == (pytest.approx(2.5, abs=1e-10), pytest.approx(0.4, abs=1e-10))
    assert scaling.forecast(a, b, 10_000) == pytest.approx(math.exp(-2.5 * 10_000**-0.4), abs=1e-10)


def test_two_points_by_hand():
    """ASR 1/e at 1 attempt: a = 1. ASR e^(-1/2) at 4: 4^-b = 1/2, so b = 1/2. A rate of 1 at 16 says nothing about a and b."""
    rates = torch.tensor([math.exp(-1), math.exp(-0.5), 1.0], dtype=torch.float64)
    assert scaling.power_law([1, 4, 16], rates) == (pytest.approx(1.0), pytest.approx(0.5))
    assert all(math.isnan(x) for x in scaling.power_law([1, 4], torch.tensor([0.0, 0.5])))


def test_intervals_hold_the_value_of_the_population():
    """Prompts with success probability 0.02 or 0.3 per attempt, half each: the curve of the population is known, and so is its fit.
    Of 40 experiments with 60 prompts the 90 % interval for ASR at 256 attempts, which were not made, misses no more than 10 times."""
    attempts, grid = 64, [1, 2, 4, 8, 16, 32, 64]
    p = torch.tensor([0.02, 0.3], dtype=torch.float64)
    truth = torch.tensor([float((1 - (1 - p) ** n).mean()) for n in grid], dtype=torch.float64)
    a, b = scaling.power_law(grid, truth)
    generator, missed, values = torch.Generator().manual_seed(0), 0, []
    for trial in range(40):
        chance = p[torch.randint(2, (60,), generator=generator)]
        broken = (torch.rand(60, attempts, generator=generator, dtype=torch.float64) < chance[:, None]).sum(1)
        value, low, high = scaling.fit(broken, attempts, at=(256,), confidence=0.9, resamples=200, seed=trial)["asr@256"]
        assert low <= value <= high
        missed += not low <= scaling.forecast(a, b, 256) <= high
        values.append(value)
    assert missed <= 10, missed
    assert sum(values) / 40 == pytest.approx(scaling.forecast(a, b, 256), abs=0.03)


def test_prompts_are_resampled_and_not_attempts():
    """Prompts that 1 or 8 of 16 attempts broke, two of them or twenty: the more prompts, the narrower, by about the root of ten."""
    few, many = (scaling.fit(torch.tensor([1, 8] * n), 16, at=(16,), resamples=1000)["asr@16"] for n in (1, 10))
    assert few[0] == pytest.approx(many[0])
    assert 2 < (few[2] - few[1]) / (many[2] - many[1]) < 5


def test_too_little_to_fit_is_nan_and_bad_numbers_are_refused():
    assert all(math.isnan(x) for x in scaling.fit(torch.tensor([0, 0, 0]), 8)["a"])
    with pytest.raises(ValueError, match="from 1 to 8"):
        scaling.success_curve(torch.tensor([1]), 8, [9])

"""Intervals and paired tests against scipy, closed forms and coverage."""

import math

import pytest
import scipy.stats
import torch

from advalign.functional import intervals


@pytest.mark.parametrize(("successes", "total"), [(0, 10), (1, 10), (7, 30), (30, 30), (436, 872)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_wilson_matches_scipy(successes, total, confidence):
    expected = scipy.stats.binomtest(successes, total).proportion_ci(confidence, method="wilson")
    assert intervals.wilson(successes, total, confidence) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_is_not_empty_at_the_ends():
    # At 0 of n the upper end is z² / (n + z²): with z = 1.959964 and n = 10, 3.841459 / 13.841459 = 0.277533.
    assert intervals.wilson(0, 10) == pytest.approx((0.0, 0.277533), abs=1e-6)
    low, high = intervals.wilson(10, 10)
    assert (low, high) == pytest.approx((1 - 0.277533, 1.0), abs=1e-6)
    assert intervals.wilson(0, 0) == (0.0, 1.0)


def test_bootstrap_of_a_constant_difference_is_a_point():
    second = torch.arange(8, dtype=torch.float64)
    assert intervals.paired_bootstrap(second + 0.5, second) == pytest.approx((0.5, 0.5, 0.5))


def test_bootstrap_agrees_with_the_normal_interval_on_many_items(generator):
    first = torch.randn(2000, generator=generator, dtype=torch.float64)
    second = first - 0.1 - 0.3 * torch.randn(2000, generator=generator, dtype=torch.float64)
    mean, low, high = intervals.paired_bootstrap(first, second, resamples=4000)
    half = 1.959964 * (first - second).std().item() / math.sqrt(2000)
    assert mean == pytest.approx((first - second).mean().item())
    # The interval's ends carry Monte-Carlo error of a few per cent of its half width.
    assert low == pytest.approx(mean - half, abs=0.1 * half)
    assert high == pytest.approx(mean + half, abs=0.1 * half)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (5, 0), (9, 2), (3, 3), (4, 5)])
def test_mcnemar_is_the_exact_binomial_test(b, c):
    first = torch.tensor([1] * b + [0] * c + [1, 0, 1], dtype=torch.bool)
    second = torch.tensor([0] * b + [1] * c + [1, 0, 1], dtype=torch.bool)
    expected = scipy.stats.binomtest(b, b + c).pvalue if b + c else 1.0
    assert intervals.mcnemar(first, second) == pytest.approx(expected, abs=1e-12)
    assert intervals.mcnemar(second, first) == pytest.approx(expected, abs=1e-12)

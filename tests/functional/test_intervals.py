"""Intervals and paired tests against scipy, closed forms and coverage."""

import math

import numpy as np
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


# ------------------------------------------------------------------------------- attempts on one example, judges that err


def test_clustered_by_hand():
    """Clusters (2 of 4), (0 of 4), (4 of 4), (2 of 4): p = 8/16; residuals 0, -2, 2, 0 give v = 4/3 * 8 / 256 = 1/24, so n* = 6.

    Wilson with t_3(0.975) = 3.182446 at n* = 6: t² / n* = 1.687994, half = sqrt(.25 * 1.687994 + 1.687994² / 4) / 2.687994 = 0.396224.
    """
    rate, low, high = intervals.clustered(torch.tensor([2.0, 0.0, 4.0, 2.0]), torch.full((4,), 4.0))
    assert rate == 0.5
    assert (low, high) == pytest.approx((0.5 - 0.396224, 0.5 + 0.396224), abs=1e-6)


def test_clusters_of_one_attempt_are_wilson_with_the_t_quantile():
    """p(1-p)/v = (N-1)/N * N = N - 1 for single attempts: the interval differs from Wilson's by a degree of freedom and by t."""
    broken = torch.tensor([1.0] * 30 + [0.0] * 70)
    rate, low, high = intervals.clustered(broken, torch.ones(100))
    z = scipy.stats.t.ppf(0.975, 99)
    scale = 1 + z * z / 99
    centre, half = (0.3 + z * z / 198) / scale, z * math.sqrt(0.21 / 99 + z * z / (4 * 99**2)) / scale
    assert rate == pytest.approx(0.3)
    assert (low, high) == pytest.approx((centre - half, centre + half), abs=1e-12)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_an_interval_at_the_ends_is_as_wide_as_the_examples_allow(value):
    """20 examples with 50 attempts each, all alike: t² / (20 + t²) with t_19(0.975) = 2.093024, 4.380750 / 24.380750 = 0.179681."""
    rate, low, high = intervals.clustered(torch.full((20,), 50.0 * value), torch.full((20,), 50.0))
    assert rate == value
    assert (1 - low if value else high) == pytest.approx(0.179681, abs=1e-6)


def test_nothing_observed_says_nothing():
    assert intervals.clustered(torch.zeros(0), torch.zeros(0))[1:] == (0.0, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "attempts", "a", "b"),
    [(40, 25, 0.3, 0.7), (200, 10, 0.3, 0.7), (40, 25, 0.05, 0.95), (40, 25, 2.0, 38.0), (50, 10, 0.5, 0.02), (30, 5, 1.0, 1.0)],
)
def test_clustered_intervals_cover_and_those_over_attempts_do_not(number, attempts, a, b):
    """Per-example rates from a Beta: the truth a / (a + b) lies in at least 90 % of nominal 95 % intervals."""
    random = np.random.default_rng(0)
    truth, covered, naive, trials = a / (a + b), 0, 0, 400
    for _ in range(trials):
        broken = random.binomial(attempts, random.beta(a, b, number))
        _, low, high = intervals.clustered(torch.tensor(broken, dtype=torch.float64), torch.full((number,), float(attempts)))
        covered += low <= truth <= high
        low, high = intervals.wilson(int(broken.sum()), number * attempts)
        naive += low <= truth <= high
    assert covered / trials >= 0.9 - 2 * math.sqrt(0.9 * 0.1 / trials)
    assert naive < covered


def test_rogan_gladen_undoes_an_imperfect_judge():
    """True 2 % read with Se .97, Sp .85: .02 * .97 + .98 * .15 = .1664; and .5 with Se .65, Sp .95: .325 + .025 = .35."""
    assert intervals.rogan_gladen(0.1664, sensitivity=0.97, specificity=0.85) == pytest.approx(0.02)
    assert intervals.rogan_gladen(0.35, sensitivity=0.65, specificity=0.95) == pytest.approx(0.5)
    assert intervals.rogan_gladen(0.1, sensitivity=0.9, specificity=0.8) == 0.0  # fewer than the false alarms alone would be


def test_a_perfect_judge_changes_nothing():
    assert intervals.corrected_for_judge(0.3, 50, sensitivity=1.0, specificity=1.0) == pytest.approx((0.3, *intervals.wilson(15, 50)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "truth", "caught", "cleared", "labelled"),
    [
        (200, 0.02, 0.97, 0.85, (100, 100)),
        (200, 0.5, 0.65, 0.95, (60, 60)),
        (100, 0.1, 0.9, 0.95, (50, 200)),
        (100, 0.0, 0.9, 0.9, (50, 50)),
    ],
)
def test_intervals_behind_a_judge_cover(number, truth, caught, cleared, labelled):
    """The rate is drawn, and so are the judge's rates on labelled answers; at least 93 % of nominal 95 % intervals hold the truth."""
    random, trials, hits = np.random.default_rng(1), 1000, [0, 0]
    for _ in range(trials):
        read = random.binomial(number, truth * caught + (1 - truth) * (1 - cleared)) / number
        rates = {
            "sensitivity": random.binomial(labelled[0], caught) / labelled[0],
            "specificity": random.binomial(labelled[1], cleared) / labelled[1],
        }
        _, low, high = intervals.corrected_for_judge(read, number, **rates, labelled=labelled)
        hits[0] += low <= truth <= high
        _, low, high = intervals.corrected_for_judge(read, number, sensitivity=caught, specificity=cleared)
        hits[1] += low <= truth <= high
    assert min(hits) / trials >= 0.93 - 2 * math.sqrt(0.93 * 0.07 / trials)


def test_one_judgement_per_item_is_rogan_and_gladen():
    violations = torch.tensor([0] * 7 + [1] * 3)
    rates = {"sensitivity": 0.9, "specificity": 0.8}
    for labelled in (None, (40, 60)):
        rate, low, high = intervals.corrected_for_judge(0.3, 10, **rates, labelled=labelled)
        result = intervals.corrected_for_judgements(violations, 1, **rates, labelled=labelled)
        assert result == pytest.approx((1 - rate, 1 - high, 1 - low))


def test_without_errors_many_judgements_are_wilson_of_the_items():
    violations = torch.tensor([0] * 7 + [1, 4, 11])
    result = intervals.corrected_for_judgements(violations, 11, sensitivity=1.0, specificity=1.0)
    assert result == pytest.approx((0.7, *intervals.wilson(7, 10)))


def test_false_alarms_of_fifty_attempts_are_those_of_fifty_one_judgements():
    """Everything is right; of 200 items a fraction of 0.98^51 = 0.357 is read as such: 0.355 -> 0.355 / 0.357 = 0.995."""
    violations = torch.tensor([0] * 71 + [1] * 129)
    rate, low, high = intervals.corrected_for_judgements(violations, 51, sensitivity=1.0, specificity=0.98)
    assert rate == pytest.approx(71 / 200 / 0.98**51)
    assert (low, high) == (pytest.approx(intervals.wilson(71, 200)[0] / 0.98**51), 1.0)


def test_a_judge_that_tells_nothing_in_so_many_judgements_leaves_everything_open():
    """Of an item without violation 0.5^2000 = 0 are read as such, no less than of any other."""
    assert intervals.corrected_for_judgements(torch.full((10,), 900), 2000, sensitivity=0.9, specificity=0.5)[1:] == (0.0, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "truth", "judgements", "caught", "cleared", "violating", "labelled"),
    [
        (200, 1.0, 51, 1.0, 0.98, 0.3, None),
        (200, 0.5, 51, 0.9, 0.99, 0.3, None),
        (200, 0.7, 2, 0.9, 0.8, 0.5, None),
        (100, 0.0, 11, 0.8, 0.97, 0.1, None),
        (100, 0.9, 11, 0.8, 0.97, 0.1, None),
        (100, 0.5, 11, 0.8, 0.97, 0.1, (50, 100)),
        (200, 0.6, 2, 0.9, 0.9, 0.5, (60, 60)),
    ],
)
def test_intervals_of_several_judgements_cover(number, truth, judgements, caught, cleared, violating, labelled):
    """Items without violation with probability `truth`; of the others each judgement is one with `violating`, at least one of them is."""
    random, trials, hits = np.random.default_rng(1), 500, 0
    for _ in range(trials):
        true = np.where(random.random(number) < truth, 0, np.maximum(1, random.binomial(judgements, violating, number)))
        read = torch.tensor(random.binomial(true, caught) + random.binomial(judgements - true, 1 - cleared))
        rates = {"sensitivity": caught, "specificity": cleared}
        if labelled is not None:
            rates = {name: random.binomial(n, rate) / n for n, (name, rate) in zip(labelled, rates.items(), strict=True)}
        _, low, high = intervals.corrected_for_judgements(read, judgements, **rates, labelled=labelled)
        hits += low <= truth <= high
    assert hits / trials >= 0.95 - 2 * math.sqrt(0.95 * 0.05 / trials)

"""Bounds and certificates against exact sums, enumeration and closed forms."""

import math
from itertools import combinations, product
from statistics import NormalDist

import pytest
import torch
from scipy import stats

from advalign.functional import certify as c

PHI = NormalDist()


def binomial(n, p):
    """P(Binomial(n, p) = s) for s = 0 ... n."""
    return [math.comb(n, s) * p**s * (1 - p) ** (n - s) for s in range(n + 1)]


@pytest.mark.parametrize(("successes", "total", "alpha"), [(1, 7, 0.05), (7, 12, 0.001), (50, 100, 0.01), (99, 100, 0.001), (3, 3, 0.2)])
def test_lower_bound_is_where_the_upper_tail_is_alpha(successes, total, alpha):
    """Clopper and Pearson's definition, summed term by term."""
    bound = c.lower_bound(successes, total, alpha=alpha)
    assert sum(binomial(total, bound)[successes:]) == pytest.approx(alpha, rel=1e-9)


def test_lower_bound_at_the_ends():
    # p^100 = 0.001 at the bound: p = 10^(-3/100).
    assert c.lower_bound(100, 100, alpha=0.001) == pytest.approx(10**-0.03, rel=1e-12)
    assert c.lower_bound(0, 100, alpha=0.001) == 0.0


@pytest.mark.parametrize(("successes", "total"), [(0, 5), (2, 5), (5, 5), (37, 90)])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.998])
def test_two_sided_interval_is_scipy_s(successes, total, confidence):
    result = stats.binomtest(successes, total).proportion_ci(confidence, method="exact")
    assert c.clopper_pearson(successes, total, confidence=confidence) == pytest.approx((result.low, result.high), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("alpha", [0.2, 0.05, 0.001])
@pytest.mark.parametrize("total", [5, 40])
def test_lower_bound_is_wrong_with_probability_at_most_alpha(total, alpha):
    """P(bound > p), summed exactly: never above alpha, and close to it just below a bound, so alpha cannot be taken smaller."""
    bounds = [c.lower_bound(s, total, alpha=alpha) for s in range(total + 1)]
    wrong = [sum(w for w, b in zip(binomial(total, p), bounds, strict=True) if b > p) for p in [i / 500 for i in range(1, 500)]]
    assert max(wrong) <= alpha * (1 + 1e-9)
    just_below = max(bounds) * (1 - 1e-9)
    assert sum(w for w, b in zip(binomial(total, just_below), bounds, strict=True) if b > just_below) == pytest.approx(alpha, rel=1e-6)


@pytest.mark.parametrize("sigma", [0.1, 1.0, 7.0])
def test_radius_of_a_linear_classifier_is_its_distance_whatever_sigma(sigma):
    """f(x) = 1[w.x + b > 0]: p_A = Phi(|w.x + b| / (sigma ||w||)), so R = |w.x + b| / ||w||: to the boundary, not farther."""
    w, x, b = torch.tensor([3.0, -4.0]).double(), torch.tensor([1.0, 0.5]).double(), 0.2
    distance = abs(float(w @ x) + b) / 5.0  # |3 - 2 + 0.2| / 5 = 0.24
    assert distance == pytest.approx(0.24)
    assert c.smoothing_radius(PHI.cdf(distance / sigma), sigma=sigma) == pytest.approx(distance, rel=1e-6)


def test_radius_is_capped_by_the_number_of_copies_and_zero_without_a_majority():
    # All of n agree: p_A >= alpha^(1/n). n = 1000, alpha = 0.001: 0.99312, Phi^-1 = 2.463.
    bound = c.lower_bound(1000, 1000, alpha=0.001)
    assert c.smoothing_radius(bound, sigma=2.0) == pytest.approx(2.0 * PHI.inv_cdf(0.001**0.001), rel=1e-9)
    assert c.smoothing_radius(bound, sigma=1.0) == pytest.approx(2.463, abs=5e-4)
    assert c.smoothing_radius(0.5, sigma=1.0) == 0.0
    assert c.smoothing_radius(0.3, sigma=1.0) == 0.0


def test_certify_takes_the_class_from_one_sample_and_its_bound_from_the_other():
    # Selection says 1; of the estimation, 90 of 100 are 1: the bound is that of 90 of 100.
    result = c.certify(torch.tensor([4, 6, 0]), torch.tensor([5, 90, 5]), alpha=0.001)
    assert result == (1, c.lower_bound(90, 100, alpha=0.001))
    # Selection was lucky: class 0 has 10 of 100 then. Another class's 90 do not help: abstain.
    assert c.certify(torch.tensor([6, 4, 0]), torch.tensor([10, 90, 0]), alpha=0.001)[0] is None
    assert c.certify(torch.tensor([9, 1]), torch.tensor([55, 45]), alpha=0.001)[0] is None


def test_certify_is_wrong_about_a_fair_coin_at_most_alpha_of_the_time():
    """p = 1/2: nothing may be certified, of either class. 4000 runs at alpha = 0.05: mean <= 200, four deviations 55."""
    generator = torch.Generator().manual_seed(0)
    claims = 0
    for _ in range(4000):
        heads = [int((torch.rand(n, generator=generator) < 0.5).sum()) for n in (20, 100)]
        chosen, _ = c.certify(torch.tensor([heads[0], 20 - heads[0]]), torch.tensor([heads[1], 100 - heads[1]]), alpha=0.05)
        claims += chosen is not None
    assert 60 < claims <= 255  # and not never: P(Binomial(100, 1/2) >= 59) = 0.044


@pytest.mark.parametrize("counts", [[60, 40], [59, 41], [55, 45], [70, 30, 20], [5, 0], [4, 4], [1, 9, 90], [7]])
def test_predict_is_the_two_sided_binomial_test_of_the_two_largest(counts):
    first, second = (*sorted(counts, reverse=True), 0)[:2]
    p_value = stats.binomtest(first, first + second, 0.5).pvalue
    for alpha in (0.001, 0.05, 0.06, 0.5):
        expected = counts.index(first) if p_value <= alpha else None
        assert c.smoothing_predict(torch.tensor(counts), alpha=alpha) == expected


# ------------------------------------------------------------------------------------------------------- masked words


@pytest.mark.parametrize(("words", "kept", "changed"), [(5, 2, 1), (6, 3, 2), (7, 1, 3), (4, 4, 1), (4, 2, 3), (6, 2, 0), (3, 0, 2)])
def test_delta_counts_the_kept_sets_that_meet_the_changed_words(words, kept, changed):
    sets = list(combinations(range(words), kept))
    meet = sum(any(i < changed for i in s) for s in sets)
    assert c.ranmask_delta(words, num_kept=kept, changed=changed) == pytest.approx(meet / len(sets), abs=1e-15)


def test_delta_of_long_texts():
    # One word: C(T-1, k) / C(T, k) = (T - k) / T, so Delta = k / T; with 5000 words the binomials have 1300 digits.
    assert c.ranmask_delta(5000, num_kept=1500, changed=1) == pytest.approx(0.3, rel=1e-12)
    # Two words: 1 - (T-k)(T-k-1) / (T(T-1)).
    assert c.ranmask_delta(5000, num_kept=1500, changed=2) == pytest.approx(1 - 3500 * 3499 / (5000 * 4999), rel=1e-12)


def test_kept_words_at_the_rate():
    # 10 - round(7) = 3; 3 - round(2.1) = 1; one word is always kept; none of none.
    assert [c.ranmask_num_kept(t, rate=0.7) for t in (10, 3, 1, 0)] == [3, 1, 1, 0]
    assert c.ranmask_num_kept(4, rate=0.99) == 1
    assert c.ranmask_num_kept(4, rate=0.0) == 4


def test_certified_words_by_hand():
    # T = 10, k = 3: Delta(1) = 0.3, Delta(2) = 1 - 56/120 = 0.5333. p = 0.85: 0.55 > 1/2, then 0.3167.
    assert c.ranmask_words(0.85, words=10, num_kept=3) == 1
    assert c.ranmask_words(0.79, words=10, num_kept=3) == 0
    assert c.ranmask_words(0.5, words=10, num_kept=3) is None
    # Exactly 1/2 is a tie, no certificate, also where 0.8 - 0.3 is rounded upwards.
    assert c.ranmask_words(0.8, words=10, num_kept=3) == 0
    assert c.ranmask_words(1.0, words=2, num_kept=1) == 0
    # beta = 1/2: 0.85 - 0.15, 0.85 - 0.267, Delta(3) = 1 - 35/120: 0.85 - 0.354 < 1/2.
    assert c.ranmask_words(0.85, words=10, num_kept=3, beta=lambda d: 0.5) == 2
    assert c.ranmask_words(1.0, words=0, num_kept=0) == 0


def test_beta_is_the_share_of_the_class_among_copies_that_keep_a_changed_word():
    """Two words, one kept: sets {0} and {1}; only {0} votes for the class. d = 1: {0} gives 1, {1} gives 0, in the mean over
    sets 1/2; d = 2: both copies meet, 1/2 exactly."""
    kept_words = torch.tensor([[True, False], [False, True]])
    votes = torch.tensor([True, False])
    generator = torch.Generator().manual_seed(0)
    assert c.ranmask_beta(votes, kept_words, changed=2, generator=generator) == 0.5
    # 4000 fair coins: deviation of the mean 0.0079.
    assert c.ranmask_beta(votes, kept_words, changed=1, samples=4000, generator=generator) == pytest.approx(0.5, abs=0.032)
    # No copy keeps any of the words: nothing is known, so 1.
    assert c.ranmask_beta(votes, torch.zeros(2, 2, dtype=torch.bool), changed=1, generator=generator) == 1.0


def majority(text, num_kept, classify):
    """(class or None, share) of the vote over all sets of kept words; a hidden word is None."""
    sets = list(combinations(range(len(text)), num_kept))
    votes = [classify(tuple(w if i in s else None for i, w in enumerate(text))) for s in sets]
    top = max((0, 1), key=votes.count)
    return top, votes.count(top) / len(votes)


def bag(copy):
    """A classifier with a bias, and a word ("x") that turns everything round."""
    value = sum({"a": 2, "b": -3, "o": 0}.get(w, 0) for w in copy) + 1
    return int((value > 0) != ("x" in copy))


@pytest.mark.parametrize(("length", "kept", "changed"), [(5, 1, 1), (5, 1, 2), (6, 2, 1), (4, 1, 1)])
def test_no_substitution_within_the_certificate_changes_the_vote(length, kept, changed):
    """Every text, every set of places, every substitution by four words: where d is certified the vote stays. And the bound is
    worth something: texts are certified, and among those that are not, some break."""
    certified = broken = 0
    for text in product("abo", repeat=length):
        top, share = majority(text, kept, bag)
        safe = (c.ranmask_words(share, words=length, num_kept=kept) or 0) >= changed
        certified += safe
        if not safe and broken:
            continue
        for places in combinations(range(length), changed):
            for new in product("abox", repeat=changed):
                other = list(text)
                for i, w in zip(places, new, strict=True):
                    other[i] = w
                vote, _ = majority(other, kept, bag)
                assert vote == top or not safe, (text, other)
                broken += vote != top
    assert certified > 0
    assert broken > 0


def test_the_estimate_of_beta_is_no_certificate():
    """T = 10, k = 1, nine of ten words say A: p_A = 0.9, Delta(d) = d / 10, and beta = 0.9 at every d, as the words are now.
    0.9 - 0.9 d / 10 > 1/2 up to d = 4. But four of the nine changed leave 5 votes of 10, which is no majority."""
    votes = torch.tensor([False] + [True] * 9)
    beta = c.ranmask_beta(votes, torch.eye(10, dtype=torch.bool), changed=4, samples=3000, generator=torch.Generator().manual_seed(0))
    assert beta == pytest.approx(0.9, abs=0.02)
    result = c.ranmask_words(0.9, words=10, num_kept=1, beta=lambda d: beta)
    assert result == 4
    assert 9 - result == 5
    # With beta = 1 three words: 0.9 - 3/10 > 1/2, and 6 votes are left.
    assert c.ranmask_words(0.9, words=10, num_kept=1) == 3

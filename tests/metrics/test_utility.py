"""What is counted over samples: every estimator against the enumeration of all subsets or orders, and by hand."""

import itertools
import math

import pytest
import torch

from advalign.metrics import utility


def subsets(row, k):
    return list(itertools.combinations(row, k))


# ------------------------------------------------------------------------------------------------------------ pass@k


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(n):
    for c in range(n + 1):
        row = [1] * c + [0] * (n - c)
        for k in range(1, n + 1):
            every = subsets(row, k)
            assert utility.pass_at_k([c], n, k) == pytest.approx(sum(map(max, every)) / len(every), abs=1e-15)


def test_pass_at_k_is_unbiased_and_the_naive_estimate_is_not():
    # Responses right with probability p = 0.3, all 2^n outcomes enumerated: E = 1 - (1 - p)^k. With c/n plugged in, 1 - (1 - c/n)^k is
    # too small: for n = 4, k = 2 its mean is 1 - (0.49 + 0.21 / 4) = 0.4575 instead of 0.51.
    p, n, k = 0.3, 4, 2
    outcomes = [(sum(o), math.prod(p if x else 1 - p for x in o)) for o in itertools.product((0, 1), repeat=n)]
    assert sum(w * utility.pass_at_k([c], n, k) for c, w in outcomes) == pytest.approx(0.51, abs=1e-12)
    assert sum(w * (1 - (1 - c / n) ** k) for c, w in outcomes) == pytest.approx(0.4575, abs=1e-12)


def test_pass_at_k_by_hand_and_over_prompts():
    # n = 4, c = 1, k = 2: 3 of the 6 pairs hold the right one. A prompt never solved counts 0, one always solved 1.
    assert utility.pass_at_k([1], 4, 2) == 0.5
    assert utility.pass_at_k([1, 0, 4], 4, 2) == 0.5
    assert utility.pass_at_k([1, 3], 4, 1) == 0.5  # pass@1 is the mean


def test_the_k_of_curves():
    assert [utility.powers_of_two(n) for n in (1, 2, 3, 8, 10)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4, 8], [1, 2, 4, 8, 10]]


# ------------------------------------------------------------------------------------------------------ majority vote


@pytest.mark.parametrize(
    ("votes", "place"),
    [
        ("a", 0),
        ("abb", 1),
        ("abab", 0),  # two each: a was seen first
        ("babab", 0),  # three b
        ("cabab", 1),  # two a, two b, one c: a was seen before b
        ("abc", 0),
        ("abccba", 0),
        ("abccb", 1),
    ],
)
def test_majority_by_hand(votes, place):
    assert utility.majority(votes) == place


@pytest.mark.parametrize(
    ("k", "first", "second"),
    [
        (2, 1 / 3, 1 / 3),  # (a b) right, (b a) wrong, (c a) wrong; (x x) wrong, (x y) x, wrong, (y y) right
        (3, 1 / 2, 1 / 2),  # (a b b) b, wrong, (a c a) right; (x x x) wrong, (y y y) right
        (4, 1, 0),  # (a b b a) two each: a was first, right; (x x x y) wrong; the last two votes are no block
        (5, 1, 0),  # (a b b a c) a, right; (x x x y y) wrong
        (6, 1, 0),  # three a of six, right; three x and three y: x was first, wrong
    ],
)
def test_majority_at_k_by_hand(k, first, second):
    votes, right = [list("abbaca"), list("xxxyyy")], [[1, 0, 0, 1, 0, 1], [0, 0, 0, 1, 1, 1]]
    assert utility.maj_at_k(votes[:1], right[:1], k) == pytest.approx(first)
    assert utility.maj_at_k(votes[1:], right[1:], k) == pytest.approx(second)
    assert utility.maj_at_k(votes, right, k) == pytest.approx((first + second) / 2)


def test_majority_of_one_or_two_is_one_sample_and_of_three_is_the_condorcet_formula():
    # Two answers, right with probability p, all outcomes of n = 6 samples enumerated. A tie of two goes to the first, so maj@2 = p;
    # maj@3 = p^3 + 3 p^2 (1 - p) = 0.648 at p = 0.6. The blocks of one outcome are different samples, so their mean is unbiased.
    p, n = 0.6, 6
    means = dict.fromkeys((1, 2, 3), 0.0)
    for outcome in itertools.product((0, 1), repeat=n):
        weight = math.prod(p if x else 1 - p for x in outcome)
        for k in means:
            means[k] += weight * utility.maj_at_k([outcome], [outcome], k)
    assert means == pytest.approx({1: 0.6, 2: 0.6, 3: 0.648}, abs=1e-12)


# ---------------------------------------------------------------------------------------------------------- best of n


def enumerated(scores, right, k):
    """Mean over all subsets of k of the mean of `right` over those that share the highest score."""
    total = []
    for chosen in itertools.combinations(range(len(scores)), k):
        top = max(scores[i] for i in chosen)
        best = [right[i] for i in chosen if scores[i] == top]
        total.append(sum(best) / len(best))
    return sum(total) / len(total)


ROWS = [
    ([0.3, -1.0, 2.0, 0.1, 0.2], [1, 0, 0, 1, 0]),
    ([1.0, 1.0, 0.0, 0.0, 1.0], [1, 0, 1, 0, 0]),
    ([0.0, 0.0, 0.0, 0.0, 0.0], [1, 1, 0, 0, 0]),
    ([5.0, 4.0, 3.0, 3.0, 1.0], [0.25, 1, 0.5, 0, 1]),
]


@pytest.mark.parametrize(("scores", "right"), ROWS)
@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_best_of_k_is_the_mean_over_all_subsets(scores, right, k):
    assert utility.best_of_k([scores], [right], k) == pytest.approx(enumerated(scores, right, k), abs=1e-15)


def test_best_of_k_by_hand():
    # Scores 3 > 2 > 1 with the middle one right. Pairs: (3, 2) -> wrong, (3, 1) -> wrong, (2, 1) -> right: 1/3. All three: wrong.
    scores, right = [[1.0, 3.0, 2.0]], [[0, 0, 1]]
    assert [utility.best_of_k(scores, right, k) for k in (1, 2, 3)] == pytest.approx([1 / 3, 1 / 3, 0])
    # Two at the top, one of them right: the pick is right half of the time. A second prompt, solved, is averaged in.
    assert utility.best_of_k([[1.0, 1.0], [0.0, 1.0]], [[1, 0], [0, 1]], 2) == 0.75


@pytest.mark.parametrize("n", [1, 2, 4, 5])
def test_a_perfect_verifier_makes_pass_at_k_and_its_opposite_the_worst_of_k(n):
    for right in itertools.product((0, 1), repeat=n):
        for k in range(1, n + 1):
            perfect = utility.best_of_k([right], [right], k)
            assert perfect == pytest.approx(utility.pass_at_k([sum(right)], n, k), abs=1e-15)
            # Picking what is wrong wherever it can: right only if all k are, 1 - pass@k of the wrong ones.
            opposite = utility.best_of_k([[-r for r in right]], [right], k)
            assert opposite == pytest.approx(1 - utility.pass_at_k([n - sum(right)], n, k), abs=1e-15)


@pytest.mark.parametrize("right", [(1, 0, 0, 1), (0, 0, 0, 1), (1, 1, 0, 1)])
def test_a_random_verifier_is_pass_at_1_in_expectation_and_a_constant_one_always(right):
    n = len(right)
    for k in range(1, n + 1):
        # Every order of four distinct scores is equally likely.
        every = [utility.best_of_k([order], [right], k) for order in itertools.permutations(range(n))]
        assert sum(every) / len(every) == pytest.approx(sum(right) / n, abs=1e-14)
        # So are independent coins, ties included.
        coins = [utility.best_of_k([flips], [right], k) for flips in itertools.product((0.0, 1.0), repeat=n)]
        assert sum(coins) / len(coins) == pytest.approx(sum(right) / n, abs=1e-14)
        assert utility.best_of_k([[7.0] * n], [right], k) == pytest.approx(sum(right) / n, abs=1e-14)


def test_a_verifier_that_abstains_is_never_followed_unless_it_always_does():
    nan = math.nan
    assert utility.best_of_k([[nan, -5.0, nan]], [[1, 0, 1]], 3) == 0
    # Pairs: (nan, -5) and (-5, nan) pick -5, wrong; (nan, nan) picks either, both right: 1/3.
    assert utility.best_of_k([[nan, -5.0, nan]], [[1, 0, 1]], 2) == pytest.approx(1 / 3)
    assert utility.best_of_k([[nan, nan]], [[1, 0]], 2) == 0.5


def test_order_of_the_samples_changes_neither_pass_nor_best_of():
    scores, right = ROWS[1]
    for order in itertools.permutations(range(5)):
        moved = utility.best_of_k([[scores[i] for i in order]], [[right[i] for i in order]], 3)
        assert moved == pytest.approx(enumerated(scores, right, 3), abs=1e-15)


# ----------------------------------------------------------------------------------------------- entropy, diversity


def test_the_entropy_curve_by_hand():
    # Two responses, at columns 2-4 and 1-2: first tokens 1.0 and 4.0, second 2.0 and 6.0, third 3.0 alone.
    entropy = torch.tensor([[9.0, 9.0, 1.0, 2.0, 3.0], [9.0, 4.0, 6.0, 9.0, 9.0]], dtype=torch.float64)
    target = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 0, 0]]).bool()
    assert utility.entropy_curve(entropy, target).tolist() == [2.5, 4.0, 3.0]


def test_unique_and_distinct_by_hand():
    assert utility.unique_fraction([["a", "a ", "b"], ["c", "d", "e"]]) == pytest.approx((2 / 3 + 1) / 2)
    # Pairs: (a b) (b a) (a b) and (a b): 2 distinct of 4.
    assert utility.distinct_n(["a b a b", "a b", "a"], 2) == 0.5
    assert math.isnan(utility.distinct_n(["a", ""], 2))


# ------------------------------------------------------------------------------------------------ areas, calibration


def test_the_area_is_the_share_of_pairs_in_order():
    generator = torch.Generator().manual_seed(0)
    for sizes in ((1, 1), (3, 5), (8, 2)):
        # Of five values, so that there are ties.
        a, b = (torch.randint(0, 5, (n,), generator=generator).double() for n in sizes)
        pairs = [(x > y) + (x == y) / 2 for x in a.tolist() for y in b.tolist()]
        assert utility.auc(a, b) == pytest.approx(sum(pairs) / len(pairs), abs=1e-15)
        assert utility.auc(a, b) == pytest.approx(1 - utility.auc(b, a), abs=1e-15)
        assert utility.auc((2 * a).exp(), (2 * b).exp()) == utility.auc(a, b)
    assert math.isnan(utility.auc(a, b[:0]))


def calibration(probabilities, labels, weights=None, bins=2):
    p, y = (torch.tensor(x, dtype=torch.float64) for x in (probabilities, labels))
    return utility.calibration_error(p, y, torch.ones_like(p) if weights is None else torch.tensor(weights).double(), bins=bins)


def test_calibration_by_hand():
    # Two bins of two: {.1, .3} with no positive, off by .2; {.6, .8} with one of two, off by .2.
    assert calibration([0.1, 0.3, 0.6, 0.8], [0, 0, 1, 0]) == pytest.approx(0.2)
    # One bin: mean .45 against 1/4.
    assert calibration([0.1, 0.3, 0.6, 0.8], [0, 0, 1, 0], bins=1) == pytest.approx(0.2)
    assert calibration([0.1, 0.3, 0.6, 0.8], [1, 0, 0, 0], bins=1) == pytest.approx(0.2)
    # The mean is right and both halves are wrong: .2 said where 1/2 is, .8 said where 1/2 is.
    assert calibration([0.2, 0.2, 0.8, 0.8], [0, 1, 0, 1], bins=1) == pytest.approx(0)
    assert calibration([0.2, 0.2, 0.8, 0.8], [0, 1, 0, 1], bins=2) == pytest.approx(0.3)
    # Calibrated exactly: 1/4 of four and 3/4 of four.
    assert calibration([0.25] * 4 + [0.75] * 4, [1, 0, 0, 0, 1, 1, 1, 0]) == pytest.approx(0)


def test_a_constant_is_off_by_its_distance_to_the_share_of_positives_however_many_bins_there_are():
    for bins in (1, 3, 10):
        assert calibration([0.7] * 8, [1, 0] * 4, bins=bins) == pytest.approx(0.2)


def test_calibration_does_not_depend_on_order_and_weights_are_repetitions():
    generator = torch.Generator().manual_seed(0)
    p = (torch.randint(0, 6, (20,), generator=generator).double() / 6).tolist()  # with ties
    y = torch.randint(0, 2, (20,), generator=generator).double().tolist()
    w = torch.randint(1, 4, (20,), generator=generator).tolist()
    whole = calibration(p, y, w, bins=4)
    order = torch.randperm(20, generator=generator).tolist()
    assert calibration(*([column[i] for i in order] for column in (p, y, w)), bins=4) == pytest.approx(whole, abs=1e-15)
    repeated = [[x for x, n in zip(column, w, strict=True) for _ in range(n)] for column in (p, y)]
    assert calibration(*repeated, bins=4) == pytest.approx(whole, abs=1e-15)


def test_bins_have_equal_mass():
    # Distinct values: the bins are the quarters of the sorted rows, as cut by hand.
    p = torch.rand(20, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).sort().values
    y = (torch.rand(20, generator=torch.Generator().manual_seed(2)) < 0.5).double()
    quarters = [abs(float(a.mean() - b.mean())) / 4 for a, b in zip(p.chunk(4), y.chunk(4), strict=True)]
    assert calibration(p.tolist(), y.tolist(), bins=4) == pytest.approx(sum(quarters), abs=1e-15)

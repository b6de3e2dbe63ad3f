"""Utility of a model without attack. Axes: B rows, T tokens, C classes; texts are grouped by prompt."""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from itertools import groupby

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def accuracy(logits: Float[Tensor, "B C"], labels: Int[Tensor, "B"]) -> float:
    """Fraction of rows whose largest logit is the label's."""
    return (logits.argmax(1) == labels).double().mean().item()


def constant(predictions: Sequence[object], labels: Sequence[object], fraction: float = 0.99) -> bool:
    """Whether (almost) every prediction is the same although the labels are not: such a model is robust to everything."""
    if len(predictions) < 2 or len(set(labels)) < 2:
        return False
    most, majority = (max(Counter(values).values()) for values in (predictions, labels))
    return most >= fraction * len(predictions) and majority < fraction * len(labels)


def pass_at_k(correct: Sequence[int], total: int, k: int) -> float:
    """E_prompts[1 - C(n - c, k) / C(n, k)], unbiased from n samples of which c are right   (arXiv:2107.03374, eq. 1)."""
    assert 1 <= k <= total
    return sum(1 - math.comb(total - c, k) / math.comb(total, k) for c in correct) / len(correct)


def powers_of_two(number: int) -> list[int]:
    """1, 2, 4, ... up to `number`, and `number` itself: the k at which curves over k are logged."""
    return sorted({1 << i for i in range(number.bit_length())} | {number})


def majority(votes: Sequence[Hashable]) -> int:
    """Place of the first vote for the most frequent answer; of equally frequent ones, for that seen first   (arXiv:2203.11171)."""
    counts = Counter(votes)
    return list(votes).index(max(counts, key=counts.__getitem__))


def maj_at_k(votes: Sequence[Sequence[Hashable]], right: Sequence[Sequence[float]], k: int) -> float:
    """E_prompts[score of the majority answer of k samples]: mean over the disjoint blocks of k, unbiased as samples are exchangeable."""
    assert 1 <= k <= min(map(len, votes))
    means = []
    for answers, scores in zip(votes, right, strict=True):
        starts = range(0, len(answers) - k + 1, k)
        means.append(sum(scores[i + majority(answers[i : i + k])] for i in starts) / len(starts))
    return sum(means) / len(means)


def best_of_k(scores: Sequence[Sequence[float]], right: Sequence[Sequence[float]], k: int) -> float:
    """E_prompts[`right` of the response with the highest score among k of n], exact over all subsets of k; ties are broken uniformly.

    Responses a, ..., b of equal score, ranked from below, are chosen by a fraction [C(b, k) - C(a - 1, k)] / C(n, k) of the subsets.
    A score of nan ranks lowest. With `right` as score it is pass@k, with a constant score the mean of `right`.
    """
    assert 1 <= k <= min(map(len, scores))
    means = []
    for row, values in zip(scores, right, strict=True):
        ranked = sorted(zip((-math.inf if math.isnan(s) else s for s in row), values, strict=True))
        total, below = 0.0, 0
        for _, tied in groupby(ranked, key=lambda pair: pair[0]):
            group = [value for _, value in tied]
            up_to = below + len(group)
            total += (math.comb(up_to, k) - math.comb(below, k)) * sum(group) / len(group)
            below = up_to
        means.append(total / math.comb(len(row), k))
    return sum(means) / len(means)


def unique_fraction(groups: Sequence[Sequence[str]]) -> float:
    """Distinct texts over texts, per prompt, averaged over prompts. 1 / G for a collapsed model."""
    return sum(len({t.strip() for t in g}) / len(g) for g in groups) / len(groups)


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Distinct n-grams of words over all n-grams   (arXiv:1510.03055, section 5.3); nan where no text has n words."""
    grams = [tuple(words[i : i + n]) for words in map(str.split, texts) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else math.nan


def degenerate(text: str) -> bool:
    """No letter or digit; or, from eight words on, fewer than half of the word pairs distinct."""
    return not any(c.isalnum() for c in text) or (len(text.split()) >= 8 and distinct_n([text], 2) < 0.5)


def auc(positive: Float[Tensor, "P"], negative: Float[Tensor, "N"]) -> float:
    """P(a positive score is above a negative one), a tie counting half: the Mann-Whitney U over P N; nan where there is no pair."""
    number, total = len(positive), len(positive) * len(negative)
    if not total:
        return math.nan
    from scipy.stats import rankdata

    ranks = rankdata(torch.cat([positive, negative]).numpy())
    return float((ranks[:number].sum() - number * (number + 1) / 2) / total)


def calibration_error(probabilities: Float[Tensor, "B"], labels: Float[Tensor, "B"], weights: Float[Tensor, "B"], *, bins: int) -> float:
    """sum_b m_b |mean probability of bin b - fraction of positives in it|, bins of equal mass   (arXiv:1904.01685, section 3).

    m_b is the fraction of the weights in the bin. Equal probabilities are never parted, so the order of the rows does not matter: they
    fall where the middle of their mass does. Noise alone makes it positive: few rows per bin read as miscalibration.
    """
    values, index = probabilities.unique(return_inverse=True)
    mass = torch.zeros_like(values).index_add(0, index, weights / weights.sum())
    place = ((mass.cumsum(0) - mass / 2) * bins).long().clamp(max=bins - 1)[index]
    gap = (probabilities - labels) * weights / weights.sum()
    return float(gap.new_zeros(bins).index_add(0, place, gap).abs().sum())


def entropy_curve(entropy: Float[Tensor, "B T"], target: Bool[Tensor, "B T"]) -> Float[Tensor, "K"]:
    """Mean entropy of the k-th response token over the responses that have one."""
    place = target.long().cumsum(1)[target] - 1
    length = int(target.sum(1).max())
    sums = entropy.new_zeros(length).index_add(0, place, entropy[target])
    return sums / torch.bincount(place, minlength=length).to(sums.dtype)


__all__ = [
    "accuracy", "auc", "best_of_k", "calibration_error", "constant", "degenerate", "distinct_n", "entropy_curve", "maj_at_k", "majority",
    "pass_at_k", "powers_of_two", "unique_fraction",
]  # fmt: skip

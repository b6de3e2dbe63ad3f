"""What a model is worth when nobody attacks it. Axes: B rows, T tokens, C classes; texts are grouped by prompt."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def accuracy(logits: Float[Tensor, "B C"], labels: Int[Tensor, "B"]) -> float:
    """Share of rows whose largest logit is the label's."""
    return (logits.argmax(1) == labels).double().mean().item()


def constant(predictions: Sequence[object], labels: Sequence[object], share: float = 0.99) -> bool:
    """Whether (almost) every prediction is the same although the labels are not: such a model is robust to everything."""
    if len(predictions) < 2 or len(set(labels)) < 2:
        return False
    largest = max(predictions.count(p) for p in set(predictions))
    majority = max(labels.count(label) for label in set(labels))
    return largest >= share * len(predictions) and majority < share * len(labels)


def pass_at_k(correct: Sequence[int], total: int, k: int) -> float:
    """E_prompts[1 - C(n - c, k) / C(n, k)], unbiased from n samples of which c are right   (arXiv:2107.03374, eq. 1)."""
    assert 1 <= k <= total
    return sum(1 - math.comb(total - c, k) / math.comb(total, k) for c in correct) / len(correct)


def unique_fraction(groups: Sequence[Sequence[str]]) -> float:
    """Distinct texts over texts, per prompt, averaged over prompts. 1 / G for a collapsed model."""
    return sum(len({t.strip() for t in g}) / len(g) for g in groups) / len(groups)


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Distinct n-grams of words over all n-grams   (arXiv:1510.03055, section 5.3); nan where no text has n words."""
    grams = [tuple(words[i : i + n]) for words in map(str.split, texts) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else math.nan


def entropy_curve(entropy: Float[Tensor, "B T"], target: Bool[Tensor, "B T"]) -> Float[Tensor, "K"]:
    """Mean entropy of the k-th response token over the responses that have one."""
    place = target.long().cumsum(1)[target] - 1
    length = int(target.sum(1).max())
    sums = entropy.new_zeros(length).index_add(0, place, entropy[target])
    return sums / torch.bincount(place, minlength=length).to(sums.dtype)


__all__ = ["accuracy", "constant", "distinct_n", "entropy_curve", "pass_at_k", "unique_fraction"]

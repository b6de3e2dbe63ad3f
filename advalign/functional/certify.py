"""Certificates of smoothed classifiers: what no attack within a size can change. Axes: N copies, T words, C classes.

A smoothed classifier answers what the base classifier answers most often on random copies of its input: with gaussian noise
(arXiv:1902.02918) or with random words masked (arXiv:2105.03743). p_A is the probability of that answer, `alpha` the
probability that a bound on it is wrong. Everything is float64.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Int
from scipy import special
from torch import Tensor

# Where p_A - beta Delta is 1/2 in exact arithmetic two classes may tie: rounding must not turn that into a certificate.
ROUNDING = 1e-12


def lower_bound(successes: int, total: int, *, alpha: float) -> float:
    """inf{p : P(Binomial(total, p) >= successes) > alpha} = Beta^-1(alpha; s, n - s + 1)   (Clopper and Pearson 1934).

    Below the true p with probability at least 1 - alpha. alpha^(1/n) where all succeeded, 0 where none did.
    """
    _check(successes, total, alpha)
    if successes in (0, total):
        return 0.0 if successes == 0 else alpha ** (1 / total)
    return float(special.betaincinv(successes, total - successes + 1, alpha))


def clopper_pearson(successes: int, total: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """The two one-sided bounds at alpha = (1 - confidence) / 2: covers p with probability at least `confidence`."""
    tail = (1 - confidence) / 2
    return lower_bound(successes, total, alpha=tail), 1 - lower_bound(total - successes, total, alpha=tail)


def smoothing_radius(p_lower: float, *, sigma: float) -> float:
    """R = sigma Phi^-1(p_A) where p_A > 1/2, else 0   (arXiv:1902.02918, eq. 3 with p_B = 1 - p_A, as in its section 3.2.2)."""
    assert sigma > 0
    assert 0 <= p_lower <= 1
    return sigma * float(special.ndtri(p_lower)) if p_lower > 0.5 else 0.0


def smoothing_predict(counts: Int[Tensor, "C"], *, alpha: float) -> int | None:
    """The most frequent class if Binomial(n_A + n_B, 1/2) makes n_A over n_B unlikely (two-sided p <= alpha), else None
    (PREDICT, arXiv:1902.02918, section 3.2.1): wrong about the smoothed classifier with probability at most alpha."""
    first, second = _two_largest(counts)
    # The distribution is symmetric, so the two-sided p value is twice the upper tail.
    p_value = min(1.0, 2 * float(special.betainc(first, second + 1, 0.5))) if first > second else 1.0
    return int(counts.argmax()) if p_value <= alpha else None


def certify(selection: Int[Tensor, "C"], estimation: Int[Tensor, "C"], *, alpha: float) -> tuple[int | None, float]:
    """CERTIFY of arXiv:1902.02918 (section 3.2.2) up to the radius: (class, lower bound on its probability).

    The class comes from its own draws (`selection`), the bound from others (`estimation`): one sample for both would choose the
    class that was lucky. None, which is to abstain, unless the bound is above 1/2.
    """
    chosen = int(selection.argmax())
    bound = lower_bound(int(estimation[chosen]), int(estimation.sum()), alpha=alpha)
    return (chosen if bound > 0.5 + ROUNDING else None), bound


# ------------------------------------------------------------------------------------------------- masked words


def ranmask_num_kept(words: int, *, rate: float) -> int:
    """k = T - round(rate T), at least one word   (arXiv:2105.03743; rounding as in its released code, which masks copies with at
    least two words kept and computes Delta without that; here both have the same k)."""
    assert words >= 0
    assert 0 <= rate < 1
    return max(words - round(rate * words), min(words, 1))


def ranmask_delta(words: int, *, num_kept: int, changed: int) -> float:
    """Delta = 1 - C(T - d, k) / C(T, k): the probability that one of d changed words is among the k kept
    (arXiv:2105.03743). Integers are exact at every length; only the ratio is rounded."""
    assert 0 <= changed <= words
    assert 0 <= num_kept <= words
    total = math.comb(words, num_kept)
    return (total - math.comb(words - changed, num_kept)) / total


def ranmask_words(p_lower: float, *, words: int, num_kept: int, beta: Callable[[int], float] | None = None) -> int | None:
    """The largest d with p_A - beta Delta(d) > 1/2 for it and every smaller number of words; None where p_A <= 1/2
    (arXiv:2105.03743, with p_B = 1 - p_A). The released code returns d + 1, "fewer than" which are certified.

    p_A is that of one class on copies whose kept words did not change, so at most beta Delta of it can be lost, with
    beta = P(that class | a changed word is kept) <= 1. Without `beta` it is 1, which is right for every attack; an estimate of
    it on the clean text (`ranmask_beta`) says nothing about the words an attacker will write, and is not a certificate.
    """
    if p_lower <= 0.5 + ROUNDING:
        return None
    certified = 0
    for changed in range(1, words + 1):
        factor = 1.0 if beta is None else beta(changed)
        if p_lower - factor * ranmask_delta(words, num_kept=num_kept, changed=changed) <= 0.5 + ROUNDING:
            break
        certified = changed
    return certified


def ranmask_beta(
    votes: Bool[Tensor, "N"], kept_words: Bool[Tensor, "N T"], *, changed: int, samples: int = 200, generator: torch.Generator | None = None
) -> float:
    """beta ~ P(f(masked copy) = A | a copy keeps one of d words), over copies and `samples` random sets of d words
    (arXiv:2105.03743, Monte-Carlo estimate; 200 sets as in its released code). NOT SOUND: an average, and over clean words.

    Ours: the d words of a set differ (the released code draws them with replacement). 1 where no copy keeps any of them.
    """
    assert 1 <= changed <= kept_words.shape[1]
    order = torch.rand(samples, kept_words.shape[1], generator=generator, dtype=torch.float64).argsort(1)
    sets = torch.zeros(samples, kept_words.shape[1], dtype=torch.float64).scatter(1, order[:, :changed], 1.0)
    meets = sets @ kept_words.double().T > 0
    total = int(meets.sum())
    return float((meets & votes).sum()) / total if total else 1.0


def _two_largest(counts: Int[Tensor, "C"]) -> tuple[int, int]:
    largest = counts.sort(descending=True).values[:2].tolist()
    return largest[0], largest[1] if len(largest) > 1 else 0


def _check(successes: int, total: int, alpha: float) -> None:
    assert 0 <= successes <= total
    assert total > 0
    assert 0 < alpha < 1


__all__ = [
    "certify", "clopper_pearson", "lower_bound", "ranmask_beta", "ranmask_delta", "ranmask_num_kept", "ranmask_words",
    "smoothing_predict", "smoothing_radius",
]  # fmt: skip

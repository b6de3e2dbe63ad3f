"""Clean utility of sampled responses: score, pass@k, diversity and entropy."""

import math
from collections.abc import Sequence

from advalign.metrics import utility
from advalign.models import Network
from advalign.rewards.exact_answer import grade
from advalign.targets.generator import GeneratorTarget
from advalign.types import Example, RolloutGroup, Sampling


def sampled_utility(network: Network, examples: Sequence[Example], *, samples: int, sampling: Sampling, seed: int = 0) -> dict[str, float]:
    """Score, pass@1, pass@k, diversity per prompt, and entropy of the distributions sampled from."""
    target = GeneratorTarget(network)
    groups = target.generate(examples, samples, sampling, (seed, "generation"))
    return {**graded(groups), "entropy": target.entropy(groups).double().mean().item()}


def graded(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """`unique`, `distinct_2`, and, if every response can be verified, `score`, `pass@1` and `pass@k`."""
    texts = [[r.text for r in g.rollouts] for g in groups]
    scores = [[grade(g.example, t, tolerance=1e-6) for t in ts] for g, ts in zip(groups, texts, strict=True)]
    diversity = {"unique": utility.unique_fraction(texts), "distinct_2": utility.distinct_n([t for ts in texts for t in ts], 2)}
    if any(math.isnan(s) for row in scores for s in row):
        return diversity
    correct, k = [sum(s >= 1 - 1e-9 for s in row) for row in scores], len(scores[0])
    rates = {f"pass@{n}": utility.pass_at_k(correct, k, n) for n in dict.fromkeys((1, k))}
    values = [s for row in scores for s in row]
    return {"score": sum(values) / len(values) if values else math.nan, **rates, **diversity}


__all__ = ["graded", "sampled_utility"]

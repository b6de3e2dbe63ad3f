"""Started rewards, their scores on rollouts, and the weighted sum of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from advalign.errors import RewardError
from advalign.interfaces import Context, Reward, Scorer, Scores
from advalign.plugins import kind_of
from advalign.types import Example, Rollout, RolloutGroup

LARGEST = torch.finfo(torch.float32).max
"""Of a reward times its weight: rows hold them in float32."""


def start_scorers(rewards: Sequence[Reward], context: Context, examples: Sequence[Example], path: str) -> list[Scorer]:
    """One scorer per reward. Several processes divide the groups among them, unless a reward scores the whole draw. `examples`: what they
    will score responses to, which every reward checks; empty: not known before it is drawn. `path`: of the source."""
    for number, reward in enumerate(rewards if examples else ()):
        reward.check(examples, f"{path}.rewards.{number}")
    scorers = [(reward, as_scorer(reward.start(context))) for reward in rewards]
    return [s if reward.scores_whole_draw else _DistributedScorer(s, context.map_across_ranks) for reward, s in scorers]


def as_scorer(scorer: Callable[[Sequence[RolloutGroup]], Scores]) -> Scorer:
    """The scorer itself, or a plain function as a scorer without state."""
    return scorer if isinstance(scorer, Scorer) else _FunctionScorer(scorer)


class _FunctionScorer(Scorer):
    """A scorer without state."""

    def __init__(self, function: Callable[[Sequence[RolloutGroup]], Scores]) -> None:
        self.function = function

    def __call__(self, groups: Sequence[RolloutGroup]) -> Scores:
        return self.function(groups)


class _DistributedScorer(Scorer):
    """A scorer whose groups are divided among the processes."""

    def __init__(self, scorer: Scorer, map_across_ranks: Callable[..., list[Any]]) -> None:
        self.scorer, self.map_across_ranks = scorer, map_across_ranks

    def __call__(self, groups: Sequence[RolloutGroup]) -> list[Any]:
        results = self.map_across_ranks(groups, self._by_group)
        self.logs = merged_logs(logs for _, logs in results)
        return [score for scores, _ in results for score in scores]

    def _by_group(self, groups: Sequence[RolloutGroup]) -> list[tuple[list[Any], dict[str, list[float]]]]:
        """(scores, logs) per group; the first has the logs of all."""
        scores = [[float(s) for s in score] if isinstance(score, Sequence) else float(score) for score in self.scorer(groups)]
        logs = {name: [float(value) for value in values] for name, values in self.scorer.logs.items()}
        if len(scores) != sum(len(g.rollouts) for g in groups):
            return [(scores, logs), *(([], {}) for _ in groups[1:])]  # `score` counts them, and reports the wrong number
        remaining = iter(scores)
        return [([next(remaining) for _ in g.rollouts], {} if i else logs) for i, g in enumerate(groups)]

    def state_dict(self) -> dict[str, Any]:
        return self.scorer.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.scorer.load_state_dict(state)


class LastScaled(Scorer):
    """A scorer of further responses on the scale of another scorer's last call."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    def __call__(self, groups: Sequence[RolloutGroup]) -> Scores:
        return self.scorer.as_last_scaled(groups)


def merged_logs(logs: Iterable[Mapping[str, Sequence[float]]]) -> dict[str, list[float]]:
    """{name: the values of all}."""
    merged: dict[str, list[float]] = {}
    for values_by_name in logs:
        for name, values in values_by_name.items():
            merged.setdefault(name, []).extend(values)
    return merged


def score(groups: Sequence[RolloutGroup], rewards: Sequence[Reward], scorers: Sequence[Scorer], path: str) -> dict[str, float]:
    """Appends one number per reward to every rollout's `rewards`; returns means and spreads by reward. A reward given token by token
    goes to `token_rewards`, and counts as 0 among the others. What the scorers logged is among the numbers returned.

    Raises RewardError for a wrong number of scores, for infinite ones, and for those that are infinite in float32. nan abstains.
    """
    rollouts = [r for g in groups for r in g.rollouts]
    logs: dict[str, float] = {}
    for label, reward, scorer in zip(reward_labels(rewards), rewards, scorers, strict=True):
        scores = list(scorer(groups))
        if len(scores) != len(rollouts):
            raise RewardError(f"{path}: reward '{label}' gave {len(scores)} scores for {len(rollouts)} responses; one each is needed.")
        sums = [_store(score, rollout, reward.weight, label, path) for rollout, score in zip(rollouts, scores, strict=True)]
        scored = torch.tensor([s for s in sums if not math.isnan(s)], dtype=torch.float64)
        if scored.numel():
            logs |= {f"rewards/{label}/mean": float(scored.mean()), f"rewards/{label}/std": sample_std(scored)}
            lengths = [max(len(r.response_ids), 1) for r, s in zip(rollouts, sums, strict=True) if not math.isnan(s)]
            correlation = _correlation(scored, torch.tensor(lengths, dtype=torch.float64).log())
            logs |= {} if math.isnan(correlation) else {f"rewards/{label}/corr_length": correlation}
    return logs | {name: sum(values) / len(values) for name, values in merged_logs(s.logs for s in scorers).items() if values}


def _store(score: float | Sequence[float], rollout: Rollout, weight: float, label: str, path: str) -> float:
    """Appends one score to its rollout; returns its sum over tokens."""
    per_token = [float(s) for s in score] if isinstance(score, Sequence) else None
    total = float(sum(per_token)) if per_token is not None else float(score)  # type: ignore[arg-type]
    too_large = [x for x in (*(per_token or ()), total) if math.isinf(x) or abs(x * weight) > LARGEST]
    if too_large:
        raise RewardError(
            f"{path}: reward '{label}' gave {too_large[0]:g} for '{rollout.text[:60]}' (weight {weight:g}); give a finite number, of at "
            "most 3.4e38 with its weight, or nan to abstain."
        )
    if per_token is None or math.isnan(total):
        rollout.rewards.append(total)
        return total
    if len(per_token) != len(rollout.response_ids):
        raise RewardError(f"{path}: reward '{label}' gave {len(per_token)} scores for a response of {len(rollout.response_ids)} tokens.")
    before = rollout.token_rewards or [0.0] * len(per_token)
    rollout.token_rewards = [b + weight * s for b, s in zip(before, per_token, strict=True)]
    rollout.rewards.append(0.0)
    return total


def reward_labels(rewards: Sequence[Reward]) -> list[str]:
    """One name per reward: its kind, numbered from the second of a kind on."""
    kinds = [kind_of(type(r)) for r in rewards]
    return [kind if kind not in kinds[:i] else f"{kind}_{kinds[:i].count(kind) + 1}" for i, kind in enumerate(kinds)]


def total_reward(rollout: Rollout, weights: Sequence[float]) -> float:
    """The weighted sum of the rewards that did not abstain; nan where all did."""
    scored = [value * weight for value, weight in zip(rollout.rewards, weights, strict=True) if not math.isnan(value)]
    total = sum(scored) if scored or not rollout.rewards else math.nan
    return total + sum(rollout.token_rewards or ())


def are_equal(totals: Sequence[float]) -> bool:
    """Whether rewards are equal within rounding, of float32 relative to their size: their differences teach nothing."""
    return math.isclose(max(totals), min(totals), rel_tol=1e-6, abs_tol=1e-8)


def sample_std(x: torch.Tensor) -> float:
    """ddof = 1, as TRL's; 0 for a single number."""
    return float(x.std()) if x.numel() > 1 else 0.0


def _correlation(x: torch.Tensor, y: torch.Tensor) -> float:
    """Pearson's r; nan where one of them is constant."""
    x, y = x - x.mean(), y - y.mean()
    scale = float(x.norm() * y.norm())
    return float(x @ y) / scale if x.numel() > 2 and scale > 1e-12 else math.nan

"""What sources of rollouts share: who answers, scores, what a draw reports, its rows, and groups as plain values for a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from advalign.errors import ConfigError, RewardError
from advalign.interfaces import Advantage, Context, Reward, SamplingRequest, Scorer, Scores, Source
from advalign.plugins import kind_of
from advalign.types import Example, Rollout, RolloutGroup, RolloutRows, Rows, Sampling


class RolloutSource(Source):
    """Abstract base of sources whose rows are rollouts. Its fields `advantage` and `learner` are what it declares."""

    row_type: ClassVar[type[Rows]] = RolloutRows
    draws_before_updates: ClassVar[bool] = True

    @property
    def samples_with(self) -> str | None:
        return self.learner

    @property
    def players(self) -> Sequence[tuple[str, str]]:
        return (("learner", self.learner),)

    @property
    def advantage_estimator(self) -> Advantage | None:
        return self.advantage

    @property
    def draw_size(self) -> int:
        return self.batch_size

    if TYPE_CHECKING:  # fields of every subclass
        advantage: Advantage
        learner: str
        batch_size: int


@dataclass(frozen=True, kw_only=True)
class Sampled(Source):
    """Abstract base of sources that a learner samples for: `group_size` responses per prompt of `data`, sampled by
    `learner`, scored by `rewards`. The reward of a response is the weighted sum of its rewards."""

    data: Any
    rewards: Sequence[Reward]
    group_size: int = 8
    batch_size: int = 16
    sampling: Sampling = field(default_factory=Sampling)
    learner: str = "policy"
    limit: int | None = None

    draws_before_updates: ClassVar[bool] = True

    @property
    def samples_with(self) -> str | None:
        return self.learner

    @property
    def players(self) -> Sequence[tuple[str, str]]:
        return (("learner", self.learner),)

    @property
    def reward_parts(self) -> Sequence[Reward]:
        return self.rewards

    @property
    def request(self) -> SamplingRequest | None:
        return SamplingRequest(data=self.data, num_prompts=self.batch_size, responses_per_prompt=self.group_size, sampling=self.sampling)

    @property
    def draw_size(self) -> int:
        return self.batch_size

    def __post_init__(self) -> None:
        if not self.rewards:
            raise ConfigError("sources: prompts without rewards teach nothing; give at least one reward.")
        for name in ("group_size", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"sources.{name}: got {getattr(self, name)}, must be at least 1.")


def started(rewards: Sequence[Reward], context: Context) -> list[Scorer]:
    """Scorers. Several processes share the groups among them, unless a reward scores the whole draw."""
    scorers = [(r, as_scorer(r.start(context))) for r in rewards]
    return [s if r.scores_whole_draw else _SharedScorer(s, context.map_across_ranks) for r, s in scorers]


def as_scorer(scorer: Callable[[Sequence[RolloutGroup]], Scores]) -> Scorer:
    """A plain function carries nothing between draws."""
    return scorer if isinstance(scorer, Scorer) else _FunctionScorer(scorer)


class _FunctionScorer(Scorer):
    def __init__(self, function: Callable[[Sequence[RolloutGroup]], Scores]) -> None:
        self.function = function

    def __call__(self, groups: Sequence[RolloutGroup]) -> Scores:
        return self.function(groups)


class _SharedScorer(Scorer):
    def __init__(self, scorer: Scorer, map_across_ranks: Callable[..., list[Any]]) -> None:
        self.scorer, self.map_across_ranks = scorer, map_across_ranks

    def __call__(self, groups: Sequence[RolloutGroup]) -> list[Any]:
        return [score for scores in self.map_across_ranks(groups, self._by_group) for score in scores]

    def _by_group(self, groups: Sequence[RolloutGroup]) -> list[list[Any]]:
        given = [[float(s) for s in score] if isinstance(score, Sequence) else float(score) for score in self.scorer(groups)]
        if len(given) != sum(len(g.rollouts) for g in groups):
            return [given, *([] for _ in groups[1:])]  # the wrong number is reported where it is counted
        rest = iter(given)
        return [[next(rest) for _ in g.rollouts] for g in groups]

    def state_dict(self) -> dict[str, Any]:
        return self.scorer.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.scorer.load_state_dict(state)


def score(groups: Sequence[RolloutGroup], rewards: Sequence[Reward], scorers: Sequence[Scorer], where: str) -> dict[str, float]:
    """Appends one number per reward to every rollout's `rewards`; returns means and spreads by reward. A reward given token by token
    goes to `token_rewards`, and counts as 0 among the others.

    Raises RewardError for a wrong number of scores and for infinite ones. nan abstains.
    """
    rollouts = [r for g in groups for r in g.rollouts]
    logs: dict[str, float] = {}
    for label, reward, scorer in zip(labels(rewards), rewards, scorers, strict=True):
        given = list(scorer(groups))
        if len(given) != len(rollouts):
            raise RewardError(f"{where}: reward '{label}' gave {len(given)} scores for {len(rollouts)} responses; one each is needed.")
        scores = [_taken(rollout, s, reward.weight, label, where) for rollout, s in zip(rollouts, given, strict=True)]
        judged = torch.tensor([s for s in scores if not math.isnan(s)], dtype=torch.float64)
        if judged.numel():
            logs |= {f"rewards/{label}/mean": float(judged.mean()), f"rewards/{label}/std": _std(judged)}
            lengths = [max(len(r.response_ids), 1) for r, s in zip(rollouts, scores, strict=True) if not math.isnan(s)]
            leak = _correlation(judged, torch.tensor(lengths, dtype=torch.float64).log())
            logs |= {} if math.isnan(leak) else {f"rewards/{label}/corr_length": leak}
    return logs


def _taken(rollout: Rollout, score: float | Sequence[float], weight: float, label: str, where: str) -> float:
    """Writes one score down; its sum."""
    each = None if isinstance(score, int | float) or not isinstance(score, Sequence) else [float(s) for s in score]
    total = float(score) if each is None else float(sum(each))  # type: ignore[arg-type]
    if math.isinf(total):
        raise RewardError(f"{where}: reward '{label}' gave {total} for '{rollout.text[:60]}'; give a finite number, or nan to abstain.")
    if each is None or math.isnan(total):
        rollout.rewards.append(total)
        return total
    if len(each) != len(rollout.response_ids):
        raise RewardError(f"{where}: reward '{label}' gave {len(each)} scores for a response of {len(rollout.response_ids)} tokens.")
    before = rollout.token_rewards or [0.0] * len(each)
    rollout.token_rewards = [b + weight * s for b, s in zip(before, each, strict=True)]
    rollout.rewards.append(0.0)
    return total


def labels(rewards: Sequence[Reward]) -> list[str]:
    """One name per reward: its kind, numbered from the second of a kind on."""
    kinds = [kind_of(type(r)) for r in rewards]
    return [kind if kind not in kinds[:i] else f"{kind}_{kinds[:i].count(kind) + 1}" for i, kind in enumerate(kinds)]


def _correlation(x: torch.Tensor, y: torch.Tensor) -> float:
    """Pearson's r; nan where one of them does not vary."""
    x, y = x - x.mean(), y - y.mean()
    scale = float(x.norm() * y.norm())
    return float(x @ y) / scale if x.numel() > 2 and scale > 1e-12 else math.nan


def _std(x: torch.Tensor) -> float:
    """ddof = 1, as TRL's; 0 of a single number."""
    return float(x.std()) if x.numel() > 1 else 0.0


def total(rollout: Rollout, rewards: Sequence[Reward]) -> float:
    """The weighted sum; nan where a reward abstained."""
    whole = sum(value * reward.weight for value, reward in zip(rollout.rewards, rewards, strict=True))
    return whole + sum(rollout.token_rewards or ())


def without_abstentions(groups: Sequence[RolloutGroup]) -> tuple[list[RolloutGroup], int]:
    """Groups without the rollouts that some reward could not judge, and how many those were."""
    kept, gone = [], 0
    for group in groups:
        judged = [r for r in group.rollouts if not any(map(math.isnan, r.rewards))]
        gone += len(group.rollouts) - len(judged)
        group.rollouts = judged
        if judged:
            kept.append(group)
    return kept, gone


def report(groups: Sequence[RolloutGroup], rewards: Sequence[Reward]) -> dict[str, float]:
    """TRL's names where the meaning is the same. Demonstrations inside groups do not count."""
    rollouts = [r for g in groups for r in g.rollouts if not r.offpolicy]
    if not rollouts:
        return {}
    totals = torch.tensor([total(r, rewards) for r in rollouts], dtype=torch.float64)
    spreads = [torch.tensor([total(r, rewards) for r in g.rollouts], dtype=torch.float64).std(correction=0).item() for g in groups]
    lengths = [len(r.response_ids) for r in rollouts]
    sampled = [p for r in rollouts for p in r.sampler_logprobs]
    done = [len(r.response_ids) for r in rollouts if r.finished]
    logs = {
        "reward": float(totals.mean()),
        "reward_std": _std(totals),
        "frac_reward_zero_std": sum(s == 0 for s in spreads) / len(spreads),
        "completions/mean_length": sum(lengths) / len(lengths),
        "completions/min_length": float(min(lengths)),
        "completions/max_length": float(max(lengths)),
        "completions/clipped_ratio": sum(not r.finished for r in rollouts) / len(rollouts),
        "sampled_entropy": -sum(sampled) / max(len(sampled), 1),  # of the policy at its temperature, estimated on its own tokens
        "unique": sum(len({r.text for r in g.rollouts if not r.offpolicy}) for g in groups) / len(rollouts),
    }
    return logs | ({"completions/mean_terminated_length": sum(done) / len(done)} if done else {})


def rows(groups: Sequence[RolloutGroup], encoder: Any, weights: Sequence[float], temperature: float) -> RolloutRows:
    """Sampled ids as they are; for the learner that sampled them and those that share its tokenizer."""
    tokens = encoder.rollouts(groups)
    rollouts = [r for g in groups for r in g.rollouts]
    # A response cut by max_length keeps its first tokens, so the log-probabilities are cut alike.
    lengths = tokens.target.sum(1).tolist()
    values = [v for r, n in zip(rollouts, lengths, strict=True) for v in r.sampler_logprobs[:n]]
    credited = [v for r, n in zip(rollouts, lengths, strict=True) for v in (r.token_rewards or [0.0] * n)[:n]]
    zeros = torch.zeros(tokens.ids.shape)
    baselines = [g.baseline for g in groups for _ in g.rollouts]
    return RolloutRows(
        tokens=tokens,
        rewards=torch.tensor([r.rewards for r in rollouts]) * torch.tensor(list(weights)),
        advantages=torch.zeros(tokens.ids.shape),
        sampler_logprobs=zeros.masked_scatter(tokens.target, torch.tensor(values)),
        token_rewards=zeros.masked_scatter(tokens.target, torch.tensor(credited)) if any(r.token_rewards for r in rollouts) else None,
        finished=torch.tensor([r.finished for r in rollouts]),
        temperature=temperature,
        offpolicy=torch.tensor([r.offpolicy for r in rollouts]) if any(r.offpolicy for r in rollouts) else None,
        baseline=None if any(b is None for b in baselines) else torch.tensor(baselines),
    )


def without_verifier(group: RolloutGroup) -> RolloutGroup:
    """The group without what a checkpoint cannot hold: the example's verifier and its loose columns. A pool stores groups
    like this from the start, so that a resumed run reads what an uninterrupted one reads."""
    return replace(group, example=replace(group.example, verify=None, meta={}))


def to_json(group: RolloutGroup) -> dict[str, Any]:
    """A bare group as nested plain values."""
    return asdict(without_verifier(group))


def from_json(values: Mapping[str, Any]) -> RolloutGroup:
    """The inverse of `to_json`."""
    rollouts = [Rollout(**rollout) for rollout in values["rollouts"]]
    return RolloutGroup(**{**values, "example": Example(**values["example"]), "rollouts": rollouts})

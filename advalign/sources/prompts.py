"""Prompts the policy answers itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from advalign import data as loading
from advalign.errors import ConfigError, RewardError
from advalign.protocols import AdvantageEstimator, Context, Reward
from advalign.sources._stream import Stream
from advalign.types import RolloutGroup, RolloutRows, Rows, Sampling

__all__ = ["Prompts"]


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """`batch_size` prompts per draw, `group_size` responses each, sampled by `learner`, scored by `rewards`.

    The reward of a row is the weighted sum of its rewards. A reward that abstains (nan) removes the row, and the count
    is logged; a reward that throws stops the run.
    """

    data: Any
    rewards: Sequence[Reward]
    advantage: AdvantageEstimator
    group_size: int = 8
    batch_size: int = 16
    sampling: Sampling = field(default_factory=Sampling)
    learner: str = "policy"
    limit: int | None = None

    yields: ClassVar[type[Rows]] = RolloutRows

    def __post_init__(self) -> None:
        if not self.rewards:
            raise ConfigError("sources: prompts without rewards teach nothing; give at least one reward.")

    @property
    def after(self) -> tuple[str, ...]:
        return ()

    def start(self, context: Context, name: str) -> _Runtime:
        return _Runtime(self, context, name)


class _Runtime:
    def __init__(self, config: Prompts, context: Context, name: str) -> None:
        examples = loading.examples(config.data, limit=config.limit, seed=context.seed)
        self.config, self.context, self.name = config, context, name
        self.stream = Stream(examples, lambda epoch: context.random("source", name, epoch), f"sources.{name}")
        self.rewards: list[Callable[[Sequence[RolloutGroup]], Sequence[float]]] = [r.start(context) for r in config.rewards]
        self.logs: dict[str, float] = {}

    def draw(self, step: int, repeat: int) -> list[RolloutGroup]:
        config = self.config
        examples = self.stream.take(config.batch_size)
        groups = self.context.generate(config.learner, examples, config.group_size, config.sampling, ("rollout", self.name, step))
        self._reward(groups)
        kept = _without_abstentions(groups)
        if not kept:
            raise RewardError(
                f"sources.{self.name}: the rewards abstained on every response of step {step}, so nothing can be learned from it."
            )
        return kept

    def _reward(self, groups: Sequence[RolloutGroup]) -> None:
        rollouts = [r for g in groups for r in g.rollouts]
        for reward, score in zip(self.config.rewards, self.rewards, strict=True):
            scores = list(score(groups))
            if len(scores) != len(rollouts):
                raise RewardError(f"sources.{self.name}: {type(reward).__name__} gave {len(scores)} scores for {len(rollouts)} responses.")
            for rollout, value in zip(rollouts, scores, strict=True):
                rollout.rewards.append(float(value))
            judged = [s for s in scores if not math.isnan(s)]
            label = type(reward).__name__.lower()
            self.logs[f"rewards/{label}/mean"] = sum(judged) / max(len(judged), 1)
        spread = [torch.tensor([sum(r.rewards) for r in g.rollouts]).std(correction=0).item() for g in groups]
        lengths = [len(r.response_ids) for r in rollouts]
        self.logs |= {
            "abstained": float(sum(any(map(math.isnan, r.rewards)) for r in rollouts)),
            "frac_reward_zero_std": sum(s == 0 for s in spread) / len(spread),
            "completions/mean_length": sum(lengths) / len(lengths),
            "completions/clipped_ratio": sum(not r.finished for r in rollouts) / len(rollouts),
            "unique": sum(len({r.text for r in g.rollouts}) for g in groups) / len(rollouts),
        }

    def rows(self, items: Sequence[RolloutGroup], encoder: Any) -> RolloutRows:
        """Sampled ids as they are; for the learner that sampled them and those that share its tokenizer."""
        tokens = encoder.rollouts(items)
        rollouts = [r for g in items for r in g.rollouts]
        weights = torch.tensor([r.weight for r in self.config.rewards])
        sampler = torch.zeros(tokens.ids.shape)
        # A response cut by max_length keeps its first tokens, so the log-probabilities are cut alike.
        values = torch.tensor([v for r, n in zip(rollouts, tokens.target.sum(1).tolist(), strict=True) for v in r.sampler_logprobs[:n]])
        return RolloutRows(
            tokens=tokens,
            rewards=torch.tensor([r.rewards for r in rollouts]) * weights,
            advantages=torch.zeros(tokens.ids.shape),
            sampler_logprobs=sampler.masked_scatter(tokens.target, values),
            finished=torch.tensor([r.finished for r in rollouts]),
            temperature=self.config.sampling.temperature,
        )

    def state_dict(self) -> dict[str, Any]:
        return self.stream.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.stream.load_state_dict(state)


def _without_abstentions(groups: Sequence[RolloutGroup]) -> list[RolloutGroup]:
    kept = []
    for group in groups:
        group.rollouts = [r for r in group.rollouts if not any(map(math.isnan, r.rewards))]
        if group.rollouts:
            kept.append(group)
    return kept

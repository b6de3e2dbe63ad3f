"""What sources of rollouts share: their declarations, the rows of a draw, abstentions and metrics of completions."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch

from advalign.errors import ConfigError, RewardError, located
from advalign.interfaces import Advantage, Reward, SamplingRequest, Source, shrunk
from advalign.models.row_bounds import doubtful
from advalign.names import SamplerName
from advalign.ranges import Count, Length
from advalign.sources._scoring import are_equal, sample_std, total_reward
from advalign.types import Example, RolloutGroup, RolloutRows, Rows, Sampling

if TYPE_CHECKING:
    from advalign.models.encode import Encoder


@dataclass(frozen=True, kw_only=True)
class LearnerSource(Source):
    """Abstract base of sources whose responses come from one learner."""

    learner: SamplerName = "policy"
    """Learner (or frozen copy) that samples."""

    occasional_metrics: ClassVar[tuple[str, ...]] = ("rewards/*", "completions/mean_terminated_length", "sampling/*", "curriculum/*")
    draws_before_updates: ClassVar[bool] = True

    @property
    def samples_with(self) -> str | None:
        return self.learner


@dataclass(frozen=True, kw_only=True)
class RolloutSource(LearnerSource):
    """Abstract base of sources whose rows are rollouts."""

    advantage: Advantage
    """What turns the rewards of a draw into advantages."""

    row_type: ClassVar[type[Rows]] = RolloutRows

    @property
    def advantage_estimator(self) -> Advantage | None:
        return self.advantage


@dataclass(frozen=True, kw_only=True)
class Sampled(LearnerSource):
    """Abstract base of sources that a learner samples for. The reward of a response is the weighted sum of its rewards."""

    data: Any
    """Reference to the prompts (see `advalign.data`)."""
    rewards: Annotated[Sequence[Reward], Length()]
    """Rewards of a response; at least one."""
    group_size: Count = 8
    """Responses per prompt."""
    batch_size: Count = 16
    """Prompts per draw."""
    sampling: Sampling = field(default_factory=Sampling)
    """How responses are sampled."""
    limit: Count | None = None
    """Number of examples kept, chosen by the run's seed. None: all."""

    def smaller(self) -> Source:
        return shrunk(self, batch_size=2, group_size=2)

    @property
    def reward_parts(self) -> Sequence[Reward]:
        return self.rewards

    @property
    def request(self) -> SamplingRequest | None:
        return SamplingRequest(data=self.data, num_prompts=self.batch_size, responses_per_prompt=self.group_size, sampling=self.sampling)

    @property
    def draw_size(self) -> int:
        return self.batch_size


def check_prompts(encoder: Encoder, examples: Sequence[Example], sampling: Sampling, path: str) -> None:
    """Refuses, before the first step, a prompt that leaves no room for a response or that the chat template refuses, and says that
    responses will be cut by `max_length` where prompts leave less room than `max_new_tokens`."""
    if encoder.truncation.mode == "left":
        return
    longest = 0
    for example in doubtful(encoder, examples, sampling.max_new_tokens):
        with located(f"{path}: {example.described}"):
            length = len(encoder.prompt(example.prompt))
            if not length:
                raise ConfigError(f"rollout: the prompt of example '{example.id}' is empty, and the tokenizer puts no token before a text.")
            encoder.truncation.rollout(length, 0)
        longest = max(longest, length)
    if longest + sampling.max_new_tokens > encoder.max_length:
        warnings.warn(
            f"{path}: prompts of up to {longest} tokens and sampling.max_new_tokens {sampling.max_new_tokens} do not fit in "
            f"{encoder.truncation.bound}; responses end there, unfinished, and num_truncated in the log counts them.",
            stacklevel=2,
        )


def weights(rewards: Sequence[Reward]) -> list[float]:
    """Their weights, in order."""
    return [reward.weight for reward in rewards]


def without_abstentions(groups: Sequence[RolloutGroup]) -> tuple[list[RolloutGroup], int]:
    """Groups without the rollouts that no reward could score, and how many those were."""
    remaining, num_abstained = [], 0
    for group in groups:
        scored = [r for r in group.rollouts if not r.rewards or not all(map(math.isnan, r.rewards))]
        num_abstained += len(group.rollouts) - len(scored)
        group.rollouts = scored
        if scored:
            remaining.append(group)
    return remaining, num_abstained


def require_scored(groups: Sequence[RolloutGroup], path: str, step: int) -> None:
    """Raises RewardError where abstentions left nothing."""
    if not groups:
        raise RewardError(f"{path}: the rewards abstained on every response of step {step}, so nothing can be learned from it.")


def completion_metrics(groups: Sequence[RolloutGroup], weights: Sequence[float]) -> dict[str, float]:
    """TRL's names where the meaning is the same. Demonstrations inside groups do not count. `weights`: of the rewards."""
    rollouts = [r for g in groups for r in g.rollouts if not r.offpolicy]
    if not rollouts:
        return {}
    totals = torch.tensor([total_reward(r, weights) for r in rollouts], dtype=torch.float64)
    constant = [are_equal([total_reward(r, weights) for r in g.rollouts]) for g in groups]
    lengths = [len(r.response_ids) for r in rollouts]
    logprobs = [p for r in rollouts for p in r.sampler_logprobs]
    terminated = [len(r.response_ids) for r in rollouts if r.finished]
    logs = {
        "reward": float(totals.mean()),
        "reward_std": sample_std(totals),
        "frac_reward_zero_std": sum(constant) / len(constant),
        "completions/mean_length": sum(lengths) / len(lengths),
        "completions/min_length": float(min(lengths)),
        "completions/max_length": float(max(lengths)),
        "completions/clipped_ratio": sum(not r.finished for r in rollouts) / len(rollouts),
        "sampled_entropy": -sum(logprobs) / max(len(logprobs), 1),  # of the policy at its temperature, estimated on its own tokens
        "unique": sum(len({r.text for r in g.rollouts if not r.offpolicy}) for g in groups) / len(rollouts),
    }
    return logs | ({"completions/mean_terminated_length": sum(terminated) / len(terminated)} if terminated else {})


def build_rows(groups: Sequence[RolloutGroup], encoder: Encoder, weights: Sequence[float], temperature: float) -> RolloutRows:
    """Rows of the sampled ids, for the learner that sampled them and those that share its tokenizer. `weights`: of the rewards."""
    tokens = encoder.rollouts(groups)
    rollouts = [r for g in groups for r in g.rollouts]
    # A response cut by max_length keeps its first tokens, so the log-probabilities are cut alike.
    lengths = tokens.target.sum(1).tolist()
    logprobs = [p for r, n in zip(rollouts, lengths, strict=True) for p in r.sampler_logprobs[:n]]
    token_rewards = [v for r, n in zip(rollouts, lengths, strict=True) for v in (r.token_rewards or [0.0] * n)[:n]]
    zeros = torch.zeros(tokens.ids.shape)
    rewards = torch.tensor([r.rewards for r in rollouts])
    scored = ~rewards.isnan()
    baselines = [g.baseline for g in groups for _ in g.rollouts]
    return RolloutRows(
        tokens=tokens,
        rewards=(rewards if scored.all() else rewards.nan_to_num(nan=0.0)) * torch.tensor(list(weights)),
        advantages=torch.zeros(tokens.ids.shape),
        sampler_logprobs=zeros.masked_scatter(tokens.target, torch.tensor(logprobs)),
        token_rewards=zeros.masked_scatter(tokens.target, torch.tensor(token_rewards)) if any(r.token_rewards for r in rollouts) else None,
        finished=torch.tensor([r.finished for r in rollouts]),
        temperature=temperature,
        offpolicy=torch.tensor([r.offpolicy for r in rollouts]) if any(r.offpolicy for r in rollouts) else None,
        scored=None if scored.all() else scored,
        baseline=None if any(b is None for b in baselines) else torch.tensor(baselines),
    )

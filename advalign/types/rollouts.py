"""Host-side containers: examples, and the responses sampled to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Example:
    """One thing to answer. `verify(text)` scores a response in [0, 1] where the example knows how."""

    prompt: str
    answer: str | None = None
    id: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    verify: Callable[[str], float] | None = None
    label: int | None = None
    pair: str | None = None


@dataclass(kw_only=True)
class Rollout:
    """One sampled response: the sampler's own ids (never re-tokenised), their log-probabilities, their text. `rewards`: one number per
    reward; `token_rewards`: those that were given token by token, weighted and summed over rewards, one per id."""

    response_ids: list[int]
    sampler_logprobs: list[float]
    text: str
    finished: bool
    policy_version: int = 0
    rewards: list[float] = field(default_factory=list)
    reward_versions: list[int] = field(default_factory=list)
    offpolicy: bool = False
    token_rewards: list[float] | None = None


@dataclass(kw_only=True)
class RolloutGroup:
    """All rollouts of one prompt. `baseline`: the reward of its greedy response, where an estimator asked for it."""

    example: Example
    prompt_ids: list[int]
    rollouts: list[Rollout]
    baseline: float | None = None


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to sample. temperature 0 is greedy."""

    max_new_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0

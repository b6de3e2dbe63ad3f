"""Prompts that a learner answers itself."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from advalign import data as loading
from advalign.errors import ConfigError
from advalign.interfaces import Context, SourceRuntime, Task
from advalign.ranges import Natural
from advalign.sources._ahead import PendingRollouts, RolloutQueue
from advalign.sources._options import Curriculum, CurriculumStream, Demonstrations, Dynamic, KLPenalty
from advalign.sources._rollouts import (
    RolloutSource,
    Sampled,
    build_rows,
    check_prompts,
    completion_metrics,
    require_scored,
    weights,
    without_abstentions,
)
from advalign.sources._scoring import LastScaled, are_equal, reward_labels, score, start_scorers, total_reward
from advalign.sources._stream import LazyStream, Stream
from advalign.types import Example, Rollout, RolloutGroup, RolloutRows

if TYPE_CHECKING:
    from advalign.models.encode import Encoder

__all__ = ["Prompts"]


@dataclass(frozen=True, kw_only=True)
class Prompts(Sampled, RolloutSource):
    """y_1 .. y_G ~ p(. | x) for each prompt x of a draw, R(x, y) = sum_r weight_r r(x, y): the rollouts of GRPO and its relatives.

    A reward that abstains (nan) is left out of the row's sum; a row that all abstained on leaves the batch, and the count is logged; a
    reward that raises stops the run.
    """

    dynamic: Dynamic | None = None
    """Refill groups whose rewards are all equal, but for a price on length."""
    demonstrations: Demonstrations | None = None
    """Demonstrations as off-policy rows inside the groups."""
    kl: KLPenalty | None = None
    """A KL penalty in the reward."""
    curriculum: Curriculum | None = None
    """Draw prompts by measured difficulty. None: in random order."""
    ahead: Natural = 0
    """Sample rollouts for up to so many coming steps in the background, by weights at most that many steps old."""

    @property
    def reward_penalty(self) -> KLPenalty | None:
        return self.kl

    @property
    def steps_ahead(self) -> int:
        return self.ahead

    def __post_init__(self) -> None:
        super().__post_init__()
        reason = None
        if self.curriculum is not None:
            reason = "curriculum chooses prompts by what was scored last"
        elif self.advantage.needs_baseline:
            reason = "advantage compares with the greedy response of the current policy"
        if self.ahead and reason:
            raise ConfigError(f"sources.prompts.ahead: got {self.ahead}, but {reason}; use ahead: 0.")

    def start(self, context: Context, name: str) -> _Runtime:
        return _Runtime(self, context, name)


class _Runtime(SourceRuntime[RolloutGroup]):
    def __init__(self, config: Prompts, context: Context, name: str) -> None:
        self.config, self.context, self.name, self.path = config, context, name, f"sources.{name}"
        self.weights = weights(config.rewards)
        labels = reward_labels(config.rewards)
        self.deciding = [True] * len(labels) if config.dynamic is None else config.dynamic.deciding(config.rewards, labels, self.path)
        self.task: Task | None = loading.task_of(config.data)
        self.loaded: Sequence[Example] = ()  # of a stream: none
        self.stream = self._prompts()
        self.scorers = start_scorers(config.rewards, context, self.loaded, self.path)
        self.logs: dict[str, float] = {}
        self.queue: RolloutQueue | None = None
        if config.ahead:
            take = lambda: self.stream.take(config.batch_size)  # noqa: E731
            self.queue = RolloutQueue(config.ahead, context.total_steps, take, self._submit, lambda: self.stream.state_dict())

    def _prompts(self) -> Stream[Example] | LazyStream[Example] | CurriculumStream:
        config, rng = self.config, lambda epoch: self.context.random("source", self.name, epoch)
        streamed = loading.streamed(config.data) if config.limit is None and config.curriculum is None else None
        if streamed is not None:
            return LazyStream(streamed.read, rng, self.path)
        examples = self.loaded = loading.examples(config.data, limit=config.limit, seed=self.context.seed)
        if config.curriculum is not None:
            return config.curriculum.start(examples, self.context, self.name)
        return Stream(examples, rng, self.path)

    def check_rows(self, encoder: Encoder) -> None:
        check_prompts(encoder, self.loaded, self.config.sampling, self.path)

    def draw(self, step: int, repeat: int) -> list[RolloutGroup]:
        self.logs = {}
        groups = self._batch(step, 0)
        self.logs |= completion_metrics(groups, self.weights)
        if self.config.dynamic is not None:
            groups = self._refilled(groups, step, self.config.dynamic)
        if isinstance(self.stream, CurriculumStream):
            self.logs |= self.stream.logs()
        return groups

    def _batch(self, step: int, number: int) -> list[RolloutGroup]:
        """Batch `number` of a step: prompts, answered and scored. Only batch 0 is logged, and sampled ahead."""
        config = self.config
        groups = self._sampled(step, number)
        if config.demonstrations is not None:
            for group in groups:
                group.rollouts += [self._demonstration(group.example, i) for i in range(config.demonstrations.number)]
        logs = score(groups, config.rewards, self.scorers, self.path)
        groups, num_abstained = without_abstentions(groups)
        if not number:
            self.logs |= logs | {"abstained": float(num_abstained)}
        require_scored(groups, self.path, step)
        if isinstance(self.stream, CurriculumStream):
            for group in groups:
                totals = [total_reward(r, self.weights) for r in group.rollouts if not r.offpolicy]
                self.stream.observe(group.example, sum(totals) / max(len(totals), 1))
        if config.demonstrations is not None and config.demonstrations.gate is not None:
            self._gate(groups, config.demonstrations)
        if config.advantage.needs_baseline:
            groups = self._with_baselines(groups, step, number)
        return groups

    def _sampled(self, step: int, number: int) -> list[RolloutGroup]:
        if self.queue is not None and not number:
            groups = self.queue(step)
            self.logs["staleness"] = self._staleness(groups)
            return groups
        config = self.config
        examples = self.stream.take(config.batch_size)
        key = ("rollout", self.name, step, number) if number else ("rollout", self.name, step)
        return self.context.generate(config.learner, examples, config.group_size, config.sampling, key)

    def _submit(self, step: int, examples: Sequence[Example]) -> PendingRollouts:
        config = self.config
        return self.context.generate_later(config.learner, examples, config.group_size, config.sampling, ("rollout", self.name, step))

    def _staleness(self, groups: Sequence[RolloutGroup]) -> float:
        """Mean over rollouts, in updates of the sampler."""
        versions = [r.policy_version for g in groups for r in g.rollouts]
        return self.context.version(self.config.learner) - sum(versions) / len(versions)

    def _refilled(self, groups: list[RolloutGroup], step: int, dynamic: Dynamic) -> list[RolloutGroup]:
        """A batch of informative groups, filled up with the others where `max_batches` did not suffice."""
        informative = [g for g in groups if self._informative(g)]
        constant = [g for g in groups if not self._informative(g)]
        num_batches = 1
        while len(informative) < self.config.batch_size and num_batches < dynamic.max_batches:
            batch = self._batch(step, num_batches)
            informative += [g for g in batch if self._informative(g)]
            constant += [g for g in batch if not self._informative(g)]
            num_batches += 1
        number = self.config.batch_size
        self.logs |= {"dynamic/batches": float(num_batches), "dynamic/informative": min(len(informative), number) / number}
        return (informative + constant)[:number]

    def _informative(self, group: RolloutGroup) -> bool:
        """Whether the rewards that decide differ within a group."""
        chosen = [i for i, decides in enumerate(self.deciding) if decides]
        weights = [self.weights[i] for i in chosen]
        totals = [total_reward(replace(r, rewards=[r.rewards[i] for i in chosen]), weights) for r in group.rollouts]
        scored = [total for total in totals if not math.isnan(total)]
        return bool(scored) and not are_equal(scored)

    def _demonstration(self, example: Example, number: int) -> Rollout:
        text = example.reference
        if "response" not in example.meta and self.task is not None:
            text = self.task.demonstrate(example, random.Random(f"{self.name}/{example.id}/{number}"))
        if text is None:
            raise ConfigError(f"{self.path}.demonstrations: {example.described} has no response to demonstrate; name its column.")
        ids = self.context.encoder(self.config.learner).response(text)
        return Rollout(response_ids=ids, sampler_logprobs=[0.0] * len(ids), text=text, finished=True, offpolicy=True)

    def _gate(self, groups: Sequence[RolloutGroup], demonstrations: Demonstrations) -> None:
        """Leaves every group its sampled responses, or its demonstrations."""
        num_demonstrated = 0
        for group in groups:
            chosen = demonstrations.choose(group, [total_reward(r, self.weights) for r in group.rollouts])
            num_demonstrated += all(group.rollouts[i].offpolicy for i in chosen)
            group.rollouts = [group.rollouts[i] for i in chosen]
        self.logs["gate/demonstrated"] = num_demonstrated / len(groups)

    def _with_baselines(self, groups: Sequence[RolloutGroup], step: int, number: int) -> list[RolloutGroup]:
        """The groups with their `baseline`, the reward of the prompt's greedy response; without those that a reward abstained on there."""
        greedy = replace(self.config.sampling, temperature=0.0)
        key = ("greedy", self.name, step, number)
        answers = self.context.generate(self.config.learner, [g.example for g in groups], 1, greedy, key)
        score(answers, self.config.rewards, [LastScaled(s) for s in self.scorers], self.path)
        for group, answer in zip(groups, answers, strict=True):
            group.baseline = total_reward(answer.rollouts[0], self.weights)
        compared = [group for group, answer in zip(groups, answers, strict=True) if _is_compared(group, answer.rollouts[0])]
        if not number:
            self.logs["abstained_baselines"] = float(len(groups) - len(compared))
        require_scored(compared, self.path, step)
        return compared

    def rows(self, items: Sequence[RolloutGroup], encoder: Encoder) -> RolloutRows:
        rows = build_rows(items, encoder, self.weights, self.config.sampling.temperature)
        if self.config.demonstrations is None or rows.offpolicy is not None:
            return rows
        return replace(rows, offpolicy=torch.zeros(len(rows.rewards), dtype=torch.bool))  # the gate left none of them in

    def state_dict(self) -> dict[str, Any]:
        stream = self.stream if self.queue is None else self.queue
        return stream.state_dict() | {"rewards": [s.state_dict() for s in self.scorers]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.stream.load_state_dict(state)
        for scorer, saved in zip(self.scorers, state.get("rewards", [{}] * len(self.scorers)), strict=True):
            if saved:
                scorer.load_state_dict(saved)


def _is_compared(group: RolloutGroup, greedy: Rollout) -> bool:
    """Whether every reward that scored a response of the group also scored the greedy one, so that their difference is one."""
    missing = [k for k, reward in enumerate(greedy.rewards) if math.isnan(reward)]
    return all(math.isnan(rollout.rewards[k]) for rollout in group.rollouts for k in missing)

"""Prompts the policy answers itself."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from advalign import data as loading
from advalign.errors import ConfigError, RewardError
from advalign.interfaces import Advantage, Context, SourceRuntime
from advalign.sources import _rollouts
from advalign.sources._ahead import Ahead, Waiting
from advalign.sources._options import Curriculum, CurriculumStream, Demonstrations, Dynamic, KLPenalty
from advalign.sources._rollouts import Sampled
from advalign.sources._stream import Stream
from advalign.types import Example, Rollout, RolloutGroup, RolloutRows, Rows, Sampling

__all__ = ["Prompts"]


@dataclass(frozen=True, kw_only=True)
class Prompts(Sampled):
    """`batch_size` prompts per draw, `group_size` responses each, sampled by `learner`, scored by `rewards`.

    The reward of a row is the weighted sum of its rewards. A reward that abstains (nan) removes the row, and the count
    is logged; a reward that throws stops the run. Options: `dynamic` (refill groups that teach nothing), `demonstrations` (off-policy
    rows inside the groups), `kl` (a penalty in the reward), `curriculum` (by measured difficulty), `ahead` (sampling runs beside the
    updates: rollouts for up to so many coming steps are sampled in the background, by weights at most that many steps old).
    """

    advantage: Advantage
    dynamic: Dynamic | None = None
    demonstrations: Demonstrations | None = None
    kl: KLPenalty | None = None
    curriculum: Curriculum | None = None
    ahead: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ahead < 0:
            raise ConfigError(f"sources.prompts.ahead: got {self.ahead}, a number of steps is at least 0.")
        for name, given in (("curriculum", self.curriculum), ("advantage", self.advantage.needs_baseline or None)):
            if self.ahead and given is not None:
                why = "chooses prompts by what was scored last" if name == "curriculum" else "compares with the greedy response of now"
                raise ConfigError(f"sources.prompts.ahead: got {self.ahead}, but {name} {why}; use ahead: 0.")

    row_type: ClassVar[type[Rows]] = RolloutRows

    @property
    def advantage_estimator(self) -> Advantage | None:
        return self.advantage

    @property
    def reward_penalty(self) -> KLPenalty | None:
        return self.kl

    @property
    def steps_ahead(self) -> int:
        return self.ahead

    def start(self, context: Context, name: str) -> _Runtime:
        return _Runtime(self, context, name)


class _Runtime(SourceRuntime[RolloutGroup]):
    def __init__(self, config: Prompts, context: Context, name: str) -> None:
        examples = loading.examples(config.data, limit=config.limit, seed=context.seed)
        self.config, self.context, self.name, self.where = config, context, name, f"sources.{name}"
        self.task = loading.task_of(config.data)
        self.stream: Stream[Example] | CurriculumStream
        if config.curriculum is not None:
            self.stream = config.curriculum.start(examples, context, name)
        else:
            self.stream = Stream(examples, lambda epoch: context.random("source", name, epoch), self.where)
        self.scorers = _rollouts.started(config.rewards, context)
        self.logs: dict[str, float] = {}
        self.ahead: Ahead | None = None
        if config.ahead:
            take = lambda: self.stream.take(config.batch_size)  # noqa: E731
            self.ahead = Ahead(config.ahead, context.total_steps, take, self._later, lambda: self.stream.state_dict())

    def draw(self, step: int, repeat: int) -> list[RolloutGroup]:
        self.logs = {}
        found = self._batch(step, 0)
        self.logs |= _rollouts.report(found, self.config.rewards)
        if self.config.dynamic is not None:
            found = self._refilled(found, step, self.config.dynamic)
        if isinstance(self.stream, CurriculumStream):
            self.logs |= self.stream.logs()
        return found

    def _batch(self, step: int, number: int) -> list[RolloutGroup]:
        """One batch of prompts, answered and scored."""
        config = self.config
        if self.ahead is not None and not number:
            groups = self.ahead(step)
            self.logs["staleness"] = self._staleness(groups)
        else:
            examples = self.stream.take(config.batch_size)
            key = ("rollout", self.name, step, number) if number else ("rollout", self.name, step)
            groups = self.context.generate(config.learner, examples, config.group_size, config.sampling, key)
        if config.demonstrations is not None:
            for group in groups:
                group.rollouts += [self._demonstration(group.example, i) for i in range(config.demonstrations.number)]
        logs = _rollouts.score(groups, config.rewards, self.scorers, self.where)
        kept, gone = _rollouts.without_abstentions(groups)
        if not number:
            self.logs |= logs | {"abstained": float(gone)}
        if not kept:
            raise RewardError(f"{self.where}: the rewards abstained on every response of step {step}, so nothing can be learned from it.")
        if isinstance(self.stream, CurriculumStream):
            for group in kept:
                totals = [_rollouts.total(r, config.rewards) for r in group.rollouts if not r.offpolicy]
                self.stream.observe(group.example, sum(totals) / max(len(totals), 1))
        if config.demonstrations is not None and config.demonstrations.gate is not None:
            self._gate(kept, config.demonstrations)
        if config.advantage.needs_baseline:
            self._baselines(kept, step, number)
        return kept

    def _later(self, step: int, examples: Sequence[Example]) -> Waiting:
        config = self.config
        return self.context.generate_later(config.learner, examples, config.group_size, config.sampling, ("rollout", self.name, step))

    def _staleness(self, groups: Sequence[RolloutGroup]) -> float:
        """Mean over rollouts, in updates of the sampler."""
        versions = [r.policy_version for g in groups for r in g.rollouts]
        return self.context.version(self.config.learner) - sum(versions) / len(versions)

    def _refilled(self, first: list[RolloutGroup], step: int, dynamic: Dynamic) -> list[RolloutGroup]:
        spread = [g for g in first if self._informative(g)]
        rest = [g for g in first if not self._informative(g)]
        batches = 1
        while len(spread) < self.config.batch_size and batches < dynamic.max_batches:
            more = self._batch(step, batches)
            spread += [g for g in more if self._informative(g)]
            rest += [g for g in more if not self._informative(g)]
            batches += 1
        number = self.config.batch_size
        informative = min(len(spread), number)
        self.logs |= {"dynamic/batches": float(batches), "dynamic/informative": informative / number}
        return (spread + rest)[:number]

    def _informative(self, group: RolloutGroup) -> bool:
        totals = [_rollouts.total(r, self.config.rewards) for r in group.rollouts]
        return max(totals) > min(totals)

    def _demonstration(self, example: Example, number: int) -> Rollout:
        text = example.meta.get("response")
        if text is None and self.task is not None:
            text = self.task.demonstrate(example, random.Random(f"{self.name}/{example.id}/{number}"))
        text = example.answer if text is None else text
        if text is None:
            raise ConfigError(f"{self.where}.demonstrations: row '{example.id}' has no response to demonstrate; name its column.")
        ids = self.context.encoder(self.config.learner).response(text)
        return Rollout(response_ids=ids, sampler_logprobs=[0.0] * len(ids), text=text, finished=True, offpolicy=True)

    def _gate(self, groups: Sequence[RolloutGroup], gate: Demonstrations) -> None:
        taught = 0
        for group in groups:
            chosen = gate.choose(group, [_rollouts.total(r, self.config.rewards) for r in group.rollouts])
            taught += all(group.rollouts[i].offpolicy for i in chosen)
            group.rollouts = [group.rollouts[i] for i in chosen]
        self.logs["gate/demonstrated"] = taught / len(groups)

    def _baselines(self, groups: Sequence[RolloutGroup], step: int, number: int) -> None:
        """The reward of each prompt's greedy response."""
        greedy = Sampling(max_new_tokens=self.config.sampling.max_new_tokens, temperature=0.0)
        key = ("greedy", self.name, step, number)
        answers = self.context.generate(self.config.learner, [g.example for g in groups], 1, greedy, key)
        _rollouts.score(answers, self.config.rewards, self.scorers, self.where)
        for group, answer in zip(groups, answers, strict=True):
            group.baseline = _rollouts.total(answer.rollouts[0], self.config.rewards)

    def rows(self, items: Sequence[RolloutGroup], encoder: Any) -> RolloutRows:
        config = self.config
        rows = _rollouts.rows(items, encoder, [r.weight for r in config.rewards], config.sampling.temperature)
        if config.demonstrations is None or rows.offpolicy is not None:
            return rows
        return replace(rows, offpolicy=torch.zeros(len(rows.rewards), dtype=torch.bool))  # the gate let none of them in

    def state_dict(self) -> dict[str, Any]:
        stream = self.stream if self.ahead is None else self.ahead
        return stream.state_dict() | {"rewards": [s.state_dict() for s in self.scorers]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.stream.load_state_dict(state)
        for scorer, found in zip(self.scorers, state.get("rewards", [{}] * len(self.scorers)), strict=True):
            if found:
                scorer.load_state_dict(found)

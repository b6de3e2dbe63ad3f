"""Responses that were sampled and rewarded before, from a file."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from advalign import data as loading
from advalign.data.columns import check_mapping
from advalign.data.columns import example as example_of
from advalign.errors import BudgetError, ConfigError
from advalign.interfaces import Context
from advalign.ranges import Count, Positive, Seed, Words
from advalign.sources._rollouts import RolloutSource, build_rows
from advalign.sources._stream import Stream, StreamRuntime
from advalign.types import Example, Rollout, RolloutGroup, RolloutRows

if TYPE_CHECKING:
    from advalign.models.encode import Encoder

__all__ = ["Trajectories"]

COLUMNS = ("reward", "logprobs", "group", "finished")  # columns beside those of a prompt and its response


@dataclass(frozen=True, kw_only=True)
class Trajectories(RolloutSource):
    """Offline RL: rows {prompt, response, reward} and their advantages; r_t = p_current / p_then where the rows have log p_then.

    As advantage-weighted offline RL of language models (A-LoL, arXiv:2305.14718), but advantages come from any estimator and the
    objective is any that reads rollouts. Columns: `reward`, a number or a list; `group`, else the rows of one prompt are a group;
    `logprobs`, one number per token of the response, its end included, without which p_then is the learner when the rows are drawn;
    `finished`, false for a response that was cut and has no end. Text is tokenised by `learner`.
    """

    data: Any
    """Reference to the rows, or a list of rows."""
    batch_size: Count = 16
    """Groups per draw."""
    limit: Count | None = None
    """Number of groups kept, chosen by `seed`. None: all."""
    columns: Mapping[str, Words] | None = None
    """{field: column of the data}, before the usual names."""
    seed: Seed = 0
    """Seed of the choices about the data."""
    temperature: Positive = 1.0
    """At which the responses were sampled, and `logprobs` measured."""

    @property
    def draw_size(self) -> int:
        return self.batch_size

    def start(self, context: Context, name: str) -> _Runtime:
        return _Runtime(self, context, name)


class _Runtime(StreamRuntime[RolloutGroup]):
    def __init__(self, config: Trajectories, context: Context, name: str) -> None:
        self.config, path = config, f"sources.{name}"
        groups = _groups(_examples(config, path), _column_names(config), context.encoder(config.learner), path)
        _check_equal_columns(groups, path)
        if config.limit is not None:
            groups = random.Random(f"{config.seed}/{name}").sample(groups, min(config.limit, len(groups)))
        self.stream = Stream(groups, lambda epoch: context.random("source", name, epoch), path)
        self.logs: dict[str, float] = {}

    def draw(self, step: int, repeat: int) -> list[RolloutGroup]:
        groups: list[RolloutGroup] = self.stream.take(self.config.batch_size)
        totals = [sum(r.rewards) for g in groups for r in g.rollouts]
        num_constant = sum(len({sum(r.rewards) for r in g.rollouts}) == 1 for g in groups)
        self.logs = {"reward": sum(totals) / len(totals), "frac_reward_zero_std": num_constant / len(groups)}
        return groups

    def rows(self, items: Sequence[RolloutGroup], encoder: Encoder) -> RolloutRows:
        rollouts = [r for g in items for r in g.rollouts]
        rows = build_rows(items, encoder, [1.0] * len(rollouts[0].rewards), self.config.temperature)
        has_logprobs = not any(math.isnan(p) for r in rollouts for p in r.sampler_logprobs)
        return replace(rows, old_logprobs=rows.sampler_logprobs) if has_logprobs else rows


def _column_names(config: Trajectories) -> dict[str, str]:
    """{one of COLUMNS: its name in the file}."""
    columns = config.columns or {}
    return {name: columns.get(name, name) for name in COLUMNS}


def _examples(config: Trajectories, path: str) -> list[Example]:
    columns = {field: column for field, column in (config.columns or {}).items() if field not in COLUMNS}
    check_mapping(columns)
    if isinstance(config.data, str | Mapping):
        return loading.examples(config.data, columns=columns, seed=config.seed)
    return [replace(example_of(row, columns, f"{path}, row {number}"), location="") for number, row in enumerate(config.data, 1)]


def _groups(examples: Sequence[Example], names: Mapping[str, str], encoder: Encoder, path: str) -> list[RolloutGroup]:
    groups: dict[tuple[str, Any], RolloutGroup] = {}
    for example, prompt_ids in zip(examples, encoder.prompts([e.prompt for e in examples]), strict=True):
        number = example.meta.get(names["group"])
        key = ("prompt", example.prompt) if number is None else ("group", number)
        group = groups.setdefault(key, RolloutGroup(example=example, prompt_ids=prompt_ids, rollouts=[]))
        if group.example.prompt != example.prompt:
            raise ConfigError(f"{path}: {example.described} is in group '{number}' with another prompt; a group answers one prompt.")
        rollout = _rollout(example, names, encoder, path)
        try:
            encoder.truncation.rollout(len(group.prompt_ids), len(rollout.response_ids))
        except BudgetError as error:
            raise BudgetError(f"{path}: {example.described}: {error}") from error
        group.rollouts.append(rollout)
    return list(groups.values())


def _rollout(example: Example, names: Mapping[str, str], encoder: Encoder, path: str) -> Rollout:
    row, text = f"{path}: {example.described}", example.reference
    if text is None:
        raise ConfigError(f"{row} has no response; name its column with columns: {{response: ...}}.")
    finished = bool(example.meta.get(names["finished"], True))
    ids = encoder.response(text, finished)
    column = example.meta.get(names["logprobs"])
    logprobs = [math.nan] * len(ids) if column is None else _numbers(column, f"{row}: logprobs")
    if len(logprobs) != len(ids):
        raise ConfigError(
            f"{row} has {len(logprobs)} logprobs for a response of {len(ids)} tokens, its end included; give one per token, or none."
        )
    reward = example.meta.get(names["reward"])
    if reward is None:
        raise ConfigError(f"{row} has no reward; name its column with columns: {{reward: ...}}.")
    rewards = _numbers(reward if isinstance(reward, list | tuple) else [reward], f"{row}: reward")
    return Rollout(response_ids=ids, sampler_logprobs=logprobs, text=text, finished=finished, rewards=rewards)


def _numbers(values: Any, path: str) -> list[float]:
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)):
        raise ConfigError(f"{path}: {values!r} given; finite numbers are expected.")
    return numbers


def _check_equal_columns(groups: Sequence[RolloutGroup], path: str) -> None:
    """Every row has as many rewards as the others; all have log-probabilities or none has."""
    rollouts = [r for g in groups for r in g.rollouts]
    if len({len(r.rewards) for r in rollouts}) > 1:
        raise ConfigError(f"{path}: some rows have {len(rollouts[0].rewards)} rewards and others do not; give every row the same rewards.")
    missing = sum(any(map(math.isnan, r.sampler_logprobs)) for r in rollouts)
    if missing and missing < len(rollouts):
        raise ConfigError(f"{path}: {missing} of {len(rollouts)} rows have no logprobs; give them to every row, or to none.")

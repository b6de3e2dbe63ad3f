"""Responses that were sampled and rewarded before, from a file."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from advalign import data as loading
from advalign.data.columns import example as example_of
from advalign.errors import ConfigError
from advalign.interfaces import Advantage, Context, SourceRuntime
from advalign.sources import _rollouts
from advalign.sources._stream import Stream
from advalign.types import Example, Rollout, RolloutGroup, RolloutRows

__all__ = ["Trajectories"]

OWN = ("reward", "logprobs", "group", "finished")  # columns beside those of a prompt and its response


@dataclass(frozen=True, kw_only=True)
class Trajectories(_rollouts.RolloutSource):
    """Offline RL: rows {prompt, response, reward} and their advantages; r_t = p_now / p_then where the rows say log p_then.

    As advantage-weighted offline RL of language models (A-LoL, arXiv:2305.14718), but advantages come from any estimator and the
    objective is any that reads rollouts. `reward` is a number or a list. Rows of one prompt, or of one `group` where there is such a
    column, are a group; `batch_size` groups are drawn, `limit` of them exist, chosen by `seed`. `logprobs`: one number per token of
    the response, its end included, as sampled at `temperature`; without them p_then is the learner when the rows are drawn.
    `finished: false`: the response was cut and has no end. Text is tokenised by `learner`.
    """

    data: Any
    advantage: Advantage
    batch_size: int = 16
    limit: int | None = None
    columns: Mapping[str, str] | None = None
    seed: int = 0
    learner: str = "policy"
    temperature: float = 1.0

    def start(self, context: Context, name: str) -> _Runtime:
        return _Runtime(self, context, name)


class _Runtime(SourceRuntime[RolloutGroup]):
    def __init__(self, config: Trajectories, context: Context, name: str) -> None:
        self.config, where = config, f"sources.{name}"
        groups = _grouped(_examples(config, where), _names(config), context.encoder(config.learner), where)
        _same_for_all(groups, where)
        if config.limit is not None:
            groups = random.Random(f"{config.seed}/{name}").sample(groups, min(config.limit, len(groups)))
        self.stream = Stream(groups, lambda epoch: context.random("source", name, epoch), where)
        self.logs: dict[str, float] = {}

    def draw(self, step: int, repeat: int) -> list[RolloutGroup]:
        groups = self.stream.take(self.config.batch_size)
        totals = [sum(r.rewards) for g in groups for r in g.rollouts]
        constant = sum(len({sum(r.rewards) for r in g.rollouts}) == 1 for g in groups)
        self.logs = {"reward": sum(totals) / len(totals), "frac_reward_zero_std": constant / len(groups)}
        return groups

    def rows(self, items: Sequence[RolloutGroup], encoder: Any) -> RolloutRows:
        rollouts = [r for g in items for r in g.rollouts]
        rows = _rollouts.rows(items, encoder, [1.0] * len(rollouts[0].rewards), self.config.temperature)
        known = not any(math.isnan(v) for r in rollouts for v in r.sampler_logprobs)
        return replace(rows, old_logprobs=rows.sampler_logprobs) if known else rows

    def state_dict(self) -> dict[str, Any]:
        return self.stream.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.stream.load_state_dict(state)


def _names(config: Trajectories) -> dict[str, str]:
    """{own column: what it is called in the file}."""
    given = config.columns or {}
    return {name: given.get(name, name) for name in OWN}


def _examples(config: Trajectories, where: str) -> list[Example]:
    usual = {field: column for field, column in (config.columns or {}).items() if field not in OWN}
    if isinstance(config.data, str | Mapping):
        return loading.examples(config.data, columns=usual, seed=config.seed)
    return [example_of(row, usual, f"{where}, row {number}") for number, row in enumerate(config.data, 1)]


def _grouped(examples: Sequence[Example], names: Mapping[str, str], encoder: Any, where: str) -> list[RolloutGroup]:
    groups: dict[tuple[str, Any], RolloutGroup] = {}
    for example, prompt_ids in zip(examples, encoder.prompts([e.prompt for e in examples]), strict=True):
        number = example.meta.get(names["group"])
        key = ("prompt", example.prompt) if number is None else ("group", number)
        group = groups.setdefault(key, RolloutGroup(example=example, prompt_ids=prompt_ids, rollouts=[]))
        if group.example.prompt != example.prompt:
            raise ConfigError(f"{where}: row '{example.id}' is in group '{number}' with another prompt; a group answers one prompt.")
        group.rollouts.append(_rollout(example, names, encoder, where))
    return list(groups.values())


def _rollout(example: Example, names: Mapping[str, str], encoder: Any, where: str) -> Rollout:
    at, text = f"{where}: row '{example.id}'", example.meta.get("response", example.answer)
    if not isinstance(text, str):
        raise ConfigError(f"{at} has no response; name its column with columns: {{response: ...}}.")
    finished = bool(example.meta.get(names["finished"], True))
    ids = encoder.response(text, finished)
    given = example.meta.get(names["logprobs"])
    logprobs = [math.nan] * len(ids) if given is None else _numbers(given, f"{at}: logprobs")
    if len(logprobs) != len(ids):
        raise ConfigError(
            f"{at} has {len(logprobs)} logprobs for a response of {len(ids)} tokens, its end included; give one per token, or none."
        )
    reward = example.meta.get(names["reward"])
    if reward is None:
        raise ConfigError(f"{at} has no reward; name its column with columns: {{reward: ...}}.")
    rewards = _numbers(reward if isinstance(reward, list | tuple) else [reward], f"{at}: reward")
    return Rollout(response_ids=ids, sampler_logprobs=logprobs, text=text, finished=finished, rewards=rewards)


def _numbers(values: Any, where: str) -> list[float]:
    try:
        found = [float(value) for value in values]
    except (TypeError, ValueError):
        found = [math.nan]
    if not all(map(math.isfinite, found)):
        raise ConfigError(f"{where}: {values!r} given; finite numbers are expected.")
    return found


def _same_for_all(groups: Sequence[RolloutGroup], where: str) -> None:
    """Every row has as many rewards as the others; all have log-probabilities or none has."""
    rollouts = [r for g in groups for r in g.rollouts]
    if len({len(r.rewards) for r in rollouts}) > 1:
        raise ConfigError(f"{where}: some rows have {len(rollouts[0].rewards)} rewards and others do not; give every row the same rewards.")
    missing = sum(any(map(math.isnan, r.sampler_logprobs)) for r in rollouts)
    if missing and missing < len(rollouts):
        raise ConfigError(f"{where}: {missing} of {len(rollouts)} rows have no logprobs; give them to every row, or to none.")

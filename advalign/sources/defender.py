"""Self-play, the defender's side of a `game`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from advalign.errors import ConfigError, RewardError
from advalign.interfaces import Advantage, Context, Reward, SourceRuntime
from advalign.sources import _rollouts
from advalign.sources._game import PlayedGame, PlayedGameRuntime, extra
from advalign.sources._stream import Stream
from advalign.types import RolloutGroup, RolloutRows

__all__ = ["Defender"]

ROLE = 1  # RolloutRows.roles: 0 is the attacker, 1 the defender


@dataclass(frozen=True, kw_only=True)
class Defender(_rollouts.RolloutSource):
    """R(y_k) = u(x, y_k) + sum_r weight_r r(x with a, y_k):  the defender's answers in the draw of source `game`   (arXiv:2506.07468).

    u is what the `rewards` of the game said of the answer; `rewards` are added to it and are not part of the game's payoff. Every attacked
    prompt is a group (role 1). `clean` of the prompts carry no attack, as do those whose attack was not allowed: without them a defender
    may forget what it is for. Answers of frozen copies are not among the rows. Where no active objective reads the game, it is played
    from here.
    """

    game: str
    advantage: Advantage
    rewards: Sequence[Reward] = ()
    clean: float = 0.0
    learner: str = "policy"

    def __post_init__(self) -> None:
        if not 0 <= self.clean < 1:
            raise ConfigError(f"sources.defender.clean: got {self.clean}; a share of the prompts is at least 0 and below 1.")

    @property
    def depends_on(self) -> tuple[str, ...]:
        return (self.game,)

    @property
    def reward_parts(self) -> Sequence[Reward]:
        return self.rewards

    @property
    def draw_size(self) -> int:
        return 16

    def start(self, context: Context, name: str) -> _Runtime:
        return _Runtime(self, context, name)


class _Runtime(SourceRuntime[RolloutGroup]):
    def __init__(self, config: Defender, context: Context, name: str) -> None:
        self.config, self.context, self.name, self.where = config, context, name, f"sources.{name}"
        game, played = context.source(config.game), context.source_config(config.game)
        if not isinstance(played, PlayedGame) or not isinstance(game, PlayedGameRuntime):
            raise ConfigError(f"{self.where}.game: source '{config.game}' is a {type(played).__name__}, and a turn is of a game.")
        self.game = game
        if played.defender != config.learner:
            raise ConfigError(
                f"{self.where}.learner: '{config.learner}' given, but in '{config.game}' the defender is '{played.defender}'."
            )
        if config.advantage.compares and played.answers < 2:
            raise ConfigError(
                f"{self.where}.advantage: {type(config.advantage).__name__} compares the answers to one prompt, and '{config.game}' has "
                f"answers: {played.answers}; give it at least 2."
            )
        self.rewards = [*played.rewards, *config.rewards]
        self.scorers = _rollouts.started(config.rewards, context)
        self.stream = Stream(self.game.examples, lambda epoch: context.random("source", name, epoch), self.where)
        self.logs: dict[str, float] = {}

    def draw(self, step: int, repeat: int) -> list[RolloutGroup]:
        self.logs = {}
        if self.context.current_items(self.config.game) is None:
            self.game.draw(step, repeat)
            self.logs = {k: v for k, v in self.game.logs.items() if k.startswith(("attack_", "invalid"))}
        groups = [_copied(g) for g in self.game.answers]
        fresh = self._clean(step, extra(self.config.clean, len(groups)))
        attacked = [*self.game.attacked, *(False for _ in fresh)]
        groups += fresh
        for name, which in (("attacked", True), ("clean", False)):
            found = [_total(r, self.game) for g, a in zip(groups, attacked, strict=True) if a is which for r in g.rollouts]
            self.logs |= {f"accuracy/{name}": sum(found) / len(found)} if found else {}
        self.logs |= _rollouts.score(groups, self.config.rewards, self.scorers, self.where)
        kept, gone = _rollouts.without_abstentions(groups)
        if not kept:
            raise RewardError(f"{self.where}: the rewards abstained on every answer of step {step}, so nothing can be learned from it.")
        self.logs |= _rollouts.report(kept, self.rewards) | {"abstained": float(gone)}
        return kept

    def _clean(self, step: int, number: int) -> list[RolloutGroup]:
        """`number` prompts without an attack, answered and judged as in the game."""
        if not number:
            return []
        played = self.game.config
        key = ("clean", self.name, step)
        groups = self.context.generate(played.defender, self.stream.take(number), played.answers, played.answer_sampling, key)
        _rollouts.score(groups, played.rewards, self.game.scorers, self.where)
        return _rollouts.without_abstentions(groups)[0]

    def rows(self, items: Sequence[RolloutGroup], encoder: Any) -> RolloutRows:
        rows = _rollouts.rows(items, encoder, [r.weight for r in self.rewards], self.game.config.answer_sampling.temperature)
        return replace(rows, roles=torch.full_like(rows.tokens.group, ROLE))

    def state_dict(self) -> dict[str, Any]:
        return self.stream.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.stream.load_state_dict(state)


def _copied(group: RolloutGroup) -> RolloutGroup:
    """So that rewards added here stay here."""
    rollouts = [replace(r, rewards=list(r.rewards), reward_versions=list(r.reward_versions)) for r in group.rollouts]
    return replace(group, rollouts=rollouts)


def _total(rollout: Any, game: Any) -> float:
    return _rollouts.total(rollout, game.config.rewards)

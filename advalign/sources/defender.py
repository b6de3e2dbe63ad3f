"""Self-play, the defender's side of a `game`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch

from advalign.errors import ConfigError
from advalign.interfaces import Context, Reward
from advalign.names import SourceName
from advalign.ranges import ProperFraction
from advalign.sources._game import PlayedGame, PlayedGameRuntime, num_to_add
from advalign.sources._rollouts import (
    RolloutSource,
    build_rows,
    check_prompts,
    completion_metrics,
    require_scored,
    weights,
    without_abstentions,
)
from advalign.sources._scoring import score, start_scorers, total_reward
from advalign.sources._stream import Stream, StreamRuntime
from advalign.types import Rollout, RolloutGroup, RolloutRows

if TYPE_CHECKING:
    from advalign.models.encode import Encoder

__all__ = ["Defender"]

ROLE = 1  # RolloutRows.roles: 0 is the attacker, 1 the defender


@dataclass(frozen=True, kw_only=True)
class Defender(RolloutSource):
    """R(y_k) = u(x, y_k) + sum_r weight_r r(x with a, y_k):  the defender's answers in the draw of source `game`   (arXiv:2506.07468).

    u is the total of the game's own rewards. Every attacked prompt is a group (role 1). Answers of frozen copies are not among the rows.
    Where no active objective reads the game, it is played from here.
    """

    game: SourceName
    """Name of the game's source."""
    rewards: Sequence[Reward] = ()
    """Further rewards of the answers, which are not part of the game's payoff."""
    clean: ProperFraction = 0.0
    """Fraction of the prompts that carry no attack, beside those whose attack was not allowed; without them a defender may forget its
    task."""

    occasional_metrics: ClassVar[tuple[str, ...]] = ("rewards/*", "completions/mean_terminated_length", "attack_*", "accuracy/*", "invalid")

    @property
    def reward_parts(self) -> Sequence[Reward]:
        return self.rewards

    def start(self, context: Context, name: str) -> _Runtime:
        return _Runtime(self, context, name)


class _Runtime(StreamRuntime[RolloutGroup]):
    def __init__(self, config: Defender, context: Context, name: str) -> None:
        self.config, self.context, self.name, self.path = config, context, name, f"sources.{name}"
        game, played = context.source(config.game), context.source_config(config.game)
        if not isinstance(played, PlayedGame) or not isinstance(game, PlayedGameRuntime):
            raise ConfigError(f"{self.path}.game: source '{config.game}' is a {type(played).__name__}; a defender plays in a game.")
        self.game, self.played = game, played
        if played.defender != config.learner:
            raise ConfigError(f"{self.path}.learner: '{config.learner}' given, but in '{config.game}' the defender is '{played.defender}'.")
        if config.advantage.compares and played.answers < 2:
            raise ConfigError(
                f"{self.path}.advantage: {type(config.advantage).__name__} compares the answers to one prompt, and '{config.game}' has "
                f"answers: {played.answers}; give it at least 2."
            )
        self.game_weights = weights(played.rewards)
        self.weights = self.game_weights + weights(config.rewards)
        self.scorers = start_scorers(config.rewards, context, self.game.examples, self.path)
        self.stream = Stream(self.game.examples, lambda epoch: context.random("source", name, epoch), self.path)
        self.logs: dict[str, float] = {}

    def check_rows(self, encoder: Encoder) -> None:
        check_prompts(encoder, self.game.examples, self.played.answer_sampling, self.path)

    def draw(self, step: int, repeat: int) -> list[RolloutGroup]:
        self.logs = {}
        if self.context.current_items(self.config.game) is None:
            self.game.draw(step, repeat)
            self.logs = {k: v for k, v in self.game.logs.items() if k.startswith(("attack_", "invalid"))}
        groups = [_copied(g) for g in self.game.answers]
        clean = self._clean(step, num_to_add(self.config.clean, len(groups)))
        attacked = [*self.game.attacked, *(False for _ in clean)]
        groups += clean
        for name, wanted in (("attacked", True), ("clean", False)):
            chosen = [g for g, is_attacked in zip(groups, attacked, strict=True) if is_attacked is wanted]
            scores = [total_reward(r, self.game_weights) for g in chosen for r in g.rollouts]
            self.logs |= {f"accuracy/{name}": sum(scores) / len(scores)} if scores else {}
        self.logs |= score(groups, self.config.rewards, self.scorers, self.path)
        groups, num_abstained = without_abstentions(groups)
        require_scored(groups, self.path, step)
        self.logs |= completion_metrics(groups, self.weights) | {"abstained": float(num_abstained)}
        return groups

    def _clean(self, step: int, number: int) -> list[RolloutGroup]:
        """`number` prompts without an attack, answered and scored as in the game."""
        if not number:
            return []
        played, key = self.played, ("clean", self.name, step)
        groups = self.context.generate(played.defender, self.stream.take(number), played.answers, played.answer_sampling, key)
        score(groups, played.rewards, self.game.scorers, self.path)
        return without_abstentions(groups)[0]

    def rows(self, items: Sequence[RolloutGroup], encoder: Encoder) -> RolloutRows:
        rows = build_rows(items, encoder, self.weights, self.played.answer_sampling.temperature)
        return replace(rows, roles=torch.full_like(rows.tokens.group, ROLE))


def _copied(group: RolloutGroup) -> RolloutGroup:
    """A copy, so that rewards added here do not change the game's."""
    rollouts: list[Rollout] = [replace(r, rewards=list(r.rewards), reward_versions=list(r.reward_versions)) for r in group.rollouts]
    return replace(group, rollouts=rollouts)

"""Self-play: one policy writes attacks on another's prompts. This source is the attacker's side; `defender` is the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from advalign import data as loading
from advalign.errors import ConfigError, RewardError
from advalign.interfaces import Context
from advalign.names import SamplerName
from advalign.sources._game import Injection, Opponents, Payoff, PlayedGame, PlayedGameRuntime, attack_payoff
from advalign.sources._rollouts import build_rows, completion_metrics, require_scored, weights, without_abstentions
from advalign.sources._scoring import score, start_scorers, total_reward
from advalign.sources._stream import Stream
from advalign.types import Example, Rollout, RolloutGroup, RolloutRows

if TYPE_CHECKING:
    from advalign.models.encode import Encoder

__all__ = ["Game"]

ATTACKER, DEFENDER = 0, 1  # RolloutRows.roles


@dataclass(frozen=True, kw_only=True)
class Game(PlayedGame):
    """a ~ attacker(. | x),  y_1 .. y_K ~ defender(. | x with a),  R(a) = 1 - mean_k u(x, y_k) - cost |a|

    Rows of the attacker (role 0): per example of `data` a group of `group_size` attacks by `learner`, at most `sampling.max_new_tokens`
    long. `rewards` score the answers, by the problem before the attack. Source `defender` yields the answers, and both sides train in
    one step, as in Self-RedTeam (arXiv:2506.07468; there one network in both roles: give both the same learner). Other payoffs: regret
    (PAIRED, arXiv:2012.02096; of scores 0 or 1 it is the proposer's reward of Absolute Zero, arXiv:2505.03335) and p (1 - p)
    (arXiv:2408.15099). Ours: an attack that is not allowed is replaced by none and punished.
    """

    learner: SamplerName = "attacker"
    """Learner (or frozen copy) that writes the attacks."""
    injection: Injection = field(default_factory=Injection)
    """Where an attack is put, and which are allowed."""
    payoff: Payoff = field(default_factory=Payoff)
    """What an attack earns."""
    opponents: Opponents = field(default_factory=Opponents)
    """Frozen copies, averaged or previous, that play in a fraction of the examples (AdvGame, arXiv:2512.20806, samples both sides from
    averages)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        least = 1 if self.payoff.form == "failure" else 2
        if self.answers < least:
            raise ConfigError(f"sources.game.answers: got {self.answers}; a payoff of {self.payoff.form} needs at least {least}.")
        pairs = self.opponents.pairs(self.learner, self.defender, self.batch_size)
        for side, name, place in (("attackers", self.learner, 0), ("defenders", self.defender, 1)):
            if all(pair[place] != name for pair in pairs):
                raise ConfigError(f"sources.game.opponents.{side}: of {self.batch_size} examples none is left to '{name}' itself.")

    def start(self, context: Context, name: str) -> GameRuntime:
        return GameRuntime(self, context, name)


@dataclass(kw_only=True)
class _Match:
    """One attack and the answers to it."""

    attacker: str
    """Learner or frozen copy that wrote the attack."""
    defender: str
    """Learner or frozen copy that answered it."""
    attack: Rollout
    """The attack."""
    valid: bool
    """Whether it is allowed."""
    answers: RolloutGroup
    """The answers to the attacked prompt; to the prompt itself where the attack is not valid."""

    @property
    def attacked(self) -> bool:
        """Whether the prompt carries an attack."""
        return self.valid and bool(self.attack.text)


class GameRuntime(PlayedGameRuntime):
    """A started game."""

    config: Game

    def __init__(self, config: Game, context: Context, name: str) -> None:
        self.config, self.context, self.name, self.path = config, context, name, f"sources.{name}"
        self.weights = weights(config.rewards)
        self.examples = loading.examples(config.data, limit=config.limit, seed=context.seed)
        self.stream = Stream(self.examples, lambda epoch: context.random("source", name, epoch), self.path)
        self.scorers = start_scorers(config.rewards, context, self.examples, self.path)
        self.logs: dict[str, float] = {}
        self.answers: list[RolloutGroup] = []
        self.attacked: list[bool] = []

    def draw(self, step: int, repeat: int) -> list[RolloutGroup]:
        """Groups of the attacker itself, without those of its frozen copies."""
        config = self.config
        examples, attacks, matches, start = self.stream.take(config.batch_size), list[RolloutGroup](), list[_Match](), 0
        for attacker, defender, number in config.opponents.pairs(config.learner, config.defender, config.batch_size):
            played = examples[start : start + number]
            written = self._written(attacker, played, (self.name, step, attacker, defender))
            matches += self._answered(attacker, defender, played, written, (self.name, step, attacker, defender))
            attacks += written if attacker == config.learner else []
            start += number
        logs = score([m.answers for m in matches], config.rewards, self.scorers, self.path)
        for match in matches:
            match.attack.rewards.append(self._payoff(match))
        self._keep_answers(matches)
        attacks, num_abstained = without_abstentions(attacks)
        require_scored(attacks and self.answers, self.path, step)
        self.logs = logs | self._success_rates(matches) | completion_metrics(attacks, [1.0]) | {"abstained": float(num_abstained)}
        return attacks

    def _written(self, attacker: str, examples: Sequence[Example], key: tuple) -> list[RolloutGroup]:
        prompts = [self.config.injection.ask(e) for e in examples]
        return self.context.generate(attacker, prompts, self.config.group_size, self.config.sampling, ("attack", *key))

    def _answered(
        self, attacker: str, defender: str, examples: Sequence[Example], written: Sequence[RolloutGroup], key: tuple
    ) -> list[_Match]:
        config, injection = self.config, self.config.injection
        attacks = [(e, r, injection.valid(r.text, e.text)) for e, g in zip(examples, written, strict=True) for r in g.rollouts]
        prompts = [e.with_text(injection.place(r.text, e.text)) if valid else e for e, r, valid in attacks]
        groups = self.context.generate(defender, prompts, config.answers, config.answer_sampling, ("answer", *key))
        return [
            _Match(attacker=attacker, defender=defender, attack=attack, valid=valid, answers=group)
            for (_, attack, valid), group in zip(attacks, groups, strict=True)
        ]

    def _scores(self, match: _Match) -> list[float]:
        """u of every answer that could be scored."""
        totals = [total_reward(r, self.weights) for r in match.answers.rollouts]
        scores = [u for u in totals if not math.isnan(u)]
        if self.config.payoff.form == "learnability" and any(not 0 <= u <= 1 for u in scores):
            raise RewardError(f"{self.path}.payoff: learnability is of scores in [0, 1], and the rewards of an answer sum to {scores}.")
        return scores

    def _payoff(self, match: _Match) -> float:
        payoff = self.config.payoff
        if not match.valid:
            return payoff.invalid
        return attack_payoff(payoff.form, self._scores(match)) - payoff.length_cost * len(match.attack.response_ids)

    def _keep_answers(self, matches: Sequence[_Match]) -> None:
        """Sets `answers` and `attacked`, for the defender's source."""
        by_learner = [m for m in matches if m.defender == self.config.defender]
        self.answers, _ = without_abstentions([m.answers for m in by_learner])
        scored = {id(group) for group in self.answers}
        self.attacked = [m.attacked for m in by_learner if id(m.answers) in scored]

    def _success_rates(self, matches: Sequence[_Match]) -> dict[str, float]:
        """Of all matches, and of those with each frozen copy; how many attacks were not allowed, and how long the others are."""
        config = self.config
        attacked = [m for m in matches if m.attacked]
        logs = _success("attack_success", [self._scores(m) for m in attacked])
        for name in (*config.opponents.attackers, *config.opponents.defenders):
            logs |= _success(f"attack_success/{name}", [self._scores(m) for m in attacked if name in (m.attacker, m.defender)])
        by_learner = [m for m in matches if m.attacker == config.learner]
        lengths = [len(m.attack.response_ids) for m in by_learner if m.valid]
        logs["invalid"] = sum(not m.valid for m in by_learner) / len(by_learner)
        return logs | ({"attack_length": sum(lengths) / len(lengths)} if lengths else {})

    def rows(self, items: Sequence[RolloutGroup], encoder: Encoder) -> RolloutRows:
        rows = build_rows(items, encoder, [1.0], self.config.sampling.temperature)
        return replace(rows, roles=torch.full_like(rows.tokens.group, ATTACKER))


def _success(name: str, scores: Sequence[Sequence[float]]) -> dict[str, float]:
    flat = [u for answers in scores for u in answers]
    return {name: 1 - sum(flat) / len(flat)} if flat else {}

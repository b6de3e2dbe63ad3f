"""Self-play: one policy writes attacks on another's prompts. This source is the attacker's side; `turn` is the defender's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch

from advalign import data as loading
from advalign.errors import ConfigError, RewardError
from advalign.interfaces import Advantage, Context
from advalign.sources import _rollouts
from advalign.sources._game import Injection, Opponents, Payoff, PlayedGame, PlayedGameRuntime, asked, earned
from advalign.sources._rollouts import Sampled
from advalign.sources._stream import Stream
from advalign.types import Example, Rollout, RolloutGroup, RolloutRows, Rows, Sampling

__all__ = ["Game"]

ATTACKER, DEFENDER = 0, 1  # RolloutRows.roles


@dataclass(frozen=True, kw_only=True)
class Game(Sampled, PlayedGame):
    """a ~ attacker(. | x),  y_1 .. y_K ~ defender(. | x with a),  R(a) = 1 - mean_k u(x, y_k) - cost |a|

    Rows of the attacker (role 0): per example of `data` a group of `group_size` attacks by `learner`, `sampling` its budget of tokens.
    `defender` answers each attacked prompt `answers` times with `answer_sampling`; `rewards` judge those answers, by the problem as it was
    before the attack. Source `turn` yields the answers, and both sides train in one step, as in Self-RedTeam (arXiv:2506.07468; there one
    network in both roles: give both the same learner). `payoff` other than zero-sum: regret (PAIRED, arXiv:2012.02096; of scores 0 or 1
    it is the proposer's reward of Absolute Zero, arXiv:2505.03335) and p (1 - p) (arXiv:2408.15099). `opponents`: frozen copies, averaged
    or previous, in a share of the examples (AdvGame, arXiv:2512.20806, samples both sides from averages). Ours: an attack that is not
    `allowed` is replaced by none and punished.
    """

    advantage: Advantage
    learner: str = "attacker"
    defender: str = "policy"
    answers: int = 4
    answer_sampling: Sampling = field(default_factory=Sampling)
    injection: Injection = field(default_factory=Injection)
    payoff: Payoff = field(default_factory=Payoff)
    opponents: Opponents = field(default_factory=Opponents)

    row_type: ClassVar[type[Rows]] = RolloutRows

    def __post_init__(self) -> None:
        super().__post_init__()
        least = 1 if self.payoff.form == "failure" else 2
        if self.answers < least:
            raise ConfigError(f"sources.game.answers: got {self.answers}; a payoff of {self.payoff.form} needs at least {least}.")
        pairs = self.opponents.pairs(self.learner, self.defender, self.batch_size)
        for side, name, place in (("attackers", self.learner, 0), ("defenders", self.defender, 1)):
            if all(pair[place] != name for pair in pairs):
                raise ConfigError(f"sources.game.opponents.{side}: of {self.batch_size} examples none is left to '{name}' itself.")

    @property
    def advantage_estimator(self) -> Advantage | None:
        return self.advantage

    @property
    def players(self) -> Sequence[tuple[str, str]]:
        opponents = [("opponents.attackers", name) for name in self.opponents.attackers]
        opponents += [("opponents.defenders", name) for name in self.opponents.defenders]
        return (("learner", self.learner), ("defender", self.defender), *opponents)

    def start(self, context: Context, name: str) -> GameRuntime:
        return GameRuntime(self, context, name)


@dataclass(kw_only=True)
class _Match:
    """One attack and the answers to it."""

    attacker: str
    defender: str
    attack: Rollout
    valid: bool
    answers: RolloutGroup


class GameRuntime(PlayedGameRuntime):
    """`answers`: the defender's own groups of the last draw, scored by `rewards`; each prompt that carries an attack is in `attacked`."""

    def __init__(self, config: Game, context: Context, name: str) -> None:
        self.config, self.context, self.name, self.where = config, context, name, f"sources.{name}"
        self.examples = loading.examples(config.data, limit=config.limit, seed=context.seed)
        self.stream = Stream(self.examples, lambda epoch: context.random("source", name, epoch), self.where)
        self.scorers = _rollouts.started(config.rewards, context)
        self.logs: dict[str, float] = {}
        self.answers: list[RolloutGroup] = []
        self.attacked: list[bool] = []

    def draw(self, step: int, repeat: int) -> list[RolloutGroup]:
        """Groups of the attacker of now."""
        config = self.config
        examples, own, matches, start = self.stream.take(config.batch_size), list[RolloutGroup](), list[_Match](), 0
        for attacker, defender, number in config.opponents.pairs(config.learner, config.defender, config.batch_size):
            some = examples[start : start + number]
            written = self._written(attacker, some, (self.name, step, attacker, defender))
            matches += self._answered(attacker, defender, some, written, (self.name, step, attacker, defender))
            own += written if attacker == config.learner else []
            start += number
        judged = _rollouts.score([m.answers for m in matches], config.rewards, self.scorers, self.where)
        for match in matches:
            match.attack.rewards.append(self._payoff(match))
        self._keep_answers(matches)
        kept, gone = _rollouts.without_abstentions(own)
        if not kept or not self.answers:
            raise RewardError(f"{self.where}: the rewards abstained on every answer of step {step}, so nothing can be learned from it.")
        paid: list[Any] = [config.payoff]
        self.logs = judged | self._report(matches) | _rollouts.report(kept, paid) | {"abstained": float(gone)}
        return kept

    def _written(self, attacker: str, examples: Sequence[Example], key: tuple) -> list[RolloutGroup]:
        prompts = [self.config.injection.ask(e) for e in examples]
        return self.context.generate(attacker, prompts, self.config.group_size, self.config.sampling, ("attack", *key))

    def _answered(
        self, attacker: str, defender: str, examples: Sequence[Example], written: Sequence[RolloutGroup], key: tuple
    ) -> list[_Match]:
        config, where = self.config, self.config.injection
        attacks = [(e, r, where.valid(r.text, e.prompt)) for e, g in zip(examples, written, strict=True) for r in g.rollouts]
        prompts = [asked(e, where.place(r.text, e.prompt)) if valid else e for e, r, valid in attacks]
        groups = self.context.generate(defender, prompts, config.answers, config.answer_sampling, ("answer", *key))
        return [
            _Match(attacker=attacker, defender=defender, attack=attack, valid=valid, answers=group)
            for (_, attack, valid), group in zip(attacks, groups, strict=True)
        ]

    def _scores(self, match: _Match) -> list[float]:
        """u of every answer that could be judged."""
        totals = [_rollouts.total(r, self.config.rewards) for r in match.answers.rollouts]
        found = [u for u in totals if not math.isnan(u)]
        if self.config.payoff.form == "learnability" and any(not 0 <= u <= 1 for u in found):
            raise RewardError(f"{self.where}.payoff: learnability is of scores in [0, 1], and the rewards of an answer sum to {found}.")
        return found

    def _payoff(self, match: _Match) -> float:
        payoff = self.config.payoff
        if not match.valid:
            return payoff.invalid
        return earned(payoff.form, self._scores(match)) - payoff.length_cost * len(match.attack.response_ids)

    def _keep_answers(self, matches: Sequence[_Match]) -> None:
        mine = [m for m in matches if m.defender == self.config.defender]
        self.answers, _ = _rollouts.without_abstentions([m.answers for m in mine])
        kept = {id(group) for group in self.answers}
        self.attacked = [_placed(m) for m in mine if id(m.answers) in kept]

    def _report(self, matches: Sequence[_Match]) -> dict[str, float]:
        """Of all pairs, and of the pairs with each frozen copy."""
        config = self.config
        logs = _success("attack_success", [self._scores(m) for m in matches if _placed(m)])
        for name in (*config.opponents.attackers, *config.opponents.defenders):
            logs |= _success(
                f"attack_success/{name}", [self._scores(m) for m in matches if _placed(m) and name in (m.attacker, m.defender)]
            )
        mine = [m for m in matches if m.attacker == config.learner]
        lengths = [len(m.attack.response_ids) for m in mine if m.valid]
        logs["invalid"] = sum(not m.valid for m in mine) / len(mine)
        return logs | ({"attack_length": sum(lengths) / len(lengths)} if lengths else {})

    def rows(self, items: Sequence[RolloutGroup], encoder: Any) -> RolloutRows:
        rows = _rollouts.rows(items, encoder, [self.config.payoff.weight], self.config.sampling.temperature)
        return replace(rows, roles=torch.full_like(rows.tokens.group, ATTACKER))

    def state_dict(self) -> dict[str, Any]:
        return self.stream.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.stream.load_state_dict(state)


def _placed(match: _Match) -> bool:
    """Whether an attack stands in the prompt."""
    return match.valid and bool(match.attack.text)


def _success(name: str, scores: Sequence[Sequence[float]]) -> dict[str, float]:
    flat = [u for row in scores for u in row]
    return {name: 1 - sum(flat) / len(flat)} if flat else {}

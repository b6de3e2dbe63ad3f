"""Adversarially chosen environments: each problem is asked in the way that the policy of now answers worst."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from advalign import data as loading
from advalign.errors import ConfigError, RewardError, unknown
from advalign.interfaces import Advantage, Attack, Context, SourceRuntime
from advalign.sources import _rollouts
from advalign.sources._game import PAYOFFS, asked, earned
from advalign.sources._rollouts import Sampled
from advalign.sources._stream import Stream
from advalign.sources._variants import Distractors, Rewrites, Solver
from advalign.types import Budget, Example, RolloutGroup, RolloutRows, Rows

__all__ = ["AdversarialPrompts"]


@dataclass(frozen=True, kw_only=True)
class AdversarialPrompts(Sampled):
    """x' = argmax over x_1 .. x_n of keep(u(x_i, y_1) .. u(x_i, y_K)),  y ~ p(. | x_i);   then a group of fresh responses to x'.

    Minimax over environments (`keep: failure`, 1 - mean u), or the `regret` max u - mean u, which leaves out what cannot be solved at all
    (PAIRED, arXiv:2012.02096, with the policy's own best answer as the antagonist), or the `learnability` p (1 - p) (arXiv:2408.15099).
    The `candidates` x_i are one of: `distract`, random pieces beside the prompt; `rewrites`, data with rows of the same ids asked
    otherwise; `attack`, a search in words of at most `candidates` queries. `probes` is K. u is the total reward, judged by the problem
    itself, whatever the prompt. `clean` of the prompts stay as they are. One candidate and no probes is domain randomisation. Ours:
    probes are not trained on, since they were chosen for being wrong; what they cost is logged.
    """

    advantage: Advantage
    distract: Distractors | None = None
    rewrites: Sequence[Any] | None = None
    attack: Attack | None = None
    candidates: int = 4
    probes: int = 4
    keep: str = "failure"
    clean: float = 0.0

    row_type: ClassVar[type[Rows]] = RolloutRows

    def __post_init__(self) -> None:
        super().__post_init__()
        if sum(way is not None for way in (self.distract, self.rewrites, self.attack)) != 1:
            raise ConfigError("sources.found: give one of distract, rewrites and attack; it says what a prompt may become.")
        if self.keep not in PAYOFFS:
            raise unknown("sources.adversarial_prompts.keep", "way to choose", self.keep, PAYOFFS)
        if self.attack is not None and (self.attack.access != "text" or self.keep != "failure"):
            raise ConfigError(
                "sources.adversarial_prompts.attack: an attack searches for failure, by texts alone; use one of access text, with keep: failure."
            )
        least = 0 if self.candidates == 1 and self.attack is None else 1 if self.keep == "failure" else 2
        if self.candidates < 1 or self.probes < least:
            raise ConfigError(
                f"sources.found: candidates {self.candidates}, probes {self.probes}; at least 1, and by {self.keep} at least {least}."
            )
        if not 0 <= self.clean < 1:
            raise ConfigError(f"sources.adversarial_prompts.clean: got {self.clean}; a share of the prompts is at least 0 and below 1.")

    @property
    def advantage_estimator(self) -> Advantage | None:
        return self.advantage

    def start(self, context: Context, name: str) -> _Runtime:
        return _Runtime(self, context, name)


class _Runtime(SourceRuntime[RolloutGroup]):
    def __init__(self, config: AdversarialPrompts, context: Context, name: str) -> None:
        self.config, self.context, self.name, self.where = config, context, name, f"sources.{name}"
        examples = loading.examples(config.data, limit=config.limit, seed=context.seed)
        self.stream = Stream(examples, lambda epoch: context.random("source", name, epoch), self.where)
        self.rewrites = None if config.rewrites is None else Rewrites(config.rewrites, examples, config.limit, context.seed, self.where)
        self.scorers = _rollouts.started(config.rewards, context)
        self.logs: dict[str, float] = {}

    def draw(self, step: int, repeat: int) -> list[RolloutGroup]:
        config, self.logs = self.config, {"num_probes": 0.0, "probe_tokens": 0.0}
        examples = self.stream.take(config.batch_size)
        number = math.floor(config.clean * len(examples) + 0.5)
        chosen = self._searched(examples[number:], step) if config.attack is not None else self._chosen(examples[number:], step)
        key = ("rollout", self.name, step)
        groups = self.context.generate(config.learner, [*examples[:number], *chosen], config.group_size, config.sampling, key)
        self.logs |= _rollouts.score(groups, config.rewards, self.scorers, self.where)
        for name, some in (("clean", groups[:number]), ("attacked", groups[number:])):
            self.logs |= _mean(f"accuracy/{name}", [u for g in some for u in self._scores(g)])
        kept, gone = _rollouts.without_abstentions(groups)
        if not kept:
            raise RewardError(f"{self.where}: the rewards abstained on every response of step {step}, so nothing can be learned from it.")
        self.logs |= _rollouts.report(kept, config.rewards) | {"abstained": float(gone)}
        return kept

    def _scores(self, group: RolloutGroup) -> list[float]:
        totals = [_rollouts.total(r, self.config.rewards) for r in group.rollouts]
        return [u for u in totals if not math.isnan(u)]

    def _chosen(self, examples: Sequence[Example], step: int) -> list[Example]:
        """Of every example the worst of its candidates, the first of equals."""
        rng, number = self.context.random("variants", self.name, step), self.config.candidates
        if self.rewrites is not None:
            prompts = [self.rewrites.prompts(e, number, rng) for e in examples]
        else:
            assert self.config.distract is not None
            prompts = [[self.config.distract.prompt(e, rng) for _ in range(number)] for e in examples]
        if self.config.probes == 0:
            return [asked(e, options[0]) for e, options in zip(examples, prompts, strict=True)]
        probed = iter(self._probed([(e, p) for e, options in zip(examples, prompts, strict=True) for p in options], (step,)))
        chosen, before, after = [], list[float](), list[float]()
        for example, options in zip(examples, prompts, strict=True):
            found = [next(probed) for _ in options]
            values = [-math.inf if math.isnan(v) else v for v in (earned(self.config.keep, scores) for scores in found)]
            best = values.index(max(values))
            chosen.append(asked(example, options[best]))
            before += [u for scores in found for u in scores]
            after += found[best]
        self.logs |= _mean("probed/all", before) | _mean("probed/kept", after)
        return chosen

    def _probed(self, questions: Sequence[tuple[Example, str]], key: tuple) -> list[list[float]]:
        """The scores of `probes` answers to each; what they cost is added to the log."""
        if not questions:
            return []
        config = self.config
        examples = [asked(e, prompt) for e, prompt in questions]
        groups = self.context.generate(config.learner, examples, config.probes, config.sampling, ("probe", self.name, *key))
        _rollouts.score(groups, config.rewards, self.scorers, self.where)
        self.logs["num_probes"] += float(sum(len(g.rollouts) for g in groups))
        self.logs["probe_tokens"] += float(sum(len(r.response_ids) for g in groups for r in g.rollouts))
        found = [self._scores(g) for g in groups]
        if config.keep == "learnability" and any(not 0 <= u <= 1 for scores in found for u in scores):
            raise RewardError(f"{self.where}.keep: learnability is of scores in [0, 1], and the rewards of an answer sum to others.")
        return found

    def _searched(self, examples: Sequence[Example], step: int) -> list[Example]:
        """Every example as the attack left it: as it was, where the attack found nothing."""
        asks = iter(range(10**9))
        solver = Solver(examples, lambda questions: [_average(s) for s in self._probed(questions, (step, next(asks)))])
        rng, budget = self.context.random("variants", self.name, step), Budget(queries=self.config.candidates)
        assert self.config.attack is not None
        proposals = self.config.attack.propose(solver, solver.victims(), budget, rng) if examples else []
        found = [e if p.text is None else asked(e, p.text) for e, p in zip(examples, proposals, strict=True)]
        changed = sum(new is not old for new, old in zip(found, examples, strict=True))
        self.logs |= {"attack_success": changed / len(found)} if found else {}
        return found

    def rows(self, items: Sequence[RolloutGroup], encoder: Any) -> RolloutRows:
        return _rollouts.rows(items, encoder, [r.weight for r in self.config.rewards], self.config.sampling.temperature)

    def state_dict(self) -> dict[str, Any]:
        return self.stream.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.stream.load_state_dict(state)


def _mean(name: str, scores: Sequence[float]) -> dict[str, float]:
    return {name: sum(scores) / len(scores)} if scores else {}


def _average(scores: Sequence[float]) -> float:
    """What nobody could judge counts as solved: it is no failure."""
    return sum(scores) / len(scores) if scores else 1.0

"""Adversarially chosen prompts: each problem is asked in the way that the current policy answers worst."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from advalign import data as loading
from advalign.errors import ConfigError, RewardError
from advalign.interfaces import Attack, Context
from advalign.ranges import Count, Natural, OneOf, ProperFraction
from advalign.sources._game import PAYOFFS, attack_payoff, with_prompt
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
from advalign.sources._scoring import score, start_scorers, total_reward
from advalign.sources._stream import Stream, StreamRuntime
from advalign.sources._variants import Distractors, Rewrites, Solver
from advalign.types import Budget, Example, Prompt, RolloutGroup, RolloutRows

if TYPE_CHECKING:
    from advalign.models.encode import Encoder

__all__ = ["AdversarialPrompts"]


@dataclass(frozen=True, kw_only=True)
class AdversarialPrompts(Sampled, RolloutSource):
    """x' = argmax over x_1 .. x_n of keep(u(x_i, y_1) .. u(x_i, y_K)),  y ~ p(. | x_i);   then a group of fresh responses to x'.

    Minimax over environments (`keep: failure`, 1 - mean u), or the `regret` max u - mean u, which leaves out what cannot be solved at all
    (PAIRED, arXiv:2012.02096, with the policy's own best answer as the antagonist), or the `learnability` p (1 - p) (arXiv:2408.15099).
    The candidates x_i come from one of `distract`, `rewrites` and `attack`. u is the total reward, by the problem itself, whatever the
    prompt. One candidate and no probes is domain randomisation. Ours: probes are not trained on, since they were chosen for being wrong;
    their number is logged.
    """

    distract: Distractors | None = None
    """Candidates: random pieces beside the prompt."""
    rewrites: Sequence[Any] | None = None
    """Candidates: data whose rows have the ids of the examples and other prompts."""
    attack: Attack | None = None
    """Candidates: a search in words, of at most `candidates` queries."""
    candidates: Count = 4
    """Candidates per prompt."""
    probes: Natural = 4
    """K: responses to each candidate by which it is chosen."""
    keep: Annotated[str, OneOf(PAYOFFS, "way to choose")] = "failure"
    """failure, regret or learnability."""
    clean: ProperFraction = 0.0
    """Fraction of the prompts that stay as they are."""

    occasional_metrics: ClassVar[tuple[str, ...]] = (
        "rewards/*",
        "completions/mean_terminated_length",
        "accuracy/*",
        "probed/*",
        "attack_success",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        path = "sources.adversarial_prompts"
        if sum(option is not None for option in (self.distract, self.rewrites, self.attack)) != 1:
            raise ConfigError(f"{path}: give one of distract, rewrites and attack; it says what a prompt may become.")
        if self.attack is not None and (self.attack.access != "text" or self.keep != "failure"):
            raise ConfigError(f"{path}.attack: an attack searches for failure, by texts alone; use one of access text, with keep: failure.")
        least = 0 if self.candidates == 1 and self.attack is None else 1 if self.keep == "failure" else 2
        if self.probes < least:
            raise ConfigError(f"{path}.probes: {self.probes} given; with keep: {self.keep} at least {least}.")

    def start(self, context: Context, name: str) -> _Runtime:
        return _Runtime(self, context, name)


class _Runtime(StreamRuntime[RolloutGroup]):
    def __init__(self, config: AdversarialPrompts, context: Context, name: str) -> None:
        self.config, self.context, self.name, self.path = config, context, name, f"sources.{name}"
        self.weights = weights(config.rewards)
        examples = loading.examples(config.data, limit=config.limit, seed=context.seed)
        self.stream = Stream(examples, lambda epoch: context.random("source", name, epoch), self.path)
        self.rewrites = None if config.rewrites is None else Rewrites(config.rewrites, examples, config.limit, context.seed, self.path)
        self.scorers = start_scorers(config.rewards, context, examples, self.path)
        self.logs: dict[str, float] = {}

    def check_rows(self, encoder: Encoder) -> None:
        check_prompts(encoder, self.stream.items if isinstance(self.stream, Stream) else (), self.config.sampling, self.path)

    def draw(self, step: int, repeat: int) -> list[RolloutGroup]:
        config, self.logs = self.config, {"num_probes": 0.0, "probe_tokens": 0.0}
        examples = self.stream.take(config.batch_size)
        num_clean = math.floor(config.clean * len(examples) + 0.5)
        clean, attacked = examples[:num_clean], examples[num_clean:]
        chosen = self._attacked(attacked, step) if config.attack is not None else self._chosen(attacked, step)
        key = ("rollout", self.name, step)
        groups = self.context.generate(config.learner, [*clean, *chosen], config.group_size, config.sampling, key)
        self.logs |= score(groups, config.rewards, self.scorers, self.path)
        self.logs |= _mean("accuracy/clean", [u for g in groups[:num_clean] for u in self._scores(g)])
        self.logs |= _mean("accuracy/attacked", [u for g in groups[num_clean:] for u in self._scores(g)])
        groups, num_abstained = without_abstentions(groups)
        require_scored(groups, self.path, step)
        self.logs |= completion_metrics(groups, self.weights) | {"abstained": float(num_abstained)}
        return groups

    def _scores(self, group: RolloutGroup) -> list[float]:
        """u of every response that could be scored."""
        totals = [total_reward(r, self.weights) for r in group.rollouts]
        return [u for u in totals if not math.isnan(u)]

    def _chosen(self, examples: Sequence[Example], step: int) -> list[Example]:
        """Every example under the worst of its candidates, the first of equals."""
        rng, number = self.context.random("variants", self.name, step), self.config.candidates
        if self.rewrites is not None:
            candidates = [self.rewrites.prompts(e, number, rng) for e in examples]
        else:
            assert self.config.distract is not None
            candidates = [[self.config.distract.prompt(e, rng) for _ in range(number)] for e in examples]
        if self.config.probes == 0:
            return [with_prompt(e, prompts[0]) for e, prompts in zip(examples, candidates, strict=True)]
        questions = [(e, prompt) for e, prompts in zip(examples, candidates, strict=True) for prompt in prompts]
        probed = iter(self._probed(questions, (step,)))
        chosen, all_scores, chosen_scores = [], list[float](), list[float]()
        for example, prompts in zip(examples, candidates, strict=True):
            scores = [next(probed) for _ in prompts]
            values = [-math.inf if math.isnan(v) else v for v in (attack_payoff(self.config.keep, s) for s in scores)]
            worst = values.index(max(values))
            chosen.append(with_prompt(example, prompts[worst]))
            all_scores += [u for candidate in scores for u in candidate]
            chosen_scores += scores[worst]
        self.logs |= _mean("probed/all", all_scores) | _mean("probed/kept", chosen_scores)
        return chosen

    def _probed(self, questions: Sequence[tuple[Example, Prompt]], key: tuple) -> list[list[float]]:
        """The scores of `probes` answers to each (problem, prompt); their number is added to the log."""
        if not questions:
            return []
        config = self.config
        examples = [with_prompt(e, prompt) for e, prompt in questions]
        groups = self.context.generate(config.learner, examples, config.probes, config.sampling, ("probe", self.name, *key))
        score(groups, config.rewards, self.scorers, self.path)
        self.logs["num_probes"] += float(sum(len(g.rollouts) for g in groups))
        self.logs["probe_tokens"] += float(sum(len(r.response_ids) for g in groups for r in g.rollouts))
        scores = [self._scores(g) for g in groups]
        if config.keep == "learnability" and any(not 0 <= u <= 1 for answers in scores for u in answers):
            raise RewardError(f"{self.path}.keep: learnability is of scores in [0, 1], and the rewards of an answer sum to others.")
        return scores

    def _attacked(self, examples: Sequence[Example], step: int) -> list[Example]:
        """Every example as the attack left it: unchanged where the attack found nothing."""
        numbers = iter(range(10**9))
        solver = Solver(examples, lambda texts: self._solved(texts, (step, next(numbers))))
        rng, budget = self.context.random("variants", self.name, step), Budget(queries=self.config.candidates)
        assert self.config.attack is not None
        proposals = self.config.attack.propose(solver, solver.classified(), budget, rng) if examples else []
        results = [e if p.text is None else e.with_text(p.text) for e, p in zip(examples, proposals, strict=True)]
        num_changed = sum(new is not old for new, old in zip(results, examples, strict=True))
        self.logs |= {"attack_success": num_changed / len(results)} if results else {}
        return results

    def _solved(self, questions: Sequence[tuple[Example, str]], key: tuple) -> list[float]:
        """The mean score of the answers to each (problem, its text in other words)."""
        return [_mean_or_solved(scores) for scores in self._probed([(e, e.with_text(text).prompt) for e, text in questions], key)]

    def rows(self, items: Sequence[RolloutGroup], encoder: Encoder) -> RolloutRows:
        return build_rows(items, encoder, self.weights, self.config.sampling.temperature)


def _mean(name: str, scores: Sequence[float]) -> dict[str, float]:
    return {name: sum(scores) / len(scores)} if scores else {}


def _mean_or_solved(scores: Sequence[float]) -> float:
    """The mean; 1 without scores, since an answer that could not be scored is not a failure."""
    return sum(scores) / len(scores) if scores else 1.0

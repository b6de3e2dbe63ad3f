"""What is measured now and then during a run, on held-out examples: never used for a gradient."""

from __future__ import annotations

import math
import random
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from advalign import data as loading
from advalign.errors import ConfigError, RewardError, unknown
from advalign.functional import answers
from advalign.interfaces import Context, Reward
from advalign.metrics import diversity, utility
from advalign.models import Network
from advalign.rewards.exact_answer import ExactAnswer
from advalign.training import discriminator_evaluation
from advalign.training.annotate import columns
from advalign.training.discriminator_evaluation import DiscriminatorEvaluation
from advalign.types import DemoRows, Example, RolloutGroup, Sampling, Tokens

RIGHT = 1 - 1e-9  # a verified score from which a response counts as solved


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """`number` held-out examples of a `split` for a learner. A policy answers each `samples` times (n):

    `accuracy` the mean verified score; `pass@k` and, of k > 1, `maj@k` for k = 1, 2, 4, ... n; `best_of@k/accuracy` if a
    `verifier`, any reward, picks one of k; `unique` the fraction of distinct texts per prompt; `entropy` in nats per token,
    and at the k-th token; `distinct_1`, `distinct_2` of words, `coverage` of the references' word pairs and, with `self_bleu` (its
    largest order; needs advalign[diversity]), `self_bleu`; `completions/...` lengths; `nll` of the reference response where there is
    one. A classifier: `accuracy`.
    """

    data: Any
    split: str = "test"
    number: int = 64
    samples: int = 1
    sampling: Sampling = field(default_factory=Sampling)
    verifier: Reward | None = None
    learner: str = "policy"
    columns: Mapping[str, str] | None = None
    seed: int = 0
    self_bleu: int = 0

    def __post_init__(self) -> None:
        for name in ("number", "samples"):
            if getattr(self, name) < 1:
                raise ConfigError(f"evaluations: {name} is {getattr(self, name)}; it must be at least 1.")


KINDS = {"answers": Evaluation, "discriminator": DiscriminatorEvaluation}  # the `kind` of an entry; without one: answers


def _scorer_of(evaluation: Evaluation | DiscriminatorEvaluation) -> str | None:
    """The learner that gives the scores of a verifier."""
    if isinstance(evaluation, DiscriminatorEvaluation) or evaluation.verifier is None:
        return None
    return evaluation.verifier.scoring_learner


def check(evaluations: Mapping[str, Evaluation | DiscriminatorEvaluation], learners: Mapping[str, Any]) -> None:
    """Refused before anything is loaded: an evaluation, a verifier or a sampler of a learner that is not there."""
    for name, evaluation in evaluations.items():
        asked = {"learner": evaluation.learner, "verifier.learner": _scorer_of(evaluation)}
        for place, learner in asked.items():
            if learner is not None and learner not in learners:
                raise unknown(f"evaluations.{name}.{place}", "learner", learner, learners)
        if isinstance(evaluation, DiscriminatorEvaluation):
            discriminator_evaluation.check(name, evaluation, learners)
        elif evaluation.self_bleu:
            diversity.check(f"evaluations.{name}.self_bleu")


def run(
    evaluation: Evaluation | DiscriminatorEvaluation, network: Network, engine: Any, budget: int, context: Context | None = None
) -> dict[str, float]:
    """Numbers of one evaluation; the same examples and the same sampling stream every time."""
    if isinstance(evaluation, DiscriminatorEvaluation):
        return discriminator_evaluation.run(evaluation, network, engine, budget, context)
    examples = loading.examples(
        evaluation.data, columns=evaluation.columns, split=evaluation.split, limit=evaluation.number, seed=evaluation.seed
    )
    if network.head == "classifier":
        return {"accuracy": accuracy(network, examples, budget)}
    generator = torch.Generator().manual_seed(evaluation.seed)
    if context is not None:
        engine.sync(network, context.version(evaluation.learner))
    groups = engine.generate(network, examples, evaluation.samples, evaluation.sampling, generator)
    logs = verified(groups, evaluation.verifier, context)
    responses = _references(evaluation, examples)
    logs |= diversity.of_groups(groups, references=responses, order=evaluation.self_bleu)
    logs |= lengths(groups) | entropy(network, groups, budget)
    return logs if responses is None else logs | {"nll": nll(network, examples, responses, budget)}


# -------------------------------------------------------------------------------------------- of what was sampled


def verified(groups: Sequence[RolloutGroup], verifier: Reward | None = None, context: Context | None = None) -> dict[str, float]:
    """How often the responses are right: alone, one of k, by vote, and by a verifier's choice. Prompts whose answer nobody can
    verify are left out; where that is all of them, there is nothing to report."""
    scored = zip(groups, _scores(ExactAnswer(), groups, context), strict=True)
    judged = [(group, row) for group, row in scored if not any(map(math.isnan, row))]
    if not judged:
        return {}
    right = [row for _, row in judged]
    total = min(map(len, right))
    solved = [sum(s >= RIGHT for s in row) for row in right]
    votes = [[_vote(group.example, r.text) for r in group.rollouts] for group, _ in judged]
    chosen = None if verifier is None else _scores(verifier, [group for group, _ in judged], context)
    logs = {"accuracy": sum(map(sum, right)) / sum(map(len, right))}
    for k in utility.powers_of_two(total):
        logs[f"pass@{k}"] = utility.pass_at_k(solved, total, k)
        if k > 1:
            logs[f"maj@{k}"] = utility.maj_at_k(votes, right, k)
        if chosen is not None:
            logs[f"best_of@{k}/accuracy"] = utility.best_of_k(chosen, right, k)
    return logs


def lengths(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """Sampled tokens per response, the end token included, and the share that was cut off."""
    rollouts = [r for g in groups for r in g.rollouts]
    counts = [len(r.response_ids) for r in rollouts]
    return {
        "completions/mean_length": sum(counts) / len(counts),
        "completions/min_length": float(min(counts)),
        "completions/max_length": float(max(counts)),
        "completions/clipped_ratio": sum(not r.finished for r in rollouts) / len(rollouts),
    }


@torch.no_grad()
def entropy(network: Network, groups: Sequence[RolloutGroup], budget: int) -> dict[str, float]:
    """Mean entropy of the next-token distribution, at temperature 1, along the sampled responses, and at their k-th token for
    k = 1, 2, 4, ... as far as half of the responses reach."""
    tokens = network.encoder.rollouts(groups)
    values = _over(network, tokens, "entropy", budget)
    curve = utility.entropy_curve(values, tokens.target)
    reach = int(tokens.target.sum(1).double().quantile(0.5, interpolation="lower"))
    places = [1 << i for i in range(reach.bit_length())]
    return {"entropy": float(values[tokens.target].mean())} | {f"entropy/token_{k}": float(curve[k - 1]) for k in places}


def _scores(reward: Any, groups: Sequence[RolloutGroup], context: Context | None) -> list[list[float]]:
    """One row per prompt."""
    given = reward.start(context)(groups)  # a reward on tokens counts as its sum
    scores = [float(sum(s)) if isinstance(s, Sequence) else float(s) for s in given]
    number = sum(len(g.rollouts) for g in groups)
    if len(scores) != number:
        raise RewardError(f"evaluations: {type(reward).__name__} gave {len(scores)} scores for {number} responses.")
    rest = iter(scores)
    return [[next(rest) for _ in g.rollouts] for g in groups]


def _vote(example: Example, text: str) -> Hashable:
    """What a response votes for: its marked answer, its last number where the reference is a number, else its whole text."""
    reference = example.answer or ""
    asks_number = answers.number(answers.marked(reference) or reference) is not None
    answer = answers.marked(text) or (answers.last_number(text) if asks_number else None) or text
    stated = answers.number(answer) if asks_number else None
    return answers.fold(answer) if stated is None else stated


# ------------------------------------------------------------------------------------------ of what was given


@torch.no_grad()
def accuracy(network: Network, examples: list[Example], budget: int) -> float:
    logits = _over(network, network.encoder.classify(*_texts(examples)), "class_logits", budget)
    labels = torch.tensor([e.label for e in examples])
    return float((logits.argmax(1) == labels).float().mean())


@torch.no_grad()
def nll(network: Network, examples: Sequence[Example], responses: Sequence[str], budget: int) -> float:
    """Mean of -log p over the tokens of the reference responses, the end token included."""
    tokens = network.encoder.demos([e.prompt for e in examples], responses)
    return -float(_over(network, tokens, "logprobs", budget)[tokens.target].mean())


def _references(evaluation: Evaluation, examples: Sequence[Example]) -> list[str] | None:
    """A task's demonstrations, else the responses of the data, else their answers; None where one is missing."""
    maker, seed = loading.task_of(evaluation.data), evaluation.seed
    if maker is not None:
        return [maker.demonstrate(e, random.Random(f"{seed}/{e.id}")) for e in examples]
    found = [e.meta.get("response", e.answer) for e in examples]
    return found if all(isinstance(text, str) for text in found) else None


def _over(network: Network, tokens: Tokens, need: str, budget: int) -> torch.Tensor:
    return columns(network, DemoRows(tokens=tokens), {need}, budget)[need].float()


def _texts(examples: list[Example]) -> tuple[list[str], list[str] | None]:
    pairs = [e.pair or "" for e in examples] if examples[0].pair is not None else None
    return [e.prompt for e in examples], pairs

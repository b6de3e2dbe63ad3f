"""Evaluations during a run, on held-out examples that are never used for a gradient."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from advalign import data as loading
from advalign.checked import Checked
from advalign.errors import RewardError, located
from advalign.functional import answers, notation
from advalign.interfaces import Context, Reward, RolloutEngine, Scorer, Scores
from advalign.metrics import diversity, utility
from advalign.models import Network
from advalign.models.row_bounds import doubtful
from advalign.names import AnsweringName
from advalign.ranges import Count, Natural, Seed, Words
from advalign.rewards.exact_answer import ExactAnswer
from advalign.training import discriminator_evaluation
from advalign.training.columns import columns
from advalign.training.context import RunContext
from advalign.training.discriminator_evaluation import DiscriminatorEvaluation
from advalign.types import DemoRows, Example, Prompt, Response, RolloutGroup, Sampling, Tokens
from advalign.types.messages import response_text

EXACT = ExactAnswer()
"""What says whether a response is right where an evaluation does not."""
RIGHT = 1 - 1e-9
"""The verified score from which a response counts as solved."""


@dataclass(frozen=True, kw_only=True)
class Evaluation(Checked, section="evaluations"):
    """Held-out examples for a policy, which answers each n = `samples` times, or for a classifier (`accuracy` alone).

    `accuracy` the mean verified score; `pass@k` and, of k > 1, `maj@k` for k = 1, 2, 4, ... n; `best_of@k/accuracy` if a
    `verifier` picks one of k; `unique` the fraction of distinct texts per prompt; `entropy` in nats per token, and at the k-th token;
    `distinct_1`, `distinct_2` of words, `coverage` of the references' word pairs; `self_bleu`; `completions/...` lengths; `nll` of the
    reference response where there is one.
    """

    data: Any
    """Reference to the examples (see `advalign.data`)."""
    split: Words = "test"
    """Split of a task, or of a data set."""
    number: Count = 64
    """Examples, the same ones every time."""
    samples: Count = 1
    """Responses per example."""
    sampling: Sampling = field(default_factory=Sampling)
    """How they are sampled."""
    correct: Reward | None = None
    """What says how right a response is, from 0 to 1: any reward, such as `instructions`. None: `exact_answer`."""
    verifier: Reward | None = None
    """What picks one of k responses: any reward."""
    learner: AnsweringName = "policy"
    """What is evaluated."""
    columns: Mapping[str, Words] | None = None
    """{field of an example: column of the data}"""
    seed: Seed = 0
    """Of the examples and of the sampling."""
    self_bleu: Natural = 0
    """Largest order of Self-BLEU (needs advalign[diversity]); 0: none."""

    @property
    def metric_names(self) -> frozenset[str]:
        """What it may log; `accuracy` and what follows from it where answers can be verified."""
        counts = utility.powers_of_two(self.samples)
        lengths = {f"completions/{name}" for name in ("mean_length", "min_length", "max_length", "clipped_ratio")}
        names = {"accuracy", "unique", "unique/overall", "distinct_1", "distinct_2", "coverage", "self_bleu", "entropy", "nll", *lengths}
        names |= {f"pass@{k}" for k in counts} | {f"maj@{k}" for k in counts if k > 1}
        names |= frozenset() if self.correct is None else self.correct.metric_names
        names |= {f"best_of@{k}/accuracy" for k in counts if self.verifier is not None}
        return frozenset(names | {f"entropy/token_{1 << i}" for i in range(self.sampling.max_new_tokens.bit_length())})


EVALUATIONS = {"answers": Evaluation, "discriminator": DiscriminatorEvaluation}
"""{kind: class} of the entries of `evaluations`; without a kind: answers."""


def check(evaluations: Mapping[str, Evaluation | DiscriminatorEvaluation]) -> None:
    """Refused before anything is loaded: a number that needs a package which is not there."""
    for name, evaluation in evaluations.items():
        if isinstance(evaluation, Evaluation) and evaluation.self_bleu:
            diversity.require_nltk(f"evaluations.{name}.self_bleu")


def check_data(evaluations: Mapping[str, Evaluation | DiscriminatorEvaluation], context: RunContext) -> None:
    """Reads the data of every evaluation once, before the first step. Raises ConfigError for what cannot be read, for a label that the
    evaluated classifier has no class for, and for what a verifier cannot score; BudgetError for a prompt that leaves no room for a
    response, and for a reference response that no row holds."""
    for name, evaluation in evaluations.items():
        with located(f"evaluations.{name}"):
            if isinstance(evaluation, DiscriminatorEvaluation):
                discriminator_evaluation.check_data(evaluation, context)
            else:
                _check_examples(evaluation, context.learner(evaluation.learner).network)


def _check_examples(evaluation: Evaluation, network: Network) -> None:
    examples, encoder = _examples(evaluation, network), network.encoder
    if network.head == "classifier":
        if encoder.truncation.mode == "error":
            for example in doubtful(encoder, examples):
                encoder.classify(*_texts([example]))
        return
    for name, reward in (("correct", evaluation.correct), ("verifier", evaluation.verifier)):
        if reward is not None:
            reward.check(examples, name)
    if encoder.truncation.mode == "left":
        return
    references = dict(zip((id(e) for e in examples), _references(evaluation, examples), strict=True))
    from_task = loading.task_of(evaluation.data) is not None  # whose demonstrations may be longer than its answers
    for example in examples if from_task else doubtful(encoder, examples):
        with located(example.described):
            encoder.truncation.rollout(len(encoder.prompt(example.prompt)), 0)
            if references[id(example)] is not None:
                encoder.demos([example.prompt], [references[id(example)]])  # type: ignore[list-item]


def _examples(evaluation: Evaluation, network: Network) -> list[Example]:
    """The held-out examples; for a classifier, with class indices."""
    options = {"columns": evaluation.columns, "split": evaluation.split, "limit": evaluation.number, "seed": evaluation.seed}
    if network.head != "classifier":
        return loading.examples(evaluation.data, **options)  # type: ignore[arg-type]
    classes = {"class_names": network.class_names, "num_classes": network.num_classes}
    return loading.labelled(evaluation.data, **options, **classes)[0]  # type: ignore[arg-type]


def run(
    evaluation: Evaluation | DiscriminatorEvaluation, network: Network, rollout_engine: RolloutEngine, budget: int, context: RunContext
) -> dict[str, float]:
    """{metric: value} of one evaluation; the same examples and the same random stream every time."""
    if isinstance(evaluation, DiscriminatorEvaluation):
        return discriminator_evaluation.evaluate_discriminator(evaluation, network, rollout_engine, budget, context)
    examples = _examples(evaluation, network)
    if network.head == "classifier":
        return {"accuracy": accuracy(network, examples, budget)}
    generator = torch.Generator().manual_seed(evaluation.seed)
    rollout_engine.sync(network, context.version(evaluation.learner))
    groups = rollout_engine.generate(network, examples, evaluation.samples, evaluation.sampling, generator)
    logs = verified(groups, evaluation.verifier, context, evaluation.correct or EXACT)
    referenced = [(e, r) for e, r in zip(examples, _references(evaluation, examples), strict=True) if r is not None]
    references = [response_text(response) for _, response in referenced] or None
    logs |= diversity.group_diversity(groups, references=references, order=evaluation.self_bleu)
    logs |= lengths(groups) | entropy(network, groups, budget)
    if not referenced:
        return logs
    return logs | {"nll": nll(network, [e for e, _ in referenced], [response for _, response in referenced], budget)}


# -------------------------------------------------------------------------------------------- of sampled responses


def verified(
    groups: Sequence[RolloutGroup], verifier: Reward | None = None, context: Context | None = None, correct: Reward = EXACT
) -> dict[str, float]:
    """How often the responses are right, by the reward `correct`: alone, one of k, by vote, and by a verifier's choice.

    Prompts without a verifiable answer are left out; where that is all of them, there is nothing to report."""
    context = context or RunContext(0, None, 1)
    scorer = correct.start(context)
    scores = _scores(correct, scorer, groups)
    verifiable = [(g, row) for g, row in zip(groups, scores, strict=True) if not any(map(math.isnan, row))]
    if not verifiable:
        return {}
    right = [row for _, row in verifiable]
    total = min(map(len, right))
    solved = [sum(s >= RIGHT for s in row) for row in right]
    votes = [[_vote(group.example, r.text) for r in group.rollouts] for group, _ in verifiable]
    chosen = None if verifier is None else _scores(verifier, verifier.start(context), [group for group, _ in verifiable])
    logged = scorer.logs if isinstance(scorer, Scorer) else {}
    logs = {name: sum(values) / len(values) for name, values in logged.items() if values}
    logs |= {"accuracy": sum(map(sum, right)) / sum(map(len, right))}
    for k in utility.powers_of_two(total):
        logs[f"pass@{k}"] = utility.pass_at_k(solved, total, k)
        if k > 1:
            logs[f"maj@{k}"] = utility.maj_at_k(votes, right, k)
        if chosen is not None:
            logs[f"best_of@{k}/accuracy"] = utility.best_of_k(chosen, right, k)
    return logs


def lengths(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """Sampled tokens per response, the end token included, and the fraction that was cut off."""
    rollouts = [r for g in groups for r in g.rollouts]
    counts = [len(r.response_ids) for r in rollouts]
    return {
        "completions/mean_length": sum(counts) / len(counts),
        "completions/min_length": float(min(counts)),
        "completions/max_length": float(max(counts)),
        "completions/clipped_ratio": sum(not r.finished for r in rollouts) / len(rollouts),
    }


def entropy(network: Network, groups: Sequence[RolloutGroup], budget: int) -> dict[str, float]:
    """Mean entropy of the next-token distribution, at temperature 1, along the sampled responses, and at their k-th token.

    k = 1, 2, 4, ... as far as half of the responses reach."""
    tokens = network.encoder.rollouts(groups, whole=False)
    values = _column(network, tokens, "entropy", budget)
    curve = utility.entropy_curve(values, tokens.target)
    reach = int(tokens.target.sum(1).double().quantile(0.5, interpolation="lower"))
    places = [1 << i for i in range(reach.bit_length())]
    return {"entropy": float(values[tokens.target].mean())} | {f"entropy/token_{k}": float(curve[k - 1]) for k in places}


def _scores(reward: Reward, scorer: Callable[..., Scores], groups: Sequence[RolloutGroup]) -> list[list[float]]:
    """One row of scores per prompt by a started reward; one on tokens counts as its sum."""
    scores = [float(sum(s)) if isinstance(s, Sequence) else float(s) for s in scorer(groups)]
    number = sum(len(g.rollouts) for g in groups)
    if len(scores) != number:
        raise RewardError(f"evaluations: {type(reward).__name__} gave {len(scores)} scores for {number} responses.")
    remaining = iter(scores)
    return [[next(remaining) for _ in g.rollouts] for g in groups]


def _vote(example: Example, text: str) -> Hashable:
    """What a response votes for: its marked answer, its last number where the reference is a number, else its whole text."""
    reference = example.answer or ""
    asks_number = answers.stated_number(answers.marked(reference) or reference) is not None
    answer = answers.marked(text) or (answers.last_number(text) if asks_number else None) or text
    stated = answers.stated_number(answer) if asks_number else None
    return notation.fold(answer) if stated is None else stated


# ------------------------------------------------------------------------------------------ of examples


def accuracy(network: Network, examples: list[Example], budget: int) -> float:
    """Fraction of examples whose largest logit is that of their label; nan where the logits of one are not numbers."""
    logits = _column(network, network.encoder.classify(*_texts(examples)), "class_logits", budget)
    if not logits.softmax(1).isfinite().all():
        return math.nan
    labels = torch.tensor([e.label for e in examples])
    return float((logits.argmax(1) == labels).float().mean())


def nll(network: Network, examples: Sequence[Example], responses: Sequence[Response], budget: int) -> float:
    """Mean of -log p over the tokens of the reference responses, the end token included."""
    tokens = network.encoder.demos([e.prompt for e in examples], responses)
    return -float(_column(network, tokens, "logprobs", budget)[tokens.target].mean())


def _references(evaluation: Evaluation, examples: Sequence[Example]) -> list[Response | None]:
    """A task's demonstration, else the response of the data, else its answer, of every example; None where there is none."""
    task, seed = loading.task_of(evaluation.data), evaluation.seed
    if task is not None:
        return [task.demonstrate(e, random.Random(f"{seed}/{e.id}")) for e in examples]
    responses = [e.meta.get("response", e.answer) for e in examples]
    return [response if isinstance(response, str | tuple) else None for response in responses]


def _column(network: Network, tokens: Tokens, need: str, budget: int) -> torch.Tensor:
    """One output of a network over rows, in float32."""
    return columns(network, DemoRows(tokens=tokens), {need}, budget)[need].float()


def _texts(examples: list[Example]) -> tuple[list[Prompt], list[str | None] | None]:
    pairs = [e.pair for e in examples] if any(e.pair is not None for e in examples) else None
    return [e.prompt for e in examples], pairs

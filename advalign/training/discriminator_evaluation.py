"""A discriminator on held-out rows it was never trained on: does it tell real from other rows, by what, and could a fresh one?

What a run logs about a discriminator is measured on the rows it is about to be trained on. An accuracy of 1/2 there means an equilibrium or
a discriminator that has stopped learning; `DiscriminatorProbe` tells the two apart.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from advalign import data as loading
from advalign.checked import Checked
from advalign.errors import ConfigError, located
from advalign.interfaces import RolloutEngine, Task
from advalign.metrics import utility
from advalign.models import Network
from advalign.models.inference import score_texts
from advalign.models.row_bounds import doubtful
from advalign.names import LearnerSamplerName, ScoredName
from advalign.objectives.discriminate import SATURATED
from advalign.ranges import Count, Seed, Words
from advalign.training.context import RunContext
from advalign.training.discriminator_probe import GENERATED, PERTURBED, REAL, DiscriminatorProbe, Row, probe_metrics
from advalign.types import Example, LabelRows, Prompt, Sampling
from advalign.types.messages import response_text

KINDS = LabelRows.KINDS


@dataclass(frozen=True, kw_only=True)
class DiscriminatorEvaluation(Checked, section="evaluations"):
    """Scores of a discriminator on demonstrations, on the same under a prompt they violate, and on sampled responses to the same prompts.

    `accuracy` (chance is 1/2), `auc`, `pair_accuracy` (a real row above the other rows of its example), each also by kind; `ece` of
    sigmoid(score) over `bins` of equal mass; `margin`; `saturation`; `corr_length`; with a `probe`, what a fresh one would learn.
    """

    data: Any
    """Reference to the demonstrations (see `advalign.data`)."""
    split: Words = "test"
    """Split of a task, or of a data set."""
    number: Count = 64
    """Demonstrations, the same ones every time."""
    learner: ScoredName = "discriminator"
    """What is evaluated: a learner with head `score`."""
    perturb: Task | None = None
    """The task whose `perturb` makes prompts that a demonstration violates; None: no perturbed rows."""
    sampler: LearnerSamplerName | None = None
    """The learner that samples responses; None: no generated rows."""
    samples: Count = 1
    """Responses per prompt."""
    sampling: Sampling = field(default_factory=Sampling)
    """How they are sampled."""
    bins: Count = 10
    """Bins of the calibration error."""
    probe: DiscriminatorProbe | None = None
    """A fresh discriminator to train on the same rows."""
    seed: Seed = 0
    """Of the demonstrations and of the sampling."""

    def __post_init__(self) -> None:
        if self.perturb is None and self.sampler is None:
            raise ConfigError(
                "evaluations: a discriminator is evaluated on real and other rows; give perturb (a task), sampler (a policy), or both."
            )
        if self.probe is not None and (self.sampler is None or self.number < 4):
            raise ConfigError(
                "evaluations: a probe tells real from generated rows of two halves; give a sampler and a number of 4 or more."
            )

    @property
    def metric_names(self) -> frozenset[str]:
        """What it may log."""
        by_kind = ("accuracy", "auc", "pair_accuracy")
        names = {*by_kind, "ece", "margin", "saturation", "corr_length", "corr_length/generated"}
        names |= {f"{name}/{kind}" for name in by_kind for kind in KINDS}
        return frozenset(names | ({"probe/accuracy", "probe/train_accuracy"} if self.probe is not None else set()))


def evaluate_discriminator(
    evaluation: DiscriminatorEvaluation, network: Network, rollout_engine: RolloutEngine, budget: int, context: RunContext
) -> dict[str, float]:
    """{metric: value} of one evaluation."""
    rows = held_out_rows(evaluation, rollout_engine, context)
    scores = torch.tensor(score_texts(network, [row[:3] for row in rows], budget), dtype=torch.float64)
    kinds, examples = (torch.tensor([row[i] for row in rows]) for i in (3, 4))
    ids = network.encoder.responses([response_text(row[1]) for row in rows], [row[2] for row in rows])
    lengths = torch.tensor([max(len(response), 1) for response in ids], dtype=torch.float64)
    logs = discrimination_metrics(scores, kinds, examples, bins=evaluation.bins) | length_correlations(scores, lengths, kinds)
    if not scores.isfinite().all():  # comparisons with nan are numbers
        logs = dict.fromkeys(logs, math.nan)
    if evaluation.probe is not None:
        logs |= probe_metrics(evaluation.probe, rows, evaluation.learner, context, budget=budget, seed=evaluation.seed)
    return logs


def check_data(evaluation: DiscriminatorEvaluation, context: RunContext) -> None:
    """Refuses real rows that cannot be read, or whose prompt leaves no room for a response of the sampler."""
    real = loading.demonstrations(evaluation.data, split=evaluation.split, limit=evaluation.number, seed=evaluation.seed)
    if evaluation.sampler is None:
        return
    encoder = context.encoder(evaluation.sampler)
    for example in doubtful(encoder, real) if encoder.truncation.mode != "left" else ():
        with located(example.described):
            encoder.truncation.rollout(len(encoder.prompt(example.prompt)), 0)


def held_out_rows(evaluation: DiscriminatorEvaluation, rollout_engine: RolloutEngine, context: RunContext) -> list[Row]:
    """Real rows, then perturbed, then generated ones: a function of the configuration and of the sampler alone."""
    real = loading.demonstrations(evaluation.data, split=evaluation.split, limit=evaluation.number, seed=evaluation.seed)
    rows: list[Row] = [(e.prompt, e.meta["response"], True, REAL, i) for i, e in enumerate(real)]
    if evaluation.perturb is not None:
        rows += [(_violated(evaluation.perturb, e, evaluation.seed), e.meta["response"], True, PERTURBED, i) for i, e in enumerate(real)]
    if evaluation.sampler is not None:
        network, version = context.network(evaluation.sampler)
        rollout_engine.sync(network, version)
        generator = torch.Generator().manual_seed(evaluation.seed)
        groups = rollout_engine.generate(network, real, evaluation.samples, evaluation.sampling, generator)
        rows += [(g.example.prompt, r.text, r.finished, GENERATED, i) for i, g in enumerate(groups) for r in g.rollouts]
    return rows


def _violated(task: Task, example: Example, seed: int) -> Prompt:
    """A prompt that the example's response violates."""
    stream = random.Random(f"{seed}/{example.id}/{example.prompt}")
    return task.perturb(example, example.meta["response"], stream).prompt


# ------------------------------------------------------------------------------------------------- of scores alone


def discrimination_metrics(scores: Tensor, kinds: Tensor, examples: Tensor, *, bins: int) -> dict[str, float]:
    """How well scores "B" tell kind 0 (real) from the others.

    Real rows have half of the weight and every other kind an equal part of the other half, so that nothing depends on how many samples were
    taken, and chance is 1/2; a tie is half right. Calibration alone weighs all kinds the same, as a draw of `contrast` does: sigmoid(score)
    is calibrated for that mixture.
    """
    signed = torch.where(kinds == REAL, scores, -scores)
    rows = {k: kinds == k for k in range(len(KINDS)) if bool((kinds == k).any())}
    others = [k for k in rows if k != REAL]

    def balanced(values: Tensor) -> float:
        means = {k: float(values[of_kind].mean()) for k, of_kind in rows.items()}
        return (means[REAL] + sum(means[k] for k in others) / len(others)) / 2

    right = (1 + signed.sign()) / 2
    logs = {"accuracy": balanced(right)} | {f"accuracy/{KINDS[k]}": float(right[of_kind].mean()) for k, of_kind in rows.items()}
    areas = {KINDS[k]: utility.auc(scores[rows[REAL]], scores[rows[k]]) for k in others}
    pairs = {KINDS[k]: _pair_accuracy(scores, kinds, examples, k) for k in others}
    for name, values in (("auc", areas), ("pair_accuracy", pairs)):
        logs |= {name: sum(values.values()) / len(values)} | {f"{name}/{k}": v for k, v in values.items()}
    weights = torch.stack([of_kind.double() / of_kind.sum() for of_kind in rows.values()]).sum(0)
    logs["ece"] = utility.calibration_error(scores.sigmoid(), rows[REAL].double(), weights, bins=bins)
    return logs | {"margin": balanced(signed), "saturation": float((scores.abs() > SATURATED).double().mean())}


def _pair_accuracy(scores: Tensor, kinds: Tensor, examples: Tensor, other: int) -> float:
    """Fraction of (real, other) pairs of one example that the scores order right."""
    real = dict(zip(examples[kinds == REAL].tolist(), scores[kinds == REAL].tolist(), strict=True))
    partners = torch.tensor([real[i] for i in examples[kinds == other].tolist()], dtype=torch.float64)
    return float(((1 + (partners - scores[kinds == other]).sign()) / 2).mean())


def length_correlations(scores: Tensor, lengths: Tensor, kinds: Tensor) -> dict[str, float]:
    """Pearson's r of score and log length, over real and generated rows, and over generated rows alone.

    Among generated rows no difference between the two kinds explains it, and it is what a policy would follow. Left out where either is
    constant.
    """
    logs = {}
    for name, rows in (("corr_length", kinds != PERTURBED), ("corr_length/generated", kinds == GENERATED)):
        pair = torch.stack([scores[rows], lengths[rows].log()])
        if pair.shape[1] > 1 and bool((pair.std(1) > 0).all()):
            logs[name] = float(torch.corrcoef(pair)[0, 1])
    return logs


__all__ = ["DiscriminatorEvaluation", "DiscriminatorProbe"]

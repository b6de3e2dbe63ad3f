"""A discriminator on held-out rows it was never trained on: does it tell real from not, by what, and could a fresh one?

What a run logs about a discriminator is measured on the rows it is about to be trained on. An accuracy of 1/2 there means an
equilibrium or a discriminator that has died; `DiscriminatorProbe` tells the two apart.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from advalign import data as loading
from advalign.engine.rng import rng
from advalign.errors import ConfigError, unknown
from advalign.functional import gan
from advalign.interfaces import Task
from advalign.metrics import utility
from advalign.models import Network, load
from advalign.models.inference import score_texts
from advalign.models.sharing import base_owner, share_base
from advalign.objectives.discriminate import SATURATED
from advalign.types import Example, LabelRows, Sampling

KINDS = LabelRows.KINDS
Row = tuple[str, str, bool, int, int]  # prompt, text, finished, index into KINDS, number of the example


@dataclass(frozen=True, kw_only=True)
class DiscriminatorProbe:
    """A new discriminator of the same description, trained from its start for `steps` steps of `batch_size` rows by binary cross-entropy
    on real and generated rows of every other example, and measured on the rest. There is no default rate: one that
    learns nothing would report 1/2 whatever it is shown; `probe/train_accuracy` says whether it learned.
    """

    learning_rate: float
    steps: int = 60
    batch_size: int = 16

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 2:
            raise ConfigError(f"evaluations: a probe of {self.steps} steps of {self.batch_size} rows; it needs 1 step of 2 rows.")


@dataclass(frozen=True, kw_only=True)
class DiscriminatorEvaluation:
    """Scores of a discriminator on `number` demonstrations of a `split`, on as many under a prompt they violate (`perturb`, a task)
    and on `samples` responses per prompt of the learner `sampler`; all on the same prompts, the same every time.

    `accuracy` (chance is 1/2), `auc`, `pair_accuracy` (a real row above the other rows of its example), each also by kind; `ece` of
    sigmoid(score) over `bins` of equal mass; `margin`; `saturation`; `corr_length`; with a `probe`, what a fresh one would learn.
    """

    data: Any
    split: str = "test"
    number: int = 64
    learner: str = "discriminator"
    perturb: Task | None = None
    sampler: str | None = None
    samples: int = 1
    sampling: Sampling = field(default_factory=Sampling)
    bins: int = 10
    probe: DiscriminatorProbe | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("number", "samples", "bins"):
            if getattr(self, name) < 1:
                raise ConfigError(f"evaluations: {name} is {getattr(self, name)}; it must be at least 1.")
        if self.perturb is None and self.sampler is None:
            raise ConfigError("evaluations: verdicts on real rows alone say nothing; give perturb (a task), sampler (a policy), or both.")
        if self.probe is not None and (self.sampler is None or self.number < 4):
            raise ConfigError(
                "evaluations: a probe tells real from generated rows of two halves; give a sampler and a number of 4 or more."
            )


def check(name: str, evaluation: DiscriminatorEvaluation, learners: Mapping[str, Any]) -> None:
    """Refused before anything is loaded."""
    if evaluation.sampler is not None and evaluation.sampler not in learners:
        raise unknown(f"evaluations.{name}.sampler", "learner", evaluation.sampler, learners)


def run(evaluation: DiscriminatorEvaluation, network: Network, engine: Any, budget: int, context: Any) -> dict[str, float]:
    """Numbers of one evaluation."""
    if network.head != "score":
        raise ConfigError(f"evaluations: verdicts need a scorer, and learner '{evaluation.learner}' is a {network.head}; use head: score.")
    rows = held_out(evaluation, engine, context)
    found = scored(network, rows, budget)
    kind, example = (torch.tensor([row[i] for row in rows]) for i in (3, 4))
    ids = network.encoder.responses([row[1] for row in rows], [row[2] for row in rows])
    lengths = torch.tensor([max(len(response), 1) for response in ids], dtype=torch.float64)
    logs = judged(found, kind, example, bins=evaluation.bins) | correlations(found, lengths, kind)
    if evaluation.probe is not None:
        logs |= probed(evaluation, rows, context, budget)
    return logs


def scored(network: Network, rows: Sequence[Row], budget: int) -> Tensor:
    """One score per row, without dropout and without gradient."""
    found = score_texts(network, [row[:3] for row in rows], budget)
    return torch.tensor(found, dtype=torch.float64)


def held_out(evaluation: DiscriminatorEvaluation, engine: Any, context: Any) -> list[Row]:
    """Real rows, then perturbed, then generated ones: a function of the configuration and of the sampler alone."""
    real = loading.demonstrations(evaluation.data, split=evaluation.split, limit=evaluation.number, seed=evaluation.seed)
    rows = [(e.prompt, e.meta["response"], True, 0, i) for i, e in enumerate(real)]
    if evaluation.perturb is not None:
        rows += [(_violated(evaluation, e), e.meta["response"], True, 1, i) for i, e in enumerate(real)]
    if evaluation.sampler is not None:
        network, version = context.network(evaluation.sampler)
        engine.sync(network, version)
        generator = torch.Generator().manual_seed(evaluation.seed)
        groups = engine.generate(network, real, evaluation.samples, evaluation.sampling, generator)
        rows += [(g.example.prompt, r.text, r.finished, 2, i) for i, g in enumerate(groups) for r in g.rollouts]
    return rows


def _violated(evaluation: DiscriminatorEvaluation, example: Example) -> str:
    assert evaluation.perturb is not None
    stream = random.Random(f"{evaluation.seed}/{example.id}/{example.prompt}")
    return evaluation.perturb.perturb(example, example.meta["response"], stream).prompt


# ------------------------------------------------------------------------------------------------- of scores alone


def judged(found: Tensor, kind: Tensor, example: Tensor, *, bins: int) -> dict[str, float]:
    """How well scores "B" tell kind 0 (real) from the others. Real rows have half of the weight and every other kind an equal
    share of the rest, so that nothing depends on how many samples were taken, and chance is 1/2; a tie is half right.

    Calibration alone weighs all kinds the same, as a draw of `contrast` does: sigmoid(score) is calibrated for that mixture.
    """
    signed = torch.where(kind == 0, found, -found)
    rows = {k: kind == k for k in range(len(KINDS)) if bool((kind == k).any())}
    others = [k for k in rows if k != 0]

    def balanced(values: Tensor) -> float:
        means = {k: float(values[mine].mean()) for k, mine in rows.items()}
        return (means[0] + sum(means[k] for k in others) / len(others)) / 2

    right = (1 + signed.sign()) / 2
    logs = {"accuracy": balanced(right)} | {f"accuracy/{KINDS[k]}": float(right[mine].mean()) for k, mine in rows.items()}
    areas = {KINDS[k]: utility.auc(found[rows[0]], found[rows[k]]) for k in others}
    pairs = {KINDS[k]: _pairs(found, kind, example, k) for k in others}
    for name, values in (("auc", areas), ("pair_accuracy", pairs)):
        logs |= {name: sum(values.values()) / len(values)} | {f"{name}/{k}": v for k, v in values.items()}
    even = torch.stack([mine.double() / mine.sum() for mine in rows.values()]).sum(0)
    logs["ece"] = utility.calibration_error(found.sigmoid(), rows[0].double(), even, bins=bins)
    return logs | {"margin": balanced(signed), "saturation": float((found.abs() > SATURATED).double().mean())}


def _pairs(found: Tensor, kind: Tensor, example: Tensor, other: int) -> float:
    """Share of (real, other) pairs of one example that the scores order right."""
    real = dict(zip(example[kind == 0].tolist(), found[kind == 0].tolist(), strict=True))
    mine = torch.tensor([real[i] for i in example[kind == other].tolist()], dtype=torch.float64)
    return float(((1 + (mine - found[kind == other]).sign()) / 2).mean())


def correlations(found: Tensor, lengths: Tensor, kind: Tensor) -> dict[str, float]:
    """Pearson's r of score and log length, over real and generated rows, and over generated ones alone: there, no difference
    between the two kinds explains it, and it is what a policy would follow. Left out where either is constant."""
    logs = {}
    for name, rows in (("corr_length", kind != 1), ("corr_length/generated", kind == 2)):
        pair = torch.stack([found[rows], lengths[rows].log()])
        if pair.shape[1] > 1 and bool((pair.std(1) > 0).all()):
            logs[name] = float(torch.corrcoef(pair)[0, 1])
    return logs


# -------------------------------------------------------------------------------------------------- a fresh one


def probed(evaluation: DiscriminatorEvaluation, rows: Sequence[Row], context: Any, budget: int) -> dict[str, float]:
    """Accuracy of a discriminator that has seen half of the examples, on the other half (and on its own)."""
    probe = evaluation.probe
    assert probe is not None
    halves = [[row for row in rows if row[3] != 1 and row[4] % 2 == half] for half in (0, 1)]
    with torch.random.fork_rng():
        torch.manual_seed(evaluation.seed)
        network = fresh(context, evaluation.learner, evaluation.seed)
        train(network, halves[0], probe, evaluation.seed)
    logs = {}
    for name, half in (("probe/accuracy", halves[1]), ("probe/train_accuracy", halves[0])):
        found, kind = scored(network, half, budget), torch.tensor([row[3] for row in half])
        right = [((1 + (found[kind == k] * sign).sign()) / 2).mean() for k, sign in ((0, 1), (2, -1))]
        logs[name] = float(sum(right)) / 2
    return logs


def fresh(context: Any, name: str, seed: int) -> Network:
    """The learner's network as it was described, before any training."""
    runtime = context.learner(name)
    spec, encoder = runtime.config, runtime.network.encoder
    if lender := base_owner(spec):
        return share_base(context.learner(lender).network, spec, f"learners.{name}", seed).to(runtime.network.device)
    scratch = isinstance(spec.tokenizer, Mapping)
    network = load(
        spec.model,
        head=spec.head,
        tokenizer=spec.tokenizer,
        texts=loading.texts(spec.tokenizer["data"]) if scratch else (),
        max_length=encoder.max_length,
        dtype=spec.dtype,
        options={**spec.options, "seed": seed},
    )
    return network.to(runtime.network.device)


def train(network: Network, rows: Sequence[Row], probe: DiscriminatorProbe, seed: int) -> None:
    """`probe.steps` updates on as many real as generated rows, drawn with replacement."""
    by_kind = [[row for row in rows if row[3] == kind] for kind in (0, 2)]
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=probe.learning_rate, weight_decay=0.0)
    labels = torch.tensor([1, 0], device=network.device).repeat(probe.batch_size // 2)
    network.train()
    for step in range(probe.steps):
        stream = rng(seed, "probe", step)
        batch = [stream.choice(of_kind) for _ in range(probe.batch_size // 2) for of_kind in by_kind]
        tokens = network.encoder.scored_pairs([row[0] for row in batch], [row[1] for row in batch], [row[2] for row in batch])
        found = network(tokens.to(network.device), {"scores"}).scores
        assert found is not None
        optimizer.zero_grad(set_to_none=True)
        gan.bce(found, labels).mean().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    network.eval()


__all__ = ["DiscriminatorProbe", "DiscriminatorEvaluation"]

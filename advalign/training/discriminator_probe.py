"""Could a fresh discriminator still tell real from generated rows?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch

from advalign import data as loading
from advalign.checked import Checked
from advalign.engine.rng import rng
from advalign.functional import gan
from advalign.models import Network, load
from advalign.models.inference import score_texts
from advalign.models.sharing import base_owner, share_base
from advalign.ranges import Count, Positive, whole
from advalign.training.context import RunContext
from advalign.types import Prompt, Response

Row = tuple[Prompt, Response, bool, int, int]
"""(prompt, text, finished, index into `LabelRows.KINDS`, number of the example)"""

REAL, PERTURBED, GENERATED = 0, 1, 2


@dataclass(frozen=True, kw_only=True)
class DiscriminatorProbe(Checked, section="evaluations.probe"):
    """A new discriminator of the same description, trained from its start by binary cross-entropy on real and generated rows of every other
    example, and measured on the other half.

    There is no default rate: a probe that learns nothing would report 1/2 whatever it is shown; `probe/train_accuracy` says whether it
    learned.
    """

    learning_rate: Positive
    """Rate of AdamW."""
    steps: Count = 60
    """Updates."""
    batch_size: Annotated[int, whole(2)] = 16
    """Rows per update, half of them real."""


def probe_metrics(
    probe: DiscriminatorProbe, rows: Sequence[Row], learner: str, context: RunContext, *, budget: int, seed: int
) -> dict[str, float]:
    """Accuracy of a fresh discriminator, built as `learner` was, on the half of the examples it has not seen, and on its own half."""
    halves = [[row for row in rows if row[3] != PERTURBED and row[4] % 2 == half] for half in (0, 1)]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = untrained_network(context, learner, seed)
        train_probe(network, halves[0], probe, seed)
    logs = {}
    for name, half in (("probe/accuracy", halves[1]), ("probe/train_accuracy", halves[0])):
        scores = torch.tensor(score_texts(network, [row[:3] for row in half], budget), dtype=torch.float64)
        kinds = torch.tensor([row[3] for row in half])
        right = [((1 + (scores[kinds == k] * sign).sign()) / 2).mean() for k, sign in ((REAL, 1), (GENERATED, -1))]
        logs[name] = float(sum(right)) / 2 if scores.isfinite().all() else math.nan  # the sign of nan is 0
    return logs


def untrained_network(context: RunContext, name: str, seed: int) -> Network:
    """The learner's network as it was described, before any training."""
    runtime = context.learner(name)
    spec, encoder = runtime.config, runtime.network.encoder
    if owner := base_owner(spec):
        return share_base(context.learner(owner).network, spec, f"learners.{name}", seed).to(runtime.network.device)
    from_scratch = isinstance(spec.tokenizer, Mapping)
    network = load(
        spec.model,
        head=spec.head,
        tokenizer=spec.tokenizer,
        texts=loading.texts(spec.tokenizer["data"]) if from_scratch else (),
        max_length=encoder.max_length,
        dtype=spec.dtype,
        options={**spec.options, "seed": seed},
    )
    return network.to(runtime.network.device)


def train_probe(network: Network, rows: Sequence[Row], probe: DiscriminatorProbe, seed: int) -> None:
    """`probe.steps` updates on as many real as generated rows, drawn with replacement."""
    by_kind = [[row for row in rows if row[3] == kind] for kind in (REAL, GENERATED)]
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=probe.learning_rate, weight_decay=0.0)
    labels = torch.tensor([1, 0], device=network.device).repeat(probe.batch_size // 2)
    network.train()
    for step in range(probe.steps):
        stream = rng(seed, "probe", step)
        batch = [stream.choice(of_kind) for _ in range(probe.batch_size // 2) for of_kind in by_kind]
        tokens = network.encoder.scored_pairs([row[0] for row in batch], [row[1] for row in batch], [row[2] for row in batch])
        scores = network(tokens.to(network.device), {"scores"}).scores
        assert scores is not None
        optimizer.zero_grad(set_to_none=True)
        gan.bce(scores, labels).mean().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    network.eval()

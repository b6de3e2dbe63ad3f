"""What is measured now and then during a run, on held-out examples: never used for a gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from advalign import data as loading
from advalign.engine import micro as mb
from advalign.evaluation import utility
from advalign.models import Network
from advalign.rewards.exact_answer import ExactAnswer
from advalign.types import DemoRows, Example, Sampling


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """`number` held-out examples for a learner. A policy answers each `samples` times: `accuracy` is the mean verified
    score, `pass@k`, `unique` the fraction of distinct answers per prompt, `entropy` in nats per token, `nll` that of the
    reference response where there is one. A classifier: accuracy."""

    data: Any
    split: str = "test"
    number: int = 64
    samples: int = 1
    sampling: Sampling = field(default_factory=Sampling)
    learner: str = "policy"
    columns: Mapping[str, str] | None = None
    seed: int = 0


def run(evaluation: Evaluation, network: Network, engine: Any, budget: int) -> dict[str, float]:
    """Numbers of one evaluation; the same examples and the same sampling stream every time."""
    examples = loading.examples(
        evaluation.data, columns=evaluation.columns, split=evaluation.split, limit=evaluation.number, seed=evaluation.seed
    )
    if network.head == "classifier":
        return {"accuracy": accuracy(network, examples, budget)}
    generator = torch.Generator().manual_seed(evaluation.seed)
    groups = engine.generate(network, examples, evaluation.samples, evaluation.sampling, generator)
    scores = list(ExactAnswer().start(None)(groups))  # type: ignore[arg-type]
    right = [[scores.pop(0) for _ in g.rollouts] for g in groups]
    logs = {
        "accuracy": sum(map(sum, right)) / sum(map(len, right)),
        "unique": utility.unique_fraction([[r.text for r in g.rollouts] for g in groups]),
        "entropy": entropy(network, groups, evaluation.sampling.temperature, budget),
    }
    if evaluation.samples > 1:
        k = evaluation.samples
        logs[f"pass@{k}"] = utility.pass_at_k([sum(s >= 1 for s in row) for row in right], k, k)
    return logs


@torch.no_grad()
def accuracy(network: Network, examples: list[Example], budget: int) -> float:
    logits = _over(network, network.encoder.classify(*_texts(examples)), "class_logits", budget)
    labels = torch.tensor([e.label for e in examples])
    return float((logits.argmax(1) == labels).float().mean())


@torch.no_grad()
def entropy(network: Network, groups: Any, temperature: float, budget: int) -> float:
    """Mean entropy of the next-token distribution along the sampled responses."""
    tokens = network.encoder.rollouts(groups)
    values = _over(network, tokens, "entropy", budget)
    return float(values[tokens.target].mean())


def _over(network: Network, tokens: Any, need: str, budget: int) -> torch.Tensor:
    mode = network.training
    network.eval()
    found: dict[int, torch.Tensor] = {}
    width = tokens.ids.shape[1]
    try:
        for micro in mb.pack({"rows": DemoRows(tokens=tokens)}, budget):
            rows = micro["rows"]
            here = tokens.index(rows).fit(int(tokens.lengths[rows].max())).to(network.device)
            out = getattr(network(here, {need}), need).float().cpu()
            out = mb.fit(out, width) if need != "class_logits" else out
            found |= dict(zip(rows.tolist(), out, strict=True))
    finally:
        network.train(mode)
    return torch.stack([found[i] for i in range(len(found))])


def _texts(examples: list[Example]) -> tuple[list[str], list[str] | None]:
    pairs = [e.pair or "" for e in examples] if examples[0].pair is not None else None
    return [e.prompt for e in examples], pairs

"""Columns that belong to a draw, one no-grad pass each: old and reference log-probabilities, old entropy, values; then
the advantages. They stay fixed while the draw is used for several updates."""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from advalign.engine import micro as mb
from advalign.errors import ConfigError
from advalign.models import Network
from advalign.types import PairRows, RolloutRows, fit


@torch.no_grad()
def columns(network: Network, rows: Any, needs: Set[str], budget: int) -> dict[str, Tensor]:
    """{need: "B T"} of one network over the rows of a draw, on the CPU, without dropout."""
    mode = network.training
    network.eval()
    width = rows.tokens.ids.shape[1]
    found = {need: torch.zeros(rows.tokens.ids.shape, dtype=network.dtype) for need in needs}
    try:
        for micro in mb.pack({"rows": rows}, budget):
            numbers = micro["rows"]
            here = mb.cut(rows, numbers, int(rows.tokens.lengths[numbers].max())).to(network.device)
            heat = mb.temperatures([here])
            outputs = network(here.tokens, needs, None, None if heat is None else heat.to(network.device))
            for need in needs:
                found[need][numbers] = fit(getattr(outputs, need).to("cpu", network.dtype), width)
    finally:
        network.train(mode)
    return found


def annotate_rollouts(
    rows: RolloutRows,
    needed: Set[str],
    *,
    policy: Network,
    reference: Network | None,
    critic: Network | None,
    advantage: Any,
    all_reduce: Callable[[Tensor], Tensor],
    budget: int,
) -> RolloutRows:
    """The rows of a draw with every annotation some objective named, and their advantages."""
    new: dict[str, Any] = {}
    own = {need for need, name in (("logprobs", "old_logprobs"), ("entropy", "old_entropy")) if name in needed}
    if own:
        now = columns(policy, rows, own, budget)
        new |= {f"old_{need}": column for need, column in now.items()}
    if "ref_logprobs" in needed:
        new["ref_logprobs"] = _reference(rows, reference, budget)
    if advantage.needs_values or "values" in needed:
        if critic is None:
            raise ConfigError(
                f"sources: advantage '{type(advantage).__name__}' needs values, and no learner has head: value; add one (a critic)."
            )
        new["values"] = columns(critic, rows, {"values"}, budget)["values"]
    rows = replace(rows, **new)
    advantages, returns = advantage(rows, None, all_reduce)
    return replace(rows, advantages=advantages, returns=returns)


def annotate_pairs(rows: PairRows, needed: Set[str], *, reference: Network | None, budget: int) -> PairRows:
    if "ref_logprobs" not in needed:
        return rows
    return replace(rows, ref_logprobs=_reference(rows, reference, budget))


def _reference(rows: Any, reference: Network | None, budget: int) -> Tensor:
    if reference is None:
        raise ConfigError("frozen: an objective compares with the reference; add frozen: {reference: {of: policy}}.")
    return columns(reference, rows, {"logprobs"}, budget)["logprobs"]

"""Batched inference without gradient and without dropout: the one loop behind annotations, scores, evaluations and attack targets.

Which rows share a batch is an argument, because the layout of a batch moves the last bits of its results.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set

import torch
from jaxtyping import Float, Int
from torch import Tensor

from advalign.models.forward import Network
from advalign.models.perturb import evaluation_mode
from advalign.models.sharding import reshard
from advalign.types import Prompt, Response, Tokens, fit

TOKEN_COLUMNS = frozenset({"logprobs", "entropy", "values", "token_scores"})
"""Fields of `Outputs` of shape "B T"."""

ReadBatch = Callable[[Tokens, Int[Tensor, "N"]], Mapping[str, Tensor]]
"""(rows of a batch, cropped to the longest, and their numbers) -> {name: one entry per row of the batch}."""


def batched_forward(
    network: Network,
    tokens: Tokens,
    needs: Set[str],
    *,
    batches: Sequence[Int[Tensor, "_"]],
    idle: Sequence[Int[Tensor, "_"]] = (),
    temperatures: Float[Tensor, "B"] | None = None,
) -> dict[str, Tensor]:
    """{need: output of every row, in row order}, on the CPU and in at least float32; "B T" columns are as wide as `tokens`.

    `batches` are the numbers of the rows that run together; rows in no batch are zero. `idle` batches run too and are dropped: all
    ranks of a sharded network must run equally many forwards.
    """
    width = tokens.ids.shape[1]
    # Half precision would round log p by up to 0.4 per cent, and every ratio with it.
    dtype = torch.promote_types(network.dtype, torch.float32)

    def read(part: Tokens, rows: Int[Tensor, "N"]) -> dict[str, Tensor]:
        outputs = network(part.to(network.device), needs, None, None if temperatures is None else temperatures[rows].to(network.device))
        columns = {need: getattr(outputs, need).to("cpu", dtype) for need in needs}
        return {need: fit(column, width) if need in TOKEN_COLUMNS else column for need, column in columns.items()}

    try:
        with evaluation_mode(network):
            return map_batches(read, tokens, batches, idle)
    finally:
        reshard(network)


@torch.no_grad()
def map_batches(
    read: ReadBatch, tokens: Tokens, batches: Sequence[Int[Tensor, "_"]], idle: Sequence[Int[Tensor, "_"]] = ()
) -> dict[str, Tensor]:
    """What `read` gives for every row, in row order, batch by batch. Results of `idle` batches are dropped."""
    results: dict[str, Tensor] = {}
    for number, rows in enumerate([*batches, *idle]):
        for name, values in read(tokens.index(rows).fit(int(tokens.lengths[rows].max())), rows).items():
            if name not in results:
                results[name] = values.new_zeros(len(tokens.ids), *values.shape[1:])
            if number < len(batches):
                results[name][rows.to(values.device)] = values
    return results


def length_sorted_batches(lengths: Int[Tensor, "B"], token_budget: int, *, stable: bool = True) -> list[Int[Tensor, "_"]]:
    """Row numbers, longest rows first, in batches of at most `token_budget` padded tokens (one row, if that is longer). `stable`: rows
    of equal length keep their order; else torch decides."""
    order = lengths.argsort(descending=True, stable=stable)
    batches, start = [], 0
    while start < len(order):
        batches.append(order[start : start + max(token_budget // max(int(lengths[order[start]]), 1), 1)])
        start += len(batches[-1])
    return batches


def batches_in_order(number: int, size: int) -> list[Int[Tensor, "_"]]:
    """Row numbers in order, `size` at a time."""
    return list(torch.arange(number).split(size)) if number else []


def score_texts(network: Network, rows: Sequence[tuple[Prompt, Response, bool]], token_budget: int) -> list[float]:
    """The scores of (prompt, text, whether it is finished) under a network with a scalar head; equal rows are scored once."""
    distinct = list(dict.fromkeys(rows))
    tokens = network.encoder.scored_pairs(*(list(column) for column in zip(*distinct, strict=True)))
    batches = length_sorted_batches(tokens.lengths, token_budget, stable=False)
    scores = batched_forward(network, tokens, {"scores"}, batches=batches)["scores"].double().tolist()
    score_of = dict(zip(distinct, scores, strict=True))
    return [score_of[row] for row in rows]


__all__ = ["batched_forward", "batches_in_order", "evaluation_mode", "length_sorted_batches", "map_batches", "score_texts"]

"""Deltas that are kept by row between updates, for warm starts. Rows are recognised by their tokens."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from advalign.functional import deltas
from advalign.interfaces import Memory, PerturbationContext
from advalign.types import ThreatModel


def row_hashes(context: PerturbationContext, share: str) -> list[str]:
    """Names of rows that last: a hash of the token ids (of a group: of the tokens that may be perturbed, which all its rows have)."""
    if context.tokens is None:
        return []
    visible = context.allowed if share == "group" else context.tokens.mask
    rows = zip(context.tokens.ids.cpu().to(torch.int64), visible.cpu(), strict=True)
    return [hashlib.blake2b(ids[mask].numpy().tobytes(), digest_size=16).hexdigest() for ids, mask in rows]


def record(context: PerturbationContext, share: str, delta: Mapping[str, Tensor]) -> None:
    """Notes the deltas of an update. They are read only after `commit`, so the order of micro-batches does not matter."""
    pending = context.memory.setdefault("pending", {})
    for n, row in enumerate(row_hashes(context, share)):
        if context.allowed[n].any():
            pending[f"{row} {context.names[n]}"] = {site: x[n][context.allowed[n]].cpu() for site, x in delta.items()}


def commit(memory: Memory, capacity: int) -> None:
    """The deltas noted in this update replace the stored ones of the same rows; beyond `capacity` the longest unseen rows are dropped."""
    stored, pending = memory.setdefault("warm", {}), memory.pop("pending", {})
    latest = {key.split(" ", 1)[0]: key for key in sorted(pending, reverse=True)}  # of equal rows, the first by name
    for row, key in latest.items():
        stored.pop(row, None)
        stored[row] = pending[key]
    while len(stored) > capacity:
        del stored[next(iter(stored))]


def restore(context: PerturbationContext, threat: ThreatModel, fresh: Mapping[str, Tensor]) -> deltas.Deltas:
    """The deltas these rows had when they were last seen, projected onto the present ball; `fresh` for rows without one that fits."""
    stored, delta = context.memory.get("warm", {}), {site: x.clone() for site, x in fresh.items()}
    for n, row in enumerate(row_hashes(context, threat.share)):
        allowed = context.allowed[n]
        for site, old in stored.get(row, {}).items():
            if site in delta and old.shape == (int(allowed.sum()), delta[site].shape[2]):
                delta[site][n, allowed] = old.to(delta[site])
    return deltas.project(context, threat, delta)

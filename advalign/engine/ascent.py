"""The inner loop of training, and the `PerturbationContext` of an adversary: allowed positions, radius, random streams, memory.

An adversary is asked for edits and told losses and gradients; the caller runs the forwards. Parameters' .grad is never touched.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TypeVar

import torch
from jaxtyping import Bool
from torch import Tensor

from advalign.engine.finite import finite_edits, finite_feedback
from advalign.engine.rng import generator
from advalign.errors import ConfigError, unknown
from advalign.interfaces import Adversary, PerturbationContext, maximise
from advalign.interfaces.adversary import Memory
from advalign.models import Network, perturb
from advalign.types import Edit, ThreatModel, Tokens
from advalign.types.edits import PLACES
from advalign.types.messages import ROLES

Result = TypeVar("Result")
EditedForward = Callable[[Mapping[str, Edit]], Result]
"""A forward under edits {site: edit}."""


def ascend(
    adversary: Adversary,
    *,
    context: PerturbationContext,
    delta_index: Tensor,
    losses: Callable[[Mapping[str, Edit]], tuple[Tensor, Tensor]],
) -> tuple[dict[str, Edit], Tensor | None, dict[str, int]]:
    """The inner loop of training (`maximise`): gradients with respect to the deltas alone; then the final edits, by row.

    `delta_index[b]` is the delta of row b. `losses(edits)` gives the sum to ascend and its part per row. A step costs two forwards, not
    three, because no gradient of a parameter is computed. Also returns the losses per row at the first edits, and how often a delta had a
    loss or gradient that is not finite, or was not finite itself, as {metric: number}.
    """
    first: Tensor | None = None
    common = adversary.threat.share == "group"

    def evaluate(requested: Mapping[str, Edit]) -> tuple[Tensor, dict[str, Tensor]]:
        nonlocal first
        requested, bad_deltas = finite_edits(requested)
        num_bad_deltas.append(bad_deltas)
        leaves, edits = split_edits(requested, delta_index, common=common)
        total, per_row = losses(edits)
        gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        dense = [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(gradients, leaves.values(), strict=True)]
        first = per_row if first is None else first
        by_delta = sum_by_delta(per_row, delta_index, context)
        by_delta, finite, bad = finite_feedback(by_delta, dict(zip(leaves, dense, strict=True)), context.allowed)
        num_bad.append(bad)
        return by_delta, finite

    num_bad: list[Tensor] = []
    num_bad_deltas: list[Tensor] = []
    final = maximise(adversary, context, evaluate)
    assert final is not None
    final, bad_deltas = finite_edits(final)
    counts = {"num_nonfinite_gradients": sum(map(int, num_bad)), "num_nonfinite_deltas": sum(map(int, [*num_bad_deltas, bad_deltas]))}
    return split_edits(final, delta_index, common=common, gradients=False)[1], first, counts


def split_edits(
    requested: Mapping[str, Edit], delta_index: Tensor, *, common: bool, gradients: bool = True
) -> tuple[dict[str, Tensor], dict[str, Edit]]:
    """({site: deltas, to differentiate}, {site: edit by row}) of what an adversary asked for. Replaced tokens are never shared. `common`:
    rows of a group have one delta."""
    leaves = {site: edit.add.detach().clone().requires_grad_(gradients) for site, edit in requested.items() if edit.add is not None}
    edits = {}
    for site, edit in requested.items():
        where = None if edit.where is None else edit.where[delta_index]
        add = leaves[site][delta_index] if site in leaves else None
        edits[site] = replace(edit, add=add, where=where, common=common and edit.tokens is None)
    return leaves, edits


def sum_by_delta(per_row: Tensor, delta_index: Tensor, context: PerturbationContext) -> Tensor:
    """Losses "B" of rows summed per delta, "N"."""
    return per_row.new_zeros(context.allowed.shape[0]).index_add(0, delta_index, per_row.detach())


def reuse_prefix(network: Network, adversary: Adversary, forward: EditedForward[Result]) -> EditedForward[Result]:
    """`forward` for the passes of an inner loop: where all edits are in blocks and nothing is random, the blocks below the first edited one
    run once."""
    if adversary.dropout != "off" or adversary.steps < 2 or any(site == "embedding" for site in adversary.threat.sites):
        return forward
    prefix = perturb.SharedPrefix(network.backbone, adversary.threat.sites)

    def above_prefix(edits: Mapping[str, Edit]) -> Result:
        with prefix.reused():
            return forward(edits)

    return above_prefix


# ---------------------------------------------------------------------------------------------- what it may use


def perturbation_context(
    network: Network,
    adversary: Adversary,
    view: str,
    tokens: Tokens,
    sources: Sequence[tuple[str, Tokens]],
    key: Sequence[object],
    memory: Memory | None = None,
) -> PerturbationContext:
    """The context for the joined rows `tokens` of `sources`. Random streams are keyed by (update, view, source, row or group)."""
    threat = adversary.threat
    names = [
        (source, number)
        for source, rows in sources
        for number in torch.where(rows.key < 0, rows.key, rows.group if threat.share == "group" else rows.key).tolist()
    ]
    allowed = allowed_positions(threat.where, tokens, () if threat.special else network.encoder.special_ids)
    if threat.share == "group":
        members = {name: [b for b, other in enumerate(names) if other == name] for name in dict.fromkeys(names)}
        allowed = torch.stack([_shared_positions(view, tokens, allowed, rows) for rows in members.values()])
        names, tokens = list(members), tokens.index(torch.tensor([rows[0] for rows in members.values()], device=allowed.device))
    if adversary.probability < 1:
        coins = [torch.rand((), generator=generator(*key, view, *name, "attacked")) < adversary.probability for name in names]
        allowed = allowed & torch.stack(coins)[:, None].to(allowed.device)
    unit = network.mean_embedding_norm() if threat.relative_to == "mean_embedding_norm" else 1.0
    return PerturbationContext(
        shapes={site: (tokens.ids.shape[1], network.width(site)) for site in threat.sites},
        allowed=allowed,
        radius=threat.radius * unit,
        dtype=torch.float64 if network.dtype == torch.float64 else torch.float32,
        generators=[generator(*key, view, *name) for name in names],
        unit=unit,
        tokens=tokens,
        names=tuple(f"{source}/{number}" for source, number in names),
        key=tuple(key),
        memory={} if memory is None else memory,
        network=network,
    )


def _shared_positions(view: str, tokens: Tokens, allowed: Bool[Tensor, "B T"], rows: Sequence[int]) -> Bool[Tensor, "T"]:
    """Where one delta of all `rows` is allowed: in the tokens that they have in common at the beginning, where each allows it."""
    if len(rows) == 1:
        return allowed[rows[0]]
    ids, mask = tokens.ids[rows], tokens.mask[rows].all(0)
    shared = allowed[rows].all(0) & (mask & (ids == ids[0]).all(0)).cumprod(0).bool()
    if allowed[rows].any() and not shared.any():
        raise ConfigError(
            f"adversaries.{view}.share: 'group' given, and the {len(rows)} rows of a group begin with no token in common that `where` "
            "allows; use share: row, or where: prompt on a source whose groups have one prompt."
        )
    return shared


def allowed_positions(where: str, tokens: Tokens, excluded_ids: Collection[int] = ()) -> Bool[Tensor, "B T"]:
    """Positions a threat model allows, without excluded ids: a region of `types.edits.PLACES`."""
    allowed = positions(where, tokens)
    if not excluded_ids:
        return allowed
    return allowed & ~torch.isin(tokens.ids, torch.tensor(sorted(excluded_ids), device=tokens.ids.device))


def positions(where: str, tokens: Tokens) -> Bool[Tensor, "B T"]:
    """The tokens of a region: real tokens that are not targets ("prompt"), targets ("response"), "all", or the contents of the messages
    of a role, without what the chat template writes around them."""
    if where not in PLACES:
        raise unknown("adversary.where", "region", where, PLACES)
    if where in ("prompt", "response", "all"):
        return {"prompt": tokens.mask & ~tokens.target, "response": tokens.mask & tokens.target, "all": tokens.mask}[where]
    if tokens.role is None or tokens.turn is None:
        raise ConfigError(
            f"adversary.where: '{where}' given, and these rows do not say who wrote their tokens; use prompt, response or all."
        )
    role = ROLES.index(where.removeprefix("last_"))
    matching = tokens.mask & (tokens.role == role)
    if where.startswith("last_"):
        last = tokens.turn.masked_fill(~matching, -1).amax(1, keepdim=True)
        matching = matching & (tokens.turn == last)
    return matching


def delta_indices(threat: ThreatModel, tokens: Tokens) -> Tensor:
    """The number of each row's delta "B", in order of first appearance."""
    if threat.share == "row":
        return torch.arange(tokens.ids.shape[0], device=tokens.ids.device)
    order = {g: i for i, g in enumerate(dict.fromkeys(tokens.group.tolist()))}
    return torch.tensor([order[g] for g in tokens.group.tolist()], device=tokens.ids.device)


# ----------------------------------------------------------------------------------------------------- dropout


@contextmanager
def dropout_policy(network: Network, policy: str) -> Iterator[bool]:
    """Dropout in ascent and final pass. "off": none. "sync": the same masks in all of them (yields True). "fresh": new ones in every pass.

    The global random state afterwards is as if the final pass alone had run ("sync", "fresh"), or untouched ("off")."""
    with perturb.without_dropout(network) if policy == "off" else nullcontext():
        yield policy == "sync"


def with_same_masks(forward: EditedForward[Result], same: bool) -> EditedForward[Result]:
    """`forward` that starts every call from the current random state, so dropout draws the same masks for the same row layout."""
    if not same:
        return forward

    def replayed(edits: Mapping[str, Edit]) -> Result:
        with perturb.same_random_state():
            return forward(edits)

    return replayed

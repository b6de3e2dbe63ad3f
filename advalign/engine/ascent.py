"""The inner loop, and what an adversary stands on: which positions it may touch, its radius, its random streams, its memory.

An adversary is asked for edits and told losses and gradients; the forward is the caller's. Nothing here touches parameters' .grad.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from advalign.engine.rng import generator
from advalign.errors import unknown
from advalign.interfaces import Adversary, PerturbationContext, maximise
from advalign.models import perturb
from advalign.types import Edit, ThreatModel, Tokens


def ascend(
    adversary: Adversary,
    *,
    context: PerturbationContext,
    share: Tensor,
    losses: Callable[[Mapping[str, Edit]], tuple[Tensor, Tensor]],
) -> tuple[dict[str, Edit], Tensor | None]:
    """The inner loop of training (`maximise`): gradients with respect to the deltas alone; then the final edits, per row.

    `share[b]` is the delta of row b. `losses(edits)` gives the sum to ascend and its part per row. Parameters' .grad is
    untouched: a step costs two forwards, not three. Also returns the losses per row at the first edits.
    """
    first: Tensor | None = None

    def evaluate(requested: Mapping[str, Edit]) -> tuple[Tensor, dict[str, Tensor]]:
        nonlocal first
        leaves, edits = leaves_of(requested, share)
        total, per_row = losses(edits)
        gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        dense = [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(gradients, leaves.values(), strict=True)]
        first = per_row if first is None else first
        return by_delta(per_row, share, context), dict(zip(leaves, dense, strict=True))

    final = maximise(adversary, context, evaluate)
    assert final is not None
    return leaves_of(final, share, gradients=False)[1], first


def leaves_of(asked: Mapping[str, Edit], share: Tensor, gradients: bool = True) -> tuple[dict[str, Tensor], dict[str, Edit]]:
    """What is differentiated, one per delta, and the edits of every row. Replaced tokens are never shared."""
    leaves = {site: edit.add.detach().clone().requires_grad_(gradients) for site, edit in asked.items() if edit.add is not None}
    edits = {}
    for site, edit in asked.items():
        where = None if edit.where is None else edit.where[share]
        edits[site] = replace(edit, add=leaves[site][share] if site in leaves else None, where=where)
    return leaves, edits


def by_delta(per_row: Tensor, share: Tensor, context: PerturbationContext) -> Tensor:
    return per_row.new_zeros(context.allowed.shape[0]).index_add(0, share, per_row.detach())


def above_prefix(network: Any, adversary: Adversary, forward: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`forward` for the passes of an inner loop: where all edits are in blocks and nothing is random, the blocks below the first
    one run once."""
    if adversary.dropout != "off" or adversary.steps < 2 or any(site == "embedding" for site in adversary.threat.sites):
        return forward
    prefix = perturb.SharedPrefix(getattr(network, "module", network).backbone, adversary.threat.sites)

    def above(edits: Mapping[str, Edit]) -> Any:
        with prefix.reused():
            return forward(edits)

    return above


def perturbation_context(
    network: Any,
    adversary: Adversary,
    view: str,
    tokens: Tokens,
    sources: Sequence[tuple[str, Tokens]],
    key: Sequence[object],
    memory: dict[str, Any] | None = None,
) -> PerturbationContext:
    """What an adversary stands on for these rows. Random streams: (update, adversary, source, row or group)."""
    threat = adversary.threat
    plain = getattr(network, "module", network)
    numbers = ((s, t.key, t.group if threat.share == "group" else t.key) for s, t in sources)
    names = [(s, number) for s, key, own in numbers for number in torch.where(key < 0, key, own).tolist()]
    allowed = region(threat.where, tokens, () if threat.special else plain.encoder.special_ids)
    if threat.share == "group":
        first = [names.index(name) for name in dict.fromkeys(names)]
        names, allowed, tokens = list(dict.fromkeys(names)), allowed[first], tokens.index(torch.tensor(first, device=allowed.device))
    if adversary.probability < 1:
        coins = [torch.rand((), generator=generator(*key, view, *name, "attacked")) < adversary.probability for name in names]
        allowed = allowed & torch.stack(coins)[:, None].to(allowed.device)
    scale = plain.mean_embedding_norm() if threat.relative_to == "mean_embedding_norm" else 1.0
    return PerturbationContext(
        shapes={site: (tokens.ids.shape[1], plain.width(site)) for site in threat.sites},
        allowed=allowed,
        radius=threat.radius * scale,
        dtype=torch.float64 if plain.dtype == torch.float64 else torch.float32,
        generators=[generator(*key, view, *name) for name in names],
        unit=scale,
        tokens=tokens,
        names=tuple(f"{source}/{number}" for source, number in names),
        key=tuple(key),
        memory={} if memory is None else memory,
        network=plain,
    )


def region(where: str, tokens: Tokens, never: Collection[int] = ()) -> Bool[Tensor, "B T"]:
    """Positions a threat model allows: real tokens that are no target, targets, or both; without the ids in `never`."""
    known = {"prompt": tokens.mask & ~tokens.target, "response": tokens.mask & tokens.target, "all": tokens.mask}
    if where not in known:
        raise unknown("adversary.where", "region", where, known)
    if not never:
        return known[where]
    return known[where] & ~torch.isin(tokens.ids, torch.tensor(sorted(never), device=tokens.ids.device))


def sharing(threat: ThreatModel, tokens: Tokens) -> Tensor:
    """The number of each row's delta, in order of first appearance."""
    if threat.share == "row":
        return torch.arange(tokens.ids.shape[0], device=tokens.ids.device)
    order = {g: i for i, g in enumerate(dict.fromkeys(tokens.group.tolist()))}
    return torch.tensor([order[g] for g in tokens.group.tolist()], device=tokens.ids.device)


@contextmanager
def dropout_policy(network: Any, policy: str) -> Iterator[bool]:
    """ "off": none in ascent and final pass. "sync": the same masks in all of them (yields True). "fresh": new ones in every
    pass. The global random state afterwards is as if the final pass alone had run ("sync", "fresh"), or untouched ("off")."""
    if policy not in ("off", "sync", "fresh"):
        raise unknown("adversary.dropout", "dropout policy", policy, ("off", "sync", "fresh"))
    with perturb.without_dropout(network) if policy == "off" else nullcontext():
        yield policy == "sync"


def masked(forward: Callable[[Any], Any], same: bool) -> Callable[[Any], Any]:
    """Every call starts from the random state of now, so dropout draws the same masks for the same row layout."""
    if not same:
        return forward

    def replayed(edits: Any) -> Any:
        with perturb.same_random_state():
            return forward(edits)

    return replayed

"""What the continuous adversaries share: where deltas start, the unit of their lengths, and deltas that are kept by row."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from advalign.functional import balls
from advalign.interfaces import Adversary, PerturbationContext
from advalign.types import Edit

Deltas = dict[str, Tensor]  # {site: "N T D"}


def precision(context: PerturbationContext) -> torch.dtype:
    """float32 at least: at 1e-5 a bfloat16 delta would round to steps of its own size."""
    return torch.promote_types(context.dtype, torch.float32)


def uniform(context: PerturbationContext, perturber: Adversary, *, zero: bool = False) -> Deltas:
    """Uniform in the ball, from each delta's own stream; or zero everywhere."""
    geometry: dict[str, Any] = {"ball": perturber.ball, "scope": perturber.scope, "radius": 0.0 if zero else context.radius}
    return {
        site: balls.sample(context.allowed, dim, **geometry, generators=context.generators, dtype=precision(context))
        for site, (_, dim) in context.shapes.items()
    }


def zeros(context: PerturbationContext) -> Deltas:
    return {
        site: torch.zeros(*context.allowed.shape, dim, dtype=precision(context), device=context.allowed.device)
        for site, (_, dim) in context.shapes.items()
    }


def cleaned(context: PerturbationContext, gradients: Mapping[str, Tensor]) -> Deltas:
    """Gradients in the precision of the deltas, zero wherever no delta may act (even where they are nan)."""
    return {site: balls.masked(g.detach().to(precision(context)), context.allowed) for site, g in gradients.items()}


def projected(context: PerturbationContext, perturber: Adversary, deltas: Mapping[str, Tensor]) -> Deltas:
    return {site: balls.project(x, ball=perturber.ball, scope=perturber.scope, radius=context.radius) for site, x in deltas.items()}


def stepped(
    context: PerturbationContext, perturber: Adversary, deltas: Mapping[str, Tensor], gradients: Mapping[str, Tensor], length: float
) -> Deltas:
    """Π(δ + length · steepest(g)): one unit step of the ball itself, so the scale of the loss does not matter."""
    directions = {site: balls.steepest(g, ball=perturber.ball, scope=perturber.scope) for site, g in cleaned(context, gradients).items()}
    return projected(context, perturber, {site: deltas[site] + length * direction for site, direction in directions.items()})


def chosen(which: Bool[Tensor, "N"], these: Mapping[str, Tensor], those: Mapping[str, Tensor]) -> Deltas:
    """`these` for the deltas marked, `those` for the others; at all sites together."""
    return {site: torch.where(which[:, None, None], x, those[site]) for site, x in these.items()}


def edits(deltas: Mapping[str, Tensor]) -> dict[str, Edit]:
    return {site: Edit(delta) for site, delta in deltas.items()}


def unit(context: PerturbationContext, perturber: Adversary) -> float:
    """What an absolute length of 1 in the configuration is in hidden states; that of the radius."""
    return 1.0 if perturber.relative_to == "absolute" else context.network.mean_embedding_norm()


def size_of_cube(context: PerturbationContext, perturber: Adversary, site: str) -> Float[Tensor, "N 1 1"]:
    """M^(1/p): the half side of the cube inscribed in the unit ball of M numbers is its inverse."""
    dim = context.shapes[site][1]
    numbers = context.allowed.sum(1).clamp(min=1) * dim if perturber.scope == "row" else torch.full_like(context.allowed.sum(1), dim)
    power = {"L2": 0.5, "Linf": 0.0, "L1": 1.0}[perturber.ball]
    return numbers.to(precision(context)).pow(power)[:, None, None]


# ------------------------------------------------------------------------------------- deltas kept between updates


def fingerprints(context: PerturbationContext, share: str) -> list[str]:
    """Names of rows that last: a hash of the token ids (of a group: of the tokens that may be moved, which all its rows have)."""
    if context.tokens is None:
        return []
    seen = context.allowed if share == "group" else context.tokens.mask
    rows = zip(context.tokens.ids.cpu().to(torch.int64), seen.cpu(), strict=True)
    return [hashlib.blake2b(ids[mask].numpy().tobytes(), digest_size=16).hexdigest() for ids, mask in rows]


def remember(context: PerturbationContext, share: str, deltas: Mapping[str, Tensor]) -> None:
    """Notes the deltas of an update. They are read from the next one on (see `keep`), so no order of micro-batches matters."""
    pending = context.memory.setdefault("pending", {})
    for n, row in enumerate(fingerprints(context, share)):
        if context.allowed[n].any():
            pending[f"{row} {context.names[n]}"] = {site: x[n][context.allowed[n]].cpu() for site, x in deltas.items()}


def keep(memory: dict[str, Any], capacity: int) -> None:
    """What was noted in this update replaces what was kept of the same rows; the longest unseen leave beyond `capacity`."""
    kept, pending = memory.setdefault("warm", {}), memory.pop("pending", {})
    latest = {key.split(" ", 1)[0]: key for key in sorted(pending, reverse=True)}  # of equal rows, the first by name
    for row, key in latest.items():
        kept.pop(row, None)
        kept[row] = pending[key]
    while len(kept) > capacity:
        del kept[next(iter(kept))]


def recalled(context: PerturbationContext, perturber: Adversary, fresh: Mapping[str, Tensor]) -> Deltas:
    """The deltas these rows had when they were last seen, inside the ball of now; `fresh` where there is none that fits."""
    kept, found = context.memory.get("warm", {}), {site: x.clone() for site, x in fresh.items()}
    for n, row in enumerate(fingerprints(context, perturber.share)):
        allowed = context.allowed[n]
        for site, old in kept.get(row, {}).items():
            if site in found and old.shape == (int(allowed.sum()), found[site].shape[2]):
                found[site][n, allowed] = old.to(found[site])
    return projected(context, perturber, found)


__all__ = [
    "chosen", "cleaned", "edits", "keep", "precision", "projected", "recalled", "remember", "size_of_cube", "stepped",
    "uniform", "unit", "zeros",
]  # fmt: skip

"""Target tokens that an adversary takes away before any forward: they are counted, averaged over and compared nowhere.

An adversary that `removes_targets` chooses them without a gradient, from streams keyed by row, so every split of an update into
micro-batches and processes finds the same ones: they are known before the weights of the update are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from jaxtyping import Bool, Int
from torch import Tensor

from advalign.engine.ascent import perturbation_context
from advalign.engine.plan import Plan
from advalign.interfaces import Objective
from advalign.models import Network
from advalign.types import TokenRows, Weights, fit

RowsT = TypeVar("RowsT", bound=TokenRows)

Remaining = Mapping[str, Mapping[str, Tensor]]
"""{view: {source: "B T", the tokens of its rows that are still there}}, of views that remove targets."""


def remaining_tokens(network: Network, plan: Plan, rows: Mapping[str, TokenRows], key: Sequence[object]) -> dict[str, dict[str, Tensor]]:
    """The tokens of the rows of an update that are left on every view that removes targets."""
    remaining: dict[str, dict[str, Tensor]] = {}
    for view, adversary in plan.adversaries.items():
        readers = [s for s in plan.readers(view) if s in rows and rows[s].tokens.target.any()] if adversary.removes_targets else []
        for source in readers:
            tokens = rows[source].tokens
            state = adversary.start(perturbation_context(network, adversary, view, tokens, [(source, tokens)], key))
            origin = adversary.ask(state)["embedding"].origin
            if origin is not None:
                remaining.setdefault(view, {})[source] = origin >= 0
    return remaining


def weights_of(plan: Plan, rows: Mapping[str, TokenRows], remaining: Remaining) -> dict[str, Weights]:
    """{objective: its weights over the rows of the whole update}, inner objectives included."""
    objectives = {**plan.objectives, **plan.inner_objectives}
    return {n: o.weights(without_removed(o, rows[o.source], remaining)) for n, o in objectives.items() if o.source in rows}


def without_removed(objective: Objective, rows: RowsT, remaining: Remaining, numbers: Int[Tensor, "N"] | None = None) -> RowsT:
    """The rows as an objective reads them: targets are those that every view it reads still has. `numbers`: which rows of the update."""
    target = rows.tokens.target
    for view in objective.reads:
        left: Bool[Tensor, "B T"] | None = remaining.get(view, {}).get(objective.source)
        if left is not None:
            target = target & fit(left if numbers is None else left[numbers], target.shape[1]).to(target.device)
    return rows if target is rows.tokens.target else replace(rows, tokens=replace(rows.tokens, target=target))


__all__ = ["Remaining", "remaining_tokens", "weights_of", "without_removed"]

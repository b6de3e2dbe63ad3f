"""What a learner's sum of objectives costs on given rows, in operations and bytes: known before the run from sizes alone, and after a
step from the rows that were really there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from advalign.engine.plan import CLEAN, Plan, passes_of
from advalign.models.model_cost import ModelCost


@dataclass(frozen=True)
class Size:
    """Rows of a source: their tokens without padding, those of them that are targets, and the mean length of a row."""

    tokens: float
    targets: float
    length: float

    def times(self, factor: float) -> Size:
        return Size(self.tokens * factor, self.targets * factor, self.length)


def units(plan: Plan, view: str, shape: ModelCost) -> tuple[float, float]:
    """(of the passes of a view that only move its edits, of those that train or only read)."""
    if view in plan.frozen:
        return 0, 1
    if view == CLEAN:
        return 0, shape.trained_units
    inner, final = passes_of(plan.adversaries[view])
    return 2 * inner, shape.trained_units * final


def operations(plan: Plan, shape: ModelCost, rows: Mapping[str, Size], copies: Mapping[str, ModelCost] | None = None) -> dict[str, float]:
    """{"ascent": ..., "update": ...} floating-point operations of one update on these rows. `copies`: shapes of frozen copies that are
    not of the learner's own."""
    found = {"ascent": 0.0, "update": 0.0}
    for component in plan.components:
        for view in component:
            for source in plan.readers(view):
                size = rows.get(source)
                if size is None:
                    continue
                moving, training = units(plan, view, shape)
                targets = size.targets if {"logprobs", "entropy", "distribution"} & plan.needs(view) else 0.0
                if moving:
                    found["ascent"] += moving / 2 * shape.passes(size.tokens, targets, size.length, 2)
                each = shape.trained_units if training > 1 else 1
                runs = (copies or {}).get(view, shape) if view in plan.frozen else shape
                found["update"] += training / each * runs.passes(size.tokens, targets, size.length, each)
    return found


def alive(plan: Plan) -> int:
    """Views whose graphs live together at most: a micro-batch keeps what its way back needs once per such view."""
    return max((sum(view not in plan.frozen for view in component) for component in plan.components), default=0)

"""What a learner's sum of objectives costs on given rows, in floating-point operations: known before the run from sizes alone, and after a
step from the rows it ran."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from advalign.engine.plan import CLEAN, Plan, count_passes
from advalign.models.model_cost import ModelCost


@dataclass(frozen=True)
class Size:
    """Size of the rows of a source."""

    tokens: float
    """Tokens without padding."""
    targets: float
    """Tokens that a loss may train on."""
    length: float
    """Mean tokens per row."""

    def times(self, factor: float) -> Size:
        """`factor` times as many rows."""
        return Size(self.tokens * factor, self.targets * factor, self.length)


def pass_units(plan: Plan, view: str, cost: ModelCost) -> tuple[float, float]:
    """Forward equivalents of a view: (of passes that only move its edits, of passes that train or only read)."""
    if view in plan.frozen:
        return 0, 1
    if view == CLEAN:
        return 0, cost.trained_units
    inner, final = count_passes(plan.adversaries[view])
    return 2 * inner, cost.trained_units * final


def count_operations(
    plan: Plan, cost: ModelCost, rows: Mapping[str, Size], copies: Mapping[str, ModelCost] | None = None
) -> dict[str, float]:
    """{"ascent": ..., "update": ...} floating-point operations of one update on rows of these sizes.

    `copies`: costs of frozen copies of other learners."""
    operations = {"ascent": 0.0, "update": 0.0}
    for component in plan.components:
        for view in component:
            for source in plan.readers(view):
                size = rows.get(source)
                if size is None:
                    continue
                moving, training = pass_units(plan, view, cost)
                targets = size.targets if {"logprobs", "entropy", "distribution"} & plan.needs(view) else 0.0
                if moving:
                    operations["ascent"] += moving / 2 * cost.passes(size.tokens, targets, size.length, 2)
                units = cost.trained_units if training > 1 else 1
                model = (copies or {}).get(view, cost) if view in plan.frozen else cost
                operations["update"] += training / units * model.passes(size.tokens, targets, size.length, units)
    return operations


def num_live_views(plan: Plan) -> int:
    """Views whose graphs exist at the same time at most: a micro-batch stores activations once per such view."""
    return max((sum(view not in plan.frozen for view in component) for component in plan.components), default=0)

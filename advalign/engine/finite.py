"""No number that is not finite reaches a weight: an update with such a loss or gradient is skipped, counted and named; deltas neither move
by such a gradient nor are kept for such a loss, and a delta that is not finite itself is zero."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from advalign.engine.metrics import MetricAccumulator
from advalign.engine.plan import CLEAN, Plan
from advalign.engine.process_group import ProcessGroup
from advalign.errors import NonFiniteError
from advalign.models.sharding import local_shard
from advalign.types import Edit, TokenRows

COLUMNS = (
    "rewards",
    "advantages",
    "returns",
    "old_logprobs",
    "current_logprobs",
    "ref_logprobs",
    "values",
    "penalty",
    "anchor",
    "old_entropy",
    "baseline",
    "offset",
)
"""Columns of rows that are looked at when a loss is not finite; others may hold nan for "unknown"."""
SHOWN = 3
"""Rows of a source that a reason names."""
RowName = Callable[[str, int], str]
"""(source, number of a row in the update) to what the row is called."""


@dataclass
class FiniteGuard:
    """Decides which updates of a learner are made."""

    learner: str
    """Its name."""
    skipped_in_a_row: int = 0
    """Updates skipped since the last one that was made."""
    reason: str = ""
    """What was not finite in the last skipped update."""
    logs: dict[str, Any] = field(default_factory=dict)
    """{metric: number} since `take_logs`, and the first reason."""

    def passes(
        self, plan: Plan, metrics: MetricAccumulator, norm: float, rows: Mapping[str, TokenRows], row_name: RowName | None = None
    ) -> bool:
        """Whether an update may be made. `metrics` have the losses of its objectives; `norm`: of its gradient; `rows` are searched if it
        may not."""
        bad = nonfinite_losses(plan, metrics)
        if not bad and math.isfinite(norm):
            self.skipped_in_a_row = 0
            return True
        self.skipped_in_a_row += 1
        name = row_name or (lambda source, number: f"row {number}")
        counts = {f"{self.learner}/num_nonfinite_updates": 1, **{f"{objective}/num_nonfinite_losses": 1 for objective in bad}}
        parts = []
        for objective, loss in bad.items():
            listed = _listed(plan.objectives[objective].source, metrics.bad_rows.get(objective, ()), name)
            parts.append(f"{_described(plan, objective)} has loss {loss}{listed}")
        if not bad:
            parts.append(f"the gradient of {', '.join(_described(plan, objective) for objective in plan.objectives)} has norm {norm}")
        for source, numbers, columns in _bad_rows(rows):
            parts.append(f"{len(numbers)} rows of sources.{source} have {columns} that are not finite{_listed(source, numbers, name)}")
            counts[f"{source}/num_nonfinite_rows"] = len(numbers)
        self.reason = ", ".join(parts)
        self.logs.setdefault(f"{self.learner}/nonfinite", self.reason)
        for metric, number in counts.items():
            self.logs[metric] = self.logs.get(metric, 0.0) + number
        return False

    def take_logs(self) -> dict[str, Any]:
        """What was skipped since the last call, and why; empty where nothing was."""
        logs, self.logs = self.logs, {}
        return logs

    def stop_after(self, limit: int) -> None:
        """Raises where `limit` updates in a row were skipped."""
        if self.skipped_in_a_row >= limit:
            raise NonFiniteError(
                f"learners.{self.learner}: {self.skipped_in_a_row} updates in a row were skipped, the last one because {self.reason}; the "
                f"weights are those of the last update that was made, and so are all checkpoints (args.max_skipped is {limit}; a lower "
                "learning_rate or a look at these rows may help)."
            )

    def check_weights(self, weights: Mapping[str, Tensor], processes: ProcessGroup) -> None:
        """Raises where an update has made weights {name: weight} that are not finite: they are beyond the range of their precision."""
        largest = [torch.linalg.vector_norm(local_shard(w.detach()), torch.inf) for w in weights.values() if local_shard(w).numel()]
        bad = not bool(torch.stack([x.double() for x in largest]).isfinite().all()) if largest else False
        if processes.all_reduce(torch.tensor(float(bad))) > 0:
            names = [n for n, w in weights.items() if not local_shard(w.detach()).isfinite().all()][:SHOWN]
            raise NonFiniteError(
                f"learners.{self.learner}: its last update made weights that are not finite ({', '.join(names) or 'on another process'}), "
                "so the run stops and none is saved; checkpoints are from before (a lower learning_rate, or dtype: float32, may help)."
            )


def nonfinite_losses(plan: Plan, metrics: MetricAccumulator) -> dict[str, float]:
    """{objective: its loss}, of those whose loss is not finite."""
    losses = {name: metrics.totals.get(f"{name}/loss", 0.0) for name in plan.objectives}
    return {name: loss for name, loss in losses.items() if not math.isfinite(loss)}


def report(plan: Plan, metrics: MetricAccumulator) -> dict[str, float]:
    """{name: number}. Where the loss of an objective is not finite, all its metrics are nan: counts of comparisons with nan, such as an
    accuracy, would look like numbers, and move gates and schedules."""
    bad = nonfinite_losses(plan, metrics)
    return {name: math.nan if name.partition("/")[0] in bad else value for name, value in metrics.report().items()}


def _described(plan: Plan, objective: str) -> str:
    view = plan.objectives[objective].view
    return f"objectives.{objective}" if view == CLEAN else f"objectives.{objective} (view {view})"


def _listed(source: str, numbers: Sequence[int] | set[int] | tuple[()], row_name: RowName) -> str:
    """ " (a, b, c and 4 more)": rows of a source; empty without any."""
    shown = [row_name(source, number) for number in sorted(numbers)[:SHOWN]]
    more = f" and {len(numbers) - SHOWN} more" if len(numbers) > SHOWN else ""
    return f" (sources.{source}: {', '.join(shown)}{more})" if shown else ""


def _bad_rows(rows: Mapping[str, TokenRows]) -> list[tuple[str, list[int], str]]:
    """(source, row numbers, names of columns) where a column is not finite at a target."""
    result = []
    for source, batch in rows.items():
        bad = {}
        for name in [item.name for item in fields(batch) if item.name in COLUMNS]:
            column = getattr(batch, name)
            if column is not None:
                finite = column.isfinite()
                mask = ~finite & batch.tokens.target if finite.shape == batch.tokens.target.shape else ~finite
                if mask.any():
                    bad[name] = mask.flatten(1).any(1) if mask.ndim > 1 else mask
        if bad:
            result.append((source, torch.stack(list(bad.values())).any(0).nonzero().flatten().tolist(), " and ".join(bad)))
    return result


def finite_edits(requested: Mapping[str, Edit]) -> tuple[dict[str, Edit], Tensor]:
    """Edits {site: edit} as a model may be given them, and for how many deltas that differs: one with a number that is not finite is zero
    at that site."""
    edits, num_bad = {}, torch.zeros((), dtype=torch.long)
    for site, edit in requested.items():
        edits[site] = edit
        if edit.add is not None:
            bad = ~edit.add.flatten(1).isfinite().all(1)
            num_bad = num_bad.to(bad.device) + bad.sum()
            edits[site] = replace(edit, add=edit.add.masked_fill(bad.view(-1, *[1] * (edit.add.ndim - 1)), 0.0))
    return edits, num_bad


def finite_feedback(
    losses: Float[Tensor, "N"], gradients: Mapping[str, Float[Tensor, "N T D"]], allowed: Bool[Tensor, "N _"]
) -> tuple[Float[Tensor, "N"], dict[str, Float[Tensor, "N T D"]], Tensor]:
    """Losses and gradients of deltas as an adversary may be told them, and for how many deltas that differs: a delta whose gradient is not
    finite does not move, and one whose loss is not finite is never the best."""
    bad = ~losses.isfinite()
    finite = {}
    for site, gradient in gradients.items():
        finite_positions = gradient.isfinite().all(2)
        if allowed.shape == finite_positions.shape:  # replaced tokens may have changed the length
            finite_positions |= ~allowed
        rows = finite_positions.all(1)
        finite[site] = torch.where(rows[:, None, None], gradient, torch.zeros((), dtype=gradient.dtype, device=gradient.device))
        bad = bad | ~rows
    return torch.where(losses.isfinite(), losses, -torch.inf), finite, bad.sum()

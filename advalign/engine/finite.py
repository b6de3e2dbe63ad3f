"""No number that is not finite reaches a weight: an update with such a loss or gradient is skipped, counted and named; deltas neither move
by such a gradient nor are kept for such a loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from advalign.errors import NonFiniteError
from advalign.types import TokenRows

COLUMNS = ("rewards", "advantages", "returns", "old_logprobs", "current_logprobs", "ref_logprobs", "values", "penalty")
"""Columns of rows that are looked at when a loss is not finite; others may hold nan for "unknown"."""


@dataclass
class FiniteGuard:
    """Decides which updates of a learner are made."""

    learner: str
    """Its name."""
    skipped_in_a_row: int = 0
    """Updates skipped since the last one that was made."""
    reason: str = ""
    """What was not finite in the last skipped update."""
    counts: dict[str, float] = field(default_factory=dict)
    """{metric: number} since `take_counts`."""

    def passes(self, losses: Mapping[str, float], norm: float, rows: Mapping[str, TokenRows]) -> bool:
        """Whether an update may be made. `losses`: of its objectives; `norm`: of its gradient; `rows` are searched if it may not."""
        bad = {name: loss for name, loss in losses.items() if not math.isfinite(loss)}
        if not bad and math.isfinite(norm):
            self.skipped_in_a_row = 0
            return True
        self.skipped_in_a_row += 1
        parts = [f"objectives.{name} has loss {loss}" for name, loss in bad.items()]
        parts += [] if bad else [f"the gradient of {', '.join(f'objectives.{name}' for name in losses)} has norm {norm}"]
        counts = {f"{self.learner}/num_nonfinite_updates": 1, **{f"{name}/num_nonfinite_losses": 1 for name in bad}}
        for source, number, columns in _bad_rows(rows):
            parts.append(f"{number} rows of sources.{source} have {columns} that are not finite")
            counts[f"{source}/num_nonfinite_rows"] = number
        self.reason = ", ".join(parts)
        for name, number in counts.items():
            self.counts[name] = self.counts.get(name, 0.0) + number
        return False

    def take_counts(self) -> dict[str, float]:
        """What was skipped since the last call; empty where nothing was."""
        counts, self.counts = self.counts, {}
        return counts

    def stop_after(self, limit: int) -> None:
        """Raises where `limit` updates in a row were skipped."""
        if self.skipped_in_a_row >= limit:
            raise NonFiniteError(
                f"learners.{self.learner}: {self.skipped_in_a_row} updates in a row were skipped, the last one because {self.reason}; the "
                f"weights are those of the last update that was made, and so are all checkpoints (args.max_skipped is {limit}; a lower "
                "learning_rate or a look at these rows may help)."
            )


def _bad_rows(rows: Mapping[str, TokenRows]) -> list[tuple[str, int, str]]:
    """(source, number of rows, names of columns) where a column is not finite at a target."""
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
            result.append((source, int(torch.stack(list(bad.values())).any(0).sum()), " and ".join(bad)))
    return result


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

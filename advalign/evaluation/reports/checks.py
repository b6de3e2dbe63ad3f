"""The result of a self-check, as a line of a table."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from advalign.evaluation.reports.report import show

NOTE = "Gains are rises of the margin (classifiers) or of the negative log-likelihood (generators); queries are those of all examples."


@dataclass(frozen=True, kw_only=True)
class Check:
    """The result of one self-check."""

    name: str
    """Of the check, as `gradients`."""
    status: str
    """pass, warn or fail."""
    figures: Mapping[str, float]
    """What was measured, by name."""
    meaning: str
    """What it means, and what to do about a failure."""
    queries: int = 0
    """What it cost, over all examples."""

    def to_json(self) -> dict[str, Any]:
        """Its fields; a figure that is nan or infinite is None."""
        return asdict(self) | {"figures": {name: x if math.isfinite(x) else None for name, x in self.figures.items()}}


def check_rows(checks: Sequence[Check]) -> list[dict[str, Any]]:
    """The checks as rows of a table."""
    rows = []
    for check in checks:
        figures = "; ".join(f"{name} {show(value)}" for name, value in check.figures.items())
        row = {"check": check.name, "status": check.status, "figures": figures, "meaning": check.meaning, "queries": check.queries}
        rows.append(row)
    return rows


__all__ = ["NOTE", "Check", "check_rows"]

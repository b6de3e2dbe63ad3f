"""What an update reports."""

from __future__ import annotations

from dataclasses import dataclass, field

from advalign.engine.process_group import ProcessGroup


@dataclass
class MetricAccumulator:
    """Metrics of an update, added up over its micro-batches and processes."""

    totals: dict[str, float] = field(default_factory=dict)
    """{name: sum}"""
    weighted: dict[str, tuple[float, float]] = field(default_factory=dict)
    """{name: (weighted sum, sum of weights)} of means."""
    bad_rows: dict[str, set[int]] = field(default_factory=dict)
    """{objective: rows of the update whose loss is not finite}"""

    def add(self, name: str, value: float) -> None:
        """Adds to a sum."""
        self.totals[name] = self.totals.get(name, 0.0) + value

    def add_mean(self, name: str, value: float, weight: float) -> None:
        """Adds to a mean; `value` is already multiplied by the weight."""
        before, count = self.weighted.get(name, (0.0, 0.0))
        self.weighted[name] = (before + value, count + weight)

    def all_reduce(self, processes: ProcessGroup) -> MetricAccumulator:
        """The metrics of all processes. A metric may exist on some of them only, so names travel too."""
        if processes.world_size == 1:
            return self
        joined = MetricAccumulator()
        bad_rows = {name: sorted(rows) for name, rows in self.bad_rows.items()}
        for totals, weighted, bad in processes.all_gather([self.totals, self.weighted, bad_rows]):
            for name, value in totals.items():
                joined.add(name, value)
            for name, (value, weight) in weighted.items():
                joined.add_mean(name, value, weight)
            for name, rows in bad.items():
                joined.bad_rows.setdefault(name, set()).update(rows)
        return joined

    def report(self) -> dict[str, float]:
        """{name: number}. A mean over nothing is left out rather than called zero."""
        return self.totals | {name: value / weight for name, (value, weight) in self.weighted.items() if weight != 0}

"""Quality against diversity over sampling temperatures, as a page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from advalign.errors import ConfigError
from advalign.evaluation.reports.report import Report
from advalign.metrics import diversity
from advalign.models import Network

if TYPE_CHECKING:
    from advalign.evaluation.suites.suite import Suite


def parse_temperatures(text: str) -> list[float]:
    """ "0.3,0.7,1" as numbers."""
    try:
        temperatures = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"temperatures: '{text}' is not a list of numbers; write it as 0.3,0.7,1.") from error
    for temperature in temperatures:
        if not (math.isfinite(temperature) and temperature >= 0):
            raise ConfigError(f"temperatures: {temperature} given; finite numbers of at least 0 are expected.")
    return temperatures


def check_policy(network: Network) -> None:
    """Raises ConfigError for a network that samples nothing."""
    if network.head != "policy":
        raise ConfigError(f"temperatures: a {network.head} samples nothing; quality and diversity are measured on a policy.")


def suite_report(suite: Suite, network: Network, temperatures: Sequence[float]) -> Report:
    """The curve of a policy on a suite's examples, with its `sampling` and its `samples` per prompt (8 where it has none)."""
    check_policy(network)
    options: dict[str, Any] = {"sampling": suite.sampling, "seed": suite.seed, "order": 4 if diversity.has_nltk() else 0}
    samples = max(suite.samples, 2) if suite.samples else 8
    rows = diversity.quality_diversity(network, suite.examples_for(network), temperatures, samples, **options)
    return add_curves(Report("Quality and diversity", "over sampling temperatures"), {"policy": rows})


def add_curves(
    report: Report,
    rows_of: Mapping[str, Sequence[Mapping[str, float]]],
    *,
    measure: str = "unique",
    title: str = "Quality and diversity",
) -> Report:
    """{model: rows of `quality_diversity`} as one line per model, from cold to hot, and as a table.

    A curve further up and to the right is better; a single point is not comparable. `measure`: the measure of diversity.
    """
    shown = {name: [r for r in rows if measure in r and not math.isnan(r["quality"])] for name, rows in rows_of.items()}
    lines = {name: ([r[measure] for r in rows], [r["quality"] for r in rows]) for name, rows in shown.items()}
    report.lines(lines, title=title, x_label=measure, y_label="quality", note="Each curve runs over temperatures; see the table.")
    return report.table([{"model": name, **row} for name, rows in rows_of.items() for row in rows])


__all__ = ["add_curves", "parse_temperatures", "suite_report"]

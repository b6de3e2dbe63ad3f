"""The report of a suite, block by block. `suites/result.py` computes the numbers, `report.py` lays them out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from advalign.evaluation.reports.checks import NOTE as CHECKS
from advalign.evaluation.reports.checks import check_rows
from advalign.evaluation.reports.report import Report
from advalign.functional.intervals import wilson
from advalign.types import STATUSES

if TYPE_CHECKING:
    from advalign.evaluation.suites.result import SuiteResult

NOTE = (
    "Every number has the clean accuracy on the same examples beside it: the judged ones of those asked for. Over asked: the others count "
    "as broken. A wrong example counts as wrong under attack; "
    "distance is the mean over successes."
)
RADIUS = (
    "Mean over the attacked examples with a value at every radius; the radius is in the unit of the attack's threat model, 0 is no attack."
)
CERTIFIED = (
    "The fraction of the attacked examples that the vote of noisy or masked copies gets right, and on which no change within the size "
    "can alter that vote: a lower bound for every attack on the vote, not on the network alone. Abstentions count as wrong."
)
CORRECTED = (
    "Corrected: the true accuracy, given the stated sensitivity and specificity of the judge, whose errors on the clean answer and on "
    "every attempt are taken as independent."
)
ATTEMPTS = "Success per attempt: attempts on one example are not independent, so its interval is over examples."
DRAWS = "Chance that one of n attempts breaks an example, over all examples right before; unbiased, as attempts are independent draws."
LAW = "-log ASR(n) = a n^-b by least squares, intervals over examples; asr@n is its forecast, not a measurement."
BUDGET = "Fraction of examples still answered right at this number of queries."
COST = (
    "All examples together. A query is a distinct text or edit sent to the model; an answer out of the cache is a query but not a "
    "forward. FLOPs: 2 per parameter and token forward, 4 backward."
)
BENIGN = "Prompts that should be answered, but were refused."
SHOWN = ("accuracy", "nll", "pass@1", "unique", "degenerate")
LABELS = {"nll": "negative log-likelihood per token", "score": "score of the greedy answer", "probability": "probability of the label"}


def build_report(result: SuiteResult, title: str) -> Report:
    """The page of a suite's result."""
    report = Report(title, f"{len(result.arms)} attacks on {len(result.before)} examples")
    _headline(report, result)
    _under_attack(report, result)
    if result.checks:
        report.text("## Self-checks").table(check_rows(result.checks), note=CHECKS)
    if result.certified:
        report.text("## Certified").table(_certified(result.certified, result.clean_subset), note=CERTIFIED)
    for metric in result.metrics():
        curves = result.curves(metric)
        report.lines(curves, title=f"{LABELS[metric].capitalize()} under attack", x_label="radius", y_label=LABELS[metric], note=RADIUS)
    budgets = result.budget_curves()
    if budgets:
        report.lines(budgets, title="Accuracy by budget", x_label="queries per example", y_label="accuracy", note=BUDGET, log_x=True)
    _attempts(report, result)
    _examples(report, result)
    if any(r.seconds or r.queries for r in result.results):
        report.text("## Cost").table(result.cost(), note=COST)
    note = f"Measured on all {result.num_clean} examples, without attack."
    if result.classes:
        report.text("## Classes").table(result.classes, note=note)
    clean = [{"measure": name, "value": x} for name, x in result.clean.items()]
    return report.text("## Clean utility").table(clean, note=note)


def _headline(report: Report, result: SuiteResult) -> None:
    worst = result.worst_case()
    cards = [(f"clean {name}", _show(name, x), f"all {result.num_clean} examples") for name, x in result.clean.items() if name in SHOWN]
    cards.append(("accuracy, worst case over the suite", _percent(worst["accuracy"]), _established(worst)))
    cards.append(("clean accuracy of the same examples", _percent(worst["clean"]), f"{worst['num_judged']} examples"))
    for name, group in result.groups().items():
        cards.append((f"worst case, attacks {name} in training", _percent(group["accuracy"]), _established(group)))
    if result.benign is not None:
        rate = result.benign
        cards.append(("over-refusal", f"{rate.rate:.1%}", f"{rate.low:.1%} to {rate.high:.1%} of {rate.num} benign prompts"))
    report.cards(cards)
    for warning in result.warnings():
        report.warning(warning)


def _established(worst: Mapping[str, float]) -> str:
    """The interval of a worst case, and for how many of the attacked examples it was established."""
    return f"{worst['low']:.1%} to {worst['high']:.1%}; {worst['num_judged']} of {worst['num_asked']} examples"


def _percent(rate: float) -> str:
    return "–" if math.isnan(rate) else f"{rate:.1%}"


def _under_attack(report: Report, result: SuiteResult) -> None:
    worst, rows = result.worst_case(), [result.row(arm) for arm in result.arms]
    notes = [NOTE, *([CORRECTED] if any("corrected" in row for row in rows) else [])]
    notes += [ATTEMPTS] if any("success per attempt" in row for row in rows) else []
    if result.seen:
        rows = [{"attack": row["attack"], "in training": "seen" if row["attack"] in result.seen else "unseen", **row} for row in rows]
    report.text("## Under attack").table(_shown(rows), note=" ".join(notes))
    judged = [j.correct for j in result.before.values() if not j.undetermined]
    bars = [{"label": "clean", "value": result.clean_subset, **_interval(judged)}]
    bars += [
        {"label": arm.name, "value": row["accuracy under attack"], "low": row["low"], "high": row["high"]}
        for arm, row in zip(result.arms, rows, strict=True)
    ]
    bars.append({"label": "worst case", "value": worst["accuracy"], "low": worst["low"], "high": worst["high"]})
    report.bars(bars, title="Accuracy under attack", x_label="accuracy", limits=(0, 1), note="Wilson intervals, 95 %.")


def _attempts(report: Report, result: SuiteResult) -> None:
    """How success grows with the number of attempts, where they are draws."""
    laws = {name: law for name, law in result.scaling().items() if any(law["success"])}
    if not laws:
        return
    curves = {name: ([float(n) for n in law["attempts"]], law["success"]) for name, law in laws.items()}
    report.lines(curves, title="Success by number of attempts", x_label="attempts", y_label="attack success", note=DRAWS, log_x=True)
    rows = []
    for name, law in laws.items():
        for quantity, (value, low, high) in law["fit"].items():
            rows += [] if math.isnan(value) else [{"attack": name, "of the law": quantity, "value": value, "low": low, "high": high}]
    if rows:
        report.table(rows, note=LAW)


def _examples(report: Report, result: SuiteResult) -> None:
    broken = result.broken()
    if broken:
        report.text("## Examples that broke").changes(
            [{**row, "changed": row["attacked text"] if row["attacked text"] != row["text"] else ""} for row in broken],
            note="At most two per attack. What the attack took out is struck through, what it put in is marked.",
        )
    if result.benign is not None and result.benign.shown:
        rows = [{"prompt": prompt, "answer": _short(text)} for prompt, text in result.benign.shown]
        report.text("## Refused without reason").table(rows, note=BENIGN)


def _shown(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows as a table: an interval in one column, and optional columns only where a row has a value other than zero."""
    optional = ("radius", *(name.replace("_", " ") for name in STATUSES), "missing", "distance")
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = [name for name in names if name not in optional or any(_has_value(row.get(name)) for row in rows)]
    columns = [name for name in columns if name not in ("seconds", "succeeded", "failed")]  # in the table of costs; and rates say it
    spans = {
        "low": ("low", "high"),
        "corrected low": ("corrected low", "corrected high"),
        "per attempt low": ("per attempt low", "per attempt high"),
    }
    counts = {"num_asked": "asked", "num_judged": "judged"}
    headings = {"low": "95 % interval", "corrected low": "corrected, 95 %", "per attempt low": "per attempt, 95 %"}
    ends = [high for _, high in spans.values()]
    lines = []
    for row in rows:
        line: dict[str, Any] = {}
        for name in columns:
            if name in spans:
                low, high = (row.get(end) for end in spans[name])
                line[headings[name]] = None if low is None or high is None else f"{low:.3f}\u00a0–\u2060\u00a0{high:.3f}"
            elif name not in ends:
                line[counts.get(name, name)] = row.get(name)
        lines.append(line)
    return lines


def _certified(rows: Sequence[Mapping[str, Any]], clean: float) -> list[dict[str, Any]]:
    """The rows as a table, the accuracy of the network itself beside each."""
    lines = []
    for row in rows:
        line = {name: row[name] for name in ("certificate", "threat", "within")} | {"clean": clean}
        line |= {"certified accuracy": row["certified accuracy"], "95 % interval": f"{row['low']:.3f}\u00a0–\u00a0{row['high']:.3f}"}
        lines.append(line | {name: row[name] for name in ("abstained", "n", "copies")})
    return lines


def _has_value(value: Any) -> bool:
    return bool(value) and not (isinstance(value, float) and math.isnan(value))


def _interval(right: Sequence[bool]) -> dict[str, float]:
    low, high = wilson(sum(right), len(right))
    return {"low": low, "high": high}


def _show(name: str, value: float) -> str:
    return f"{value:.3f}" if name == "nll" else f"{value:.1%}"


def _short(text: str, limit: int = 300) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


__all__ = ["LABELS", "build_report"]

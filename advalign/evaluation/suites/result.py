"""The result of a suite: rates with intervals, the worst case per example, clean utility beside every robust number."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from advalign.durable import writing
from advalign.evaluation.reports import suite_report
from advalign.evaluation.reports.checks import Check
from advalign.evaluation.reports.report import Report
from advalign.evaluation.suites import gate, rates
from advalign.evaluation.suites.benign import OverRefusal
from advalign.evaluation.suites.checker import Judgement
from advalign.evaluation.suites.harness import Arm
from advalign.evaluation.suites.log import PATH
from advalign.functional import scaling as laws
from advalign.functional.escaping import code, json_safe, quoted
from advalign.interfaces import Judge
from advalign.types import AttackResult

LABELS = suite_report.LABELS


@dataclass(frozen=True, kw_only=True)
class SuiteResult:
    """What a suite measured, and the numbers derived from it."""

    head: str
    """classifier or policy."""
    arms: Sequence[Arm]
    """Every attack, once per radius."""
    clean: Mapping[str, float]
    """Clean utility on all `num_clean` examples."""
    num_clean: int
    """Examples without attack."""
    failures: Sequence[str]
    """What makes the numbers meaningless: constant, refusing or degenerate answers."""
    before: Mapping[str, Judgement]
    """Clean judgements of the attacked examples, by id."""
    prompts: Mapping[str, str]
    """Their prompts, by id."""
    results: Sequence[AttackResult]
    """One per arm and attacked example."""
    certified: Sequence[Mapping[str, Any]] = ()
    """One row per certificate and size, of the attacked examples."""
    checks: Sequence[Check] = ()
    """Self-checks of the attack (`selfcheck.of_suite`)."""
    benign: OverRefusal | None = None
    """Refusals among benign prompts."""
    seen: Sequence[str] = ()
    """Attacks used in training."""
    judge: Judge | None = None
    """What judged a generator's answers; its error rates give the corrected rates."""
    classes: Sequence[Mapping[str, Any]] = ()
    """One row per class of a classifier that has a name: its examples, its clean accuracy, and what it is most often taken for."""
    notes: Sequence[str] = ()
    """Sentences about goals of attacks that may be wrong."""

    def __post_init__(self) -> None:
        gate.check_rows({arm.name for arm in self.arms}, self.before, self.results)

    def results_of(self, arm: str) -> list[AttackResult]:
        """The results of one arm, by name."""
        return [r for r in self.results if r.attack == arm]

    @property
    def clean_subset(self) -> float:
        """Clean accuracy on the attacked examples whose clean answer could be judged; nan where none could."""
        return rates.clean_accuracy(self.before.values())

    def row(self, arm: Arm) -> dict[str, Any]:
        """One row of the table, see `rates.attack_row`."""
        return rates.attack_row(arm, self.results_of(arm.name), self.before, self.judge)

    def worst_case(self, attacks: Sequence[str] | None = None) -> dict[str, float]:
        """Right before, and withstood every attack of the suite (or of `attacks`), where that was established (`rates.worst_case`)."""
        return rates.worst_case(self.before, self.results, {arm.name for arm in self.arms if attacks is None or arm.attack in attacks})

    def groups(self) -> dict[str, dict[str, float]]:
        """The worst case over attacks used in training, and over the others; empty if `seen` is."""
        if not self.seen:
            return {}
        unseen = [name for name in dict.fromkeys(a.attack for a in self.arms) if name not in self.seen]
        return {name: self.worst_case(attacks) for name, attacks in (("seen", self.seen), ("unseen", unseen)) if attacks}

    def cost(self) -> list[dict[str, Any]]:
        """What every attack spent on all examples together."""
        rows = []
        for arm in self.arms:
            results = self.results_of(arm.name)
            names = dict.fromkeys(name for r in results for name in r.spent)
            row: dict[str, Any] = {"attack": arm.name, "queries": sum(r.queries for r in results)}
            row |= {name: sum(r.spent.get(name, 0) for r in results) for name in names}
            rows.append(row | {"seconds": sum(r.seconds for r in results)})
        return rows

    def budget_curves(self) -> dict[str, tuple[list[float], list[float]]]:
        """{attack: (queries, fraction of judged examples still right at that budget)}, of attacks whose successes differ in queries.

        The budgets are 1, 2, 5, 10, 20, 50, ... up to the first that all successes fit in.
        """
        curves = {}
        for arm in self.arms:
            judged = [r for r in self.results_of(arm.name) if r.status not in rates.UNJUDGED]
            right = sum(self.before[r.example].correct for r in judged)
            spent = [r.queries for r in judged if r.status == "succeeded" and r.queries > 0]
            if len(set(spent)) > 1:
                budgets = _budgets(max(spent))
                curves[arm.name] = (budgets, [(right - sum(q <= n for q in spent)) / len(judged) for n in budgets])
        return curves

    def scaling(self) -> dict[str, dict[str, Any]]:
        """{attack: success by number of attempts, and the law -log ASR(n) = a n^-b through it}, of attacks whose attempts are draws."""
        fits = {}
        for arm in (a for a in self.arms if a.draws):
            judged = [r for r in self.results_of(arm.name) if r.status in ("failed", "succeeded")]
            number = min((r.attempts for r in judged), default=0)
            if number < 2 or any(r.attempts != number for r in judged):
                continue
            broken, grid = torch.tensor([r.broken for r in judged]), [2**k for k in range(number.bit_length()) if 2**k <= number]
            rates = laws.success_curve(broken, number, grid).mean(0).tolist()
            fit = laws.fit(broken, number, at=(10 * number,))
            fits[arm.name] = {"attempts": grid, "success": rates, "fit": {name: list(value) for name, value in fit.items()}}
        return fits

    def curves(self, metric: str) -> dict[str, tuple[list[float], list[float]]]:
        """{attack: (radii, mean of `metric` after the attack)}, from the clean value at radius 0. Every radius has the same examples:
        those with a value at all of them."""
        curves, after = {}, f"{metric}_after"
        for name in dict.fromkeys(a.attack for a in self.arms if a.radius is not None):
            arms = sorted((a for a in self.arms if a.attack == name and a.radius), key=lambda a: a.radius or 0.0)
            columns = [{e: j.metrics[metric] for e, j in self.before.items() if metric in j.metrics}]
            columns += [{r.example: r.metrics[after] for r in self.results_of(a.name) if after in r.metrics} for a in arms]
            shared = [e for e in columns[0] if all(e in column for column in columns)]
            curves[name] = ([0.0, *(a.radius or 0.0 for a in arms)], [_mean([column[e] for e in shared]) for column in columns])
        return curves

    def broken(self, number: int = 2) -> list[dict[str, str]]:
        """The first successes of every attack, at most `number` each."""
        rows = []
        for arm in self.arms:
            for r in [r for r in self.results_of(arm.name) if r.status == "succeeded"][:number]:
                row = {"attack": arm.name, "text": self.prompts[r.example], "before": r.before, "after": r.after, "attacked text": r.note}
                rows.append(row)
        return rows

    def warnings(self) -> list[str]:
        """Sentences about what weakens the numbers."""
        warnings = [*self.failures, *self.notes]
        warnings += self._unestablished()
        undetermined = [r for r in self.results if r.status == "undetermined"]
        if undetermined:
            reason = Counter(r.note for r in undetermined).most_common(1)[0][0]
            warnings.append(
                f"{len(undetermined)} of {len(self.results)} results are undetermined and count nowhere (most often: {quoted(reason)})."
            )
        worst = self.worst_case()
        if worst["num_judged"] < worst["num_asked"]:
            warnings.append(
                f"The worst case is established for {worst['num_judged']} of {worst['num_asked']} examples; it says nothing about the "
                f"others ({worst['accuracy over asked']:.1%} of all if they count as broken)."
            )
        warnings += [
            f"{code(arm.name)} is not corrected for the judge's errors: its examples took different numbers of judgements."
            for arm in self.arms
            if rates.judge_errs(self.judge) and len(rates.numbers_of_judgements(self.results_of(arm.name))) > 1
        ]
        for name in dict.fromkeys(a.attack for a in self.arms):
            arms = sorted((a for a in self.arms if a.attack == name and a.radius is not None), key=lambda a: a.radius or 0.0)
            rows = [self.row(a) for a in arms]
            if any(later["accuracy under attack"] > earlier["high"] for earlier, later in pairwise(rows)):
                warnings.append(
                    f"{code(name)} is weaker at a larger radius: it is not converged (more steps or restarts), or gradients are masked."
                )
        warnings += [f"Self-check {code(c.name)} fails. {c.meaning}" for c in self.checks if c.status == "fail"]
        return warnings

    def summary(self) -> dict[str, Any]:
        """All numbers, as summary.json holds them."""
        scaling = self.scaling()
        return {
            "head": self.head,
            "clean": dict(self.clean),
            "num_clean": self.num_clean,
            "clean_on_attacked": self.clean_subset,
            **({"classes": [dict(row) for row in self.classes]} if self.classes else {}),
            "worst_case": self.worst_case(),
            **({"groups": self.groups()} if self.seen else {}),
            **({"over_refusal": self.benign.to_json()} if self.benign is not None else {}),
            "attacks": {arm.name: self.row(arm) for arm in self.arms},
            "curves": {m: self.curves(m) for m in self.metrics()},
            "budget_curves": self.budget_curves(),
            **({"scaling": scaling} if scaling else {}),
            "cost": self.cost(),
            "failures": list(self.failures),
            **({"certified": list(self.certified)} if self.certified else {}),
            **({"self_checks": [c.to_json() for c in self.checks]} if self.checks else {}),
            "warnings": self.warnings(),
        }

    def fails(self, below: float | None = None) -> list[str]:
        """Why a continuous-integration job should fail: meaningless numbers, undetermined ones, an attack that did not try every example
        it was to try, or a worst case that is not known to reach the bound `below`: examples for which it was not established count as
        broken, and the rate itself is compared, not an end of its interval."""
        gate.check_bound(below, "fails")
        return [*self.failures, *gate.reasons(self.worst_case(), self.results, self._unestablished(), below)]

    def _unestablished(self) -> list[str]:
        return gate.unestablished([arm.name for arm in self.arms], self.before, self.results)

    def report(self, title: str = "Robustness report") -> Report:
        """The page."""
        return suite_report.build_report(self, title)

    def markdown(self) -> str:
        """The page as Markdown."""
        return self.report().markdown()

    def html(self, path: str | Path) -> Path:
        """Writes the page, and its Markdown beside it."""
        return self.report().write(path)

    def save(self, folder: Path) -> None:
        """Writes summary.json, report.html and report.md."""
        with writing(folder, PATH):
            (folder / "summary.json").write_text(json.dumps(json_safe(self.summary()), indent=1) + "\n", encoding="utf-8")
            self.html(folder / "report.html")

    def metrics(self) -> list[str]:
        """Numbers of the answers that have a curve over the radius."""
        measured = {name.removesuffix("_after") for r in self.results for name in r.metrics if name.endswith("_after")}
        return [name for name in LABELS if name in measured and any(a.radius is not None for a in self.arms)]


def _budgets(largest: int) -> list[float]:
    budgets = [1.0]
    while budgets[-1] < largest:
        budgets.append(budgets[-1] * (2.5 if str(int(budgets[-1]))[0] == "2" else 2.0))
    return budgets


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


__all__ = ["Arm", "SuiteResult"]

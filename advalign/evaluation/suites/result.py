"""What a suite found: rates with intervals, the worst case per example, clean utility beside every robust number."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from advalign.evaluation.reports import suite_report
from advalign.evaluation.reports.report import Report
from advalign.evaluation.selfcheck.checks import Check
from advalign.evaluation.suites.benign import OverRefusal
from advalign.evaluation.suites.harness import Arm
from advalign.evaluation.suites.judging import Judgement
from advalign.functional import intervals
from advalign.functional import scaling as laws
from advalign.interfaces import Judge
from advalign.types import AttackResult

CLOSED = ("error", "undetermined")  # what nobody can count as right or wrong
LABELS = suite_report.LABELS


@dataclass(frozen=True, kw_only=True)
class SuiteResult:
    """`clean`: utility on all `num_clean` examples; `before`: the clean judgements of those that were attacked. `certified`: a row
    per certificate and size, of the same examples. `checks`: self-checks of the attack (`selfcheck.of_suite`). `failures`: what makes
    the numbers worthless (constant, refusing or meaningless answers). `benign`: what the model refused without reason. `seen`: attacks
    that training knew. `judge`: who read a generator's answers; its own errors are carried into the corrected rates."""

    head: str
    arms: Sequence[Arm]
    clean: Mapping[str, float]
    num_clean: int
    failures: Sequence[str]
    before: Mapping[str, Judgement]
    prompts: Mapping[str, str]
    results: Sequence[AttackResult]
    certified: Sequence[Mapping[str, Any]] = ()
    checks: Sequence[Check] = ()
    benign: OverRefusal | None = None
    seen: Sequence[str] = ()
    judge: Judge | None = None

    def of(self, arm: str) -> list[AttackResult]:
        return [r for r in self.results if r.attack == arm]

    @property
    def clean_subset(self) -> float:
        """Clean accuracy on the attacked examples."""
        return sum(v.correct for v in self.before.values()) / max(len(self.before), 1)

    def row(self, arm: Arm) -> dict[str, Any]:
        """One line of the table. Accuracy under attack counts a wrong example as wrong and an attack over its budget as failed;
        attacks that crashed and answers that could not be judged leave the denominator and are shown."""
        found = self.of(arm.name)
        count = Counter(r.status for r in found)
        robust, told = count["failed"] + count["over_budget"], len(found) - sum(count[name] for name in CLOSED)
        low, high = intervals.wilson(robust, told)
        tried = robust + count["succeeded"]
        row: dict[str, Any] = {"attack": arm.attack, "radius": arm.radius, "clean": self.clean_subset}
        row |= {"accuracy under attack": robust / told if told else math.nan, "low": low, "high": high}
        if self.judge is not None and (self.judge.sensitivity, self.judge.specificity) != (1.0, 1.0):
            row |= self._corrected(robust, told)
        row |= {"attack success": count["succeeded"] / tried if tried else math.nan, "n": len(found)}
        if any(r.attempts > 1 for r in found):
            row |= _attempts([r for r in found if r.status in ("failed", "succeeded")])
        row |= {name.replace("_", " "): count[name] for name in ("skipped", "over_budget", *CLOSED)}
        row |= {"queries": _mean([r.queries for r in found if r.queries]), "seconds": _mean([r.seconds for r in found if r.seconds])}
        return row | {"distance": _mean([r.distance for r in found if r.status == "succeeded"])}

    def _corrected(self, robust: int, told: int) -> dict[str, float]:
        """What the judge's own errors make of it: the true share of violations, turned round (Rogan-Gladen)."""
        assert self.judge is not None
        if not told:
            return {"corrected": math.nan, "corrected low": 0.0, "corrected high": 1.0}
        errors = {"sensitivity": self.judge.sensitivity, "specificity": self.judge.specificity}
        rate, low, high = intervals.judged(1 - robust / told, told, **errors, labelled=self.judge.labelled)
        return {"corrected": 1 - rate, "corrected low": 1 - high, "corrected high": 1 - low}

    def worst_case(self, attacks: Sequence[str] | None = None) -> dict[str, float]:
        """Right before, and no attack of the suite (or of `attacks`) succeeded. What could not be judged is left out, never safe."""
        arms = {arm.name for arm in self.arms if attacks is None or arm.attack in attacks}
        broken = {r.example for r in self.results if r.attack in arms and r.status == "succeeded"}
        silent = {r.example for r in self.results if r.attack in arms and r.status == "undetermined"} - broken
        told = [(name, v) for name, v in self.before.items() if name not in silent]
        robust = sum(v.correct and name not in broken for name, v in told)
        low, high = intervals.wilson(robust, len(told))
        return {"accuracy": robust / len(told) if told else math.nan, "low": low, "high": high, "n": len(told)}

    def groups(self) -> dict[str, dict[str, float]]:
        """The worst case over attacks that training knew, and over those it did not; empty where nobody said which."""
        if not self.seen:
            return {}
        unseen = [name for name in dict.fromkeys(a.attack for a in self.arms) if name not in self.seen]
        return {name: self.worst_case(attacks) for name, attacks in (("seen", self.seen), ("unseen", unseen)) if attacks}

    def cost(self) -> list[dict[str, Any]]:
        """What every attack spent on all examples together."""
        rows = []
        for arm in self.arms:
            found = self.of(arm.name)
            names = dict.fromkeys(name for r in found for name in r.spent)
            row: dict[str, Any] = {"attack": arm.name, "queries": sum(r.queries for r in found)}
            row |= {name: sum(r.spent.get(name, 0) for r in found) for name in names}
            rows.append(row | {"seconds": sum(r.seconds for r in found)})
        return rows

    def budget_curves(self) -> dict[str, tuple[list[float], list[float]]]:
        """{attack: (queries, share of examples still right when an attacker may ask so often)}, where the number of queries differs.
        The budgets are 1, 2, 5, 10, 20, 50, ... up to the first that all successes fit in."""
        curves = {}
        right, total = sum(v.correct for v in self.before.values()), max(len(self.before), 1)
        for arm in self.arms:
            spent = [r.queries for r in self.of(arm.name) if r.status == "succeeded" and r.queries > 0]
            if len(set(spent)) > 1:
                budgets = _budgets(max(spent))
                curves[arm.name] = (budgets, [(right - sum(q <= n for q in spent)) / total for n in budgets])
        return curves

    def scaling(self) -> dict[str, dict[str, Any]]:
        """{attack: success by number of attempts, and the law -log ASR(n) = a n^-b through it}, of attacks whose attempts are draws."""
        found = {}
        for arm in (a for a in self.arms if a.draws):
            judged = [r for r in self.of(arm.name) if r.status in ("failed", "succeeded")]
            number = min((r.attempts for r in judged), default=0)
            if number < 2 or any(r.attempts != number for r in judged):
                continue
            broken, grid = torch.tensor([r.broken for r in judged]), [2**k for k in range(number.bit_length()) if 2**k <= number]
            rates = laws.success_curve(broken, number, grid).mean(0).tolist()
            fit = laws.fit(broken, number, at=(10 * number,))
            found[arm.name] = {"attempts": grid, "success": rates, "fit": {name: list(value) for name, value in fit.items()}}
        return found

    def curves(self, metric: str) -> dict[str, tuple[list[float], list[float]]]:
        """{attack: (radii, mean of `metric` after the attack)}, from the clean value at radius 0."""
        clean = _mean([v.metrics[metric] for v in self.before.values() if metric in v.metrics])
        found = {}
        for name in dict.fromkeys(a.attack for a in self.arms if a.radius is not None):
            arms = sorted((a for a in self.arms if a.attack == name and a.radius), key=lambda a: a.radius or 0.0)
            means = [_mean([r.metrics[f"{metric}_after"] for r in self.of(a.name) if f"{metric}_after" in r.metrics]) for a in arms]
            found[name] = ([0.0, *(a.radius or 0.0 for a in arms)], [clean, *means])
        return found

    def broken(self, number: int = 2) -> list[dict[str, str]]:
        """Some successes of every attack, as a reader sees them."""
        found = []
        for arm in self.arms:
            for r in [r for r in self.of(arm.name) if r.status == "succeeded"][:number]:
                row = {"attack": arm.name, "text": self.prompts[r.example], "before": r.before, "after": r.after, "attacked text": r.note}
                found.append(row)
        return found

    def warnings(self) -> list[str]:
        """What would make the numbers mean less than they seem to."""
        found = list(self.failures)
        errors = Counter(r.attack for r in self.results if r.status == "error")
        for name, number in errors.items():
            note = next(r.note for r in self.results if r.attack == name and r.status == "error")
            found.append(f"`{name}` crashed or gave up on {number} examples, which are in no rate of it (first: {note}).")
        silent = [r for r in self.results if r.status == "undetermined"]
        if silent:
            reasons = Counter(r.note for r in silent).most_common(1)[0][0]
            found.append(f"{len(silent)} of {len(self.results)} results are undetermined and count nowhere (most often: {reasons}).")
        for name in dict.fromkeys(a.attack for a in self.arms):
            arms = sorted((a for a in self.arms if a.attack == name and a.radius is not None), key=lambda a: a.radius or 0.0)
            rows = [self.row(a) for a in arms]
            if any(later["accuracy under attack"] > earlier["high"] for earlier, later in pairwise(rows)):
                found.append(
                    f"`{name}` is weaker at a larger radius: it is not converged (more steps or restarts), or gradients are masked."
                )
        found += [f"Self-check `{c.name}` fails. {c.meaning}" for c in self.checks if c.status == "fail"]
        return found

    def summary(self) -> dict[str, Any]:
        return {
            "head": self.head,
            "clean": dict(self.clean),
            "num_clean": self.num_clean,
            "clean_on_attacked": self.clean_subset,
            "worst_case": self.worst_case(),
            **({"groups": self.groups()} if self.seen else {}),
            **({"over_refusal": self.benign.plain()} if self.benign is not None else {}),
            "attacks": {arm.name: self.row(arm) for arm in self.arms},
            "curves": {m: self.curves(m) for m in self.metrics()},
            "budget_curves": self.budget_curves(),
            **({"scaling": found} if (found := self.scaling()) else {}),
            "cost": self.cost(),
            "failures": list(self.failures),
            **({"certified": list(self.certified)} if self.certified else {}),
            **({"self_checks": [c.plain() for c in self.checks]} if self.checks else {}),
            "warnings": self.warnings(),
        }

    def fails(self, below: float | None = None) -> list[str]:
        """Why a continuous integration should stop: worthless numbers, undetermined ones, or a worst case below a bound."""
        reasons = list(self.failures)
        worst = self.worst_case()["accuracy"]
        if below is not None and not worst >= below:
            reasons.append(f"Accuracy in the worst case over the suite is {worst:.3f}, below {below:g}.")
        if self.results and all(r.status in CLOSED for r in self.results):
            reasons.append("No result could be determined.")
        return reasons

    def report(self, title: str = "Robustness report") -> Report:
        return suite_report.of(self, title)

    def markdown(self) -> str:
        return self.report().markdown()

    def html(self, path: str | Path) -> Path:
        return self.report().write(path)

    def save(self, folder: Path) -> None:
        (folder / "summary.json").write_text(json.dumps(plain(self.summary()), indent=1) + "\n", encoding="utf-8")
        self.html(folder / "report.html")

    def metrics(self) -> list[str]:
        """Numbers of the answers that have a curve over the radius."""
        known = {name.removesuffix("_after") for r in self.results for name in r.metrics if name.endswith("_after")}
        return [name for name in LABELS if name in known and any(a.radius is not None for a in self.arms)]


def plain(value: Any) -> Any:
    """For JSON, which knows neither nan nor infinity: they are null."""
    if isinstance(value, Mapping):
        return {name: plain(x) for name, x in value.items()}
    if isinstance(value, list | tuple):
        return [plain(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _budgets(largest: int) -> list[float]:
    found = [1.0]
    while found[-1] < largest:
        found.append(found[-1] * (2.5 if str(int(found[-1]))[0] == "2" else 2.0))
    return found


def _attempts(found: Sequence[AttackResult]) -> dict[str, float]:
    """Success of single attempts: those on one example are not independent, so the interval is over examples."""
    broken, tried = (torch.tensor([getattr(r, name) for r in found], dtype=torch.float64) for name in ("broken", "attempts"))
    rate, low, high = intervals.clustered(broken, tried)
    return {"success per attempt": rate, "per attempt low": low, "per attempt high": high, "attempts": int(tried.sum())}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


__all__ = ["Arm", "SuiteResult", "plain"]

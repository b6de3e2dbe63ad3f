"""Does an attack's number mean what it seems to? A list of checks, each pass, warn or fail, with its figures and what to do
(after arXiv:1802.00420, section 3.1, and arXiv:1902.06705; arXiv:2402.09063 for the unbounded attack on language models).

    from advalign.evaluation import selfcheck
    checks = selfcheck.run(network, examples, radius=0.05, seed=0)
    print(selfcheck.markdown(checks))
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.progress import track

from advalign.engine.rng import rng
from advalign.errors import ConfigError, unknown
from advalign.evaluation.reports.report import Report
from advalign.evaluation.selfcheck import checks as single
from advalign.evaluation.selfcheck import pairwise as compare
from advalign.evaluation.selfcheck.checks import NOTE, Bench, Check, rows_of
from advalign.evaluation.selfcheck.probe import AttackProbe
from advalign.functional import balls
from advalign.targets.target import NetworkTarget, named, target_of
from advalign.training.logs import read
from advalign.types import Example, ThreatModel

CHECKS: dict[str, Callable[[Bench], Check]] = {
    "randomised": single.randomised,
    "constant": single.constant,
    "logits": single.logits,
    "gradients": single.gradients,
    "first_order": single.first_order,
    "ordering": compare.ordering,
    "gradient_free": compare.gradient_free,
    "converged": compare.converged,
    "dropout": compare.dropout,
    "radius": compare.radius,
    "unbounded": compare.unbounded,
    "loss": compare.losses,
    "outputs": single.outputs,
}


@dataclass(frozen=True, kw_only=True)
class SelfCheck:
    """The effort. `threat`: that of the attack under scrutiny, by default 5 % of the mean embedding norm per token (the prompt's,
    for generators). That attack is PGD with `steps` steps of 2.5 / `steps` of the radius and `restarts` random starts; `queries`: of the
    attack without gradients; `number`: of examples, out of those that a classifier gets right or that have a reference response."""

    threat: ThreatModel | None = None
    steps: int = 10
    restarts: int = 1
    queries: int = 80
    number: int = 16
    max_new_tokens: int = 16
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "restarts", "queries", "number", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"self-check.{name}: {getattr(self, name)} given; at least 1.")
        if self.threat is not None:
            balls.check(self.threat, "self-check.threat")
            if self.threat.radius == 0:
                raise ConfigError("self-check.threat.radius: 0 given; a ball of radius 0 holds no attack to check.")

    def run(
        self,
        model: Any,
        examples: Sequence[Example],
        *,
        transfer: Sequence[Any] = (),
        folder: str | Path | None = None,
        only: Sequence[str] = (),
        progress: bool = False,
    ) -> list[Check]:
        """Checks of a network (or target). `transfer`: networks whose edits are tried on this one; `folder`: of the training run;
        `only`: the names of some checks, instead of all that apply."""
        target = model if isinstance(model, NetworkTarget) else target_of(model)
        bench = self._bench(target, named(examples))
        todo = _chosen(bench.classifies, only)
        found = [] if folder is None else training(folder)
        detached = _detached(bench)
        if detached:
            todo = [check for check in todo if check in (single.randomised, single.constant)]
            found.append(Check(name="gradients", status="fail", figures={}, meaning=detached))
        spent = target.num_queries
        for check in track(todo, description="self-checks", disable=not progress):
            found.append(replace(check(bench), queries=target.num_queries - spent))
            spent = target.num_queries
        if not detached:
            found += compare.transfer_checks(bench, transfer)
        return found

    def _bench(self, target: Any, examples: Sequence[Example]) -> Bench:
        left_on, classifies = single.switched_on(target.network), target.network.head == "classifier"
        sample = rng(self.seed, "self-check").sample(list(examples), len(examples))
        shown: list[str] = []
        if classifies:
            sample = sample[: 4 * self.number]
            unlabelled = next((e.id for e in sample if e.label is None), None)
            if unlabelled is not None:
                raise ConfigError(f"self-check: example '{unlabelled}' has no label; a classifier is checked on labels.")
            pairs = [e.pair or "" for e in sample] if sample and sample[0].pair is not None else None
            shown = [str(k) for k in target.predict([e.prompt for e in sample], pairs).argmax(1).tolist()] if sample else []
            kept = [e for e, k in zip(sample, shown, strict=True) if str(e.label) == k]
        else:
            kept = [e for e in sample if e.meta.get("response", e.answer) is not None]
        if not kept:
            needed = "that the classifier gets right" if classifies else "with a reference response (meta['response'] or an answer)"
            raise ConfigError(f"self-check: none of {len(sample)} examples is one {needed}; there is nothing to attack.")
        threat = self.threat or default_threat(target.network)
        return Bench(
            probe=AttackProbe(target, kept[: self.number], threat, seed=self.seed, batch_size=self.batch_size),
            steps=self.steps,
            restarts=self.restarts,
            queries=self.queries,
            max_new_tokens=self.max_new_tokens,
            shown=shown,
            labels=[str(e.label) for e in sample],
            dropout_on=left_on,
        )


def run(model: Any, examples: Sequence[Example], *, radius: float | None = None, **options: Any) -> list[Check]:
    """`SelfCheck(...).run(model, examples, ...)` in one call; `radius` alone keeps the rest of the threat model."""
    when = {name: options.pop(name) for name in ("transfer", "folder", "only", "progress") if name in options}
    if radius is not None:
        network = model.network if isinstance(model, NetworkTarget) else model
        options["threat"] = replace(options.get("threat") or default_threat(network), radius=radius)
    return SelfCheck(**options).run(model, examples, **when)


def default_threat(network: Any) -> ThreatModel:
    return ThreatModel(radius=0.05, where="all" if network.head == "classifier" else "prompt")


def of_suite(suite: Any, network: Any, **options: Any) -> list[Check]:
    """Checks on a suite's data, in the threat model of its first gradient attack that steps, at the middle one of its radii."""
    stepping = [a for a in suite.attacks.values() if getattr(getattr(a, "adversary", None), "steps", 0) > 0]
    threat = stepping[0].threat if stepping else None
    if threat is not None and suite.radii:
        threat = replace(threat, radius=sorted(suite.radii)[len(suite.radii) // 2])
    return run(network, suite._examples(network), threat=threat, seed=suite.seed, **options)


def training(folder: str | Path) -> list[Check]:
    """What inner loops climbed, from the log of a run: gain / |loss_start|, in quarters of the run. One check per adversary."""
    rows, checks = read(folder), []
    for name in sorted({key.removesuffix("/gain") for row in rows for key in row if key.endswith("/gain")}):
        pairs = [(row.get(f"{name}/loss_start"), row.get(f"{name}/loss_end")) for row in rows]
        kept = [(start, end) for start, end in pairs if start is not None and end is not None]
        if not kept:
            continue
        size = max(1, len(kept) // 4)
        quarters = [kept[i : i + size] for i in range(0, len(kept) - size + 1, size)]
        means = [(fmean(start for start, _ in q), fmean(end for _, end in q)) for q in quarters]
        ratios = [(end - start) / abs(start) if start else math.inf for start, end in means]
        status = "fail" if ratios[-1] <= 0 else "warn" if ratios[-1] < 0.1 * max(ratios) else "pass"
        good = "The inner loop climbs, and at the end no less than it did."
        bad = (
            "The inner loop climbs nothing, or far less than it did: evaluate with many steps and restarts (catastrophic overfitting), "
            "and look at `gradients` and `loss` (saturation)."
        )
        figures = {"relative gain, first": ratios[0], "relative gain, largest": max(ratios), "relative gain, last": ratios[-1]}
        figures |= {"loss_end / loss_start, last": means[-1][1] / means[-1][0] if means[-1][0] > 0 else math.nan, "steps logged": len(kept)}
        checks.append(Check(name=f"training {name}", status=status, figures=figures, meaning=good if status == "pass" else bad))
    return checks


def markdown(checks: Sequence[Check]) -> str:
    return report(checks).markdown()


def report(checks: Sequence[Check]) -> Report:
    """A page of its own; a suite's report carries the same table."""
    number = {status: sum(c.status == status for c in checks) for status in ("pass", "warn", "fail")}
    return Report("Self-checks", ", ".join(f"{n} {status}" for status, n in number.items())).table(rows_of(checks), note=NOTE)


def to_json(checks: Sequence[Check]) -> str:
    """A list of objects; what is nan or infinite is null."""
    return json.dumps([check.plain() for check in checks], indent=1)


def _chosen(classifies: bool, only: Sequence[str]) -> list[Callable[[Bench], Check]]:
    """The checks that apply to a head, or those of them that are named."""
    applies = {
        name: check for name, check in CHECKS.items() if name not in (("outputs",) if classifies else ("constant", "logits", "loss"))
    }
    for name in only:
        if name not in applies:
            raise unknown("self-check.only", "check", name, applies)
    return [check for name, check in applies.items() if not only or name in only]


def _detached(bench: Bench) -> str:
    """Why no gradient reaches the hidden states at all; empty where one does."""
    try:
        _ = bench.input_gradients
    except RuntimeError as error:
        if not any(words in str(error) for words in ("does not require grad", "not have been used")):
            raise
        return (
            "No gradient reaches the hidden states (something inside cuts the graph), so no gradient attack runs and the checks that "
            "need one were left out: give the cut a differentiable surrogate."
        )
    return ""


__all__ = ["Check", "SelfCheck", "markdown", "of_suite", "report", "run", "to_json", "training"]

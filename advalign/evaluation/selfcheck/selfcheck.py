"""Whether the number an attack reports can be trusted: checks that pass, warn or fail, with their figures and the remedy (after
arXiv:1802.00420, section 3.1, and arXiv:1902.06705; arXiv:2402.09063 for the unbounded attack on language models).

from advalign.evaluation.selfcheck import selfcheck
checks = selfcheck.run(network, examples, radius=0.05, seed=0)
print(selfcheck.markdown(checks))
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rich.progress import track

from advalign.checked import Checked
from advalign.engine.rng import rng
from advalign.errors import ConfigError, unknown
from advalign.evaluation.reports.checks import NOTE, Check, check_rows
from advalign.evaluation.reports.report import Report
from advalign.evaluation.selfcheck import checks as single
from advalign.evaluation.selfcheck import pairwise
from advalign.evaluation.selfcheck.checks import Bench
from advalign.evaluation.selfcheck.probe import AttackProbe
from advalign.metrics import run_log
from advalign.models import Network
from advalign.ranges import Count, Seed
from advalign.targets import NetworkTarget, network_target
from advalign.targets.examples import has_reference_response, paired_texts, with_ids
from advalign.types import Example, ThreatModel

if TYPE_CHECKING:
    from advalign.evaluation.suites.suite import Suite

CHECKS: dict[str, Callable[[Bench], Check]] = {
    "randomised": single.randomised,
    "constant": single.constant,
    "logits": single.logits,
    "gradients": single.gradients,
    "first_order": single.first_order,
    "ordering": pairwise.ordering,
    "gradient_free": pairwise.gradient_free,
    "converged": pairwise.converged,
    "dropout": pairwise.dropout,
    "radius": pairwise.radius,
    "unbounded": pairwise.unbounded,
    "loss": pairwise.losses,
    "outputs": single.outputs,
}


@dataclass(frozen=True, kw_only=True)
class SelfCheck(Checked, section="self-check"):
    """The effort of the checks. The base attack is PGD with steps of 2.5 / `steps` of the radius."""

    threat: ThreatModel | None = None
    """Of the base attack; None: L2, 5 % of the mean embedding norm per token (for generators: of the prompt)."""
    steps: Count = 10
    """Of the base attack."""
    restarts: Count = 1
    """Random starts of the base attack."""
    queries: Count = 80
    """Of the attack without gradients, per example."""
    number: Count = 16
    """Examples, out of those that a classifier gets right or that have a reference response."""
    max_new_tokens: Count = 16
    """Length of a generator's responses."""
    batch_size: Count = 32
    """Examples per forward; the results do not depend on it."""
    seed: Seed = 0
    """Of the choice of examples and of every random stream."""

    def __post_init__(self) -> None:
        if self.threat is not None and self.threat.radius == 0:
            raise ConfigError("self-check.threat.radius: 0 given; a ball of radius 0 holds no attack to check.")

    def run(
        self,
        model: Network | NetworkTarget,
        examples: Sequence[Example],
        *,
        transfer: Sequence[Network] = (),
        folder: str | Path | None = None,
        only: Sequence[str] = (),
        progress: bool = False,
    ) -> list[Check]:
        """Checks of a network (or target). `transfer`: networks whose edits are tried on this one; `folder`: of the training run;
        `only`: names of checks, instead of all that apply."""
        target = model if isinstance(model, NetworkTarget) else network_target(model)
        bench = self._bench(target, with_ids(examples))
        selected = _selected(bench.classifies, only)
        checks = [] if folder is None else training(folder)
        detached = _detached(bench)
        if detached:
            selected = [check for check in selected if check in (single.randomised, single.constant)]
            checks.append(Check(name="gradients", status="fail", figures={}, meaning=detached))
        spent = target.num_queries
        for check in track(selected, description="self-checks", disable=not progress):
            checks.append(replace(check(bench), queries=target.num_queries - spent))
            spent = target.num_queries
        if not detached:
            checks += pairwise.transfer_checks(bench, transfer)
        return checks

    def _bench(self, target: NetworkTarget, examples: Sequence[Example]) -> Bench:
        dropout_on, classifies = single.dropout_is_active(target.network), target.head == "classifier"
        sample = rng(self.seed, "self-check").sample(list(examples), len(examples))
        predictions: list[str] = []
        if classifies:
            sample = sample[: 4 * self.number]
            predictions = _predictions(target, sample)
            usable = [e for e, prediction in zip(sample, predictions, strict=True) if str(e.label) == prediction]
        else:
            usable = [e for e in sample if has_reference_response(e)]
        if not usable:
            needed = "that the classifier gets right" if classifies else "with a reference response (meta['response'] or an answer)"
            raise ConfigError(f"self-check: none of {len(sample)} examples is one {needed}; there is nothing to attack.")
        threat = self.threat or default_threat(target.network)
        return Bench(
            probe=AttackProbe(target, usable[: self.number], threat, seed=self.seed, batch_size=self.batch_size),
            steps=self.steps,
            restarts=self.restarts,
            queries=self.queries,
            max_new_tokens=self.max_new_tokens,
            predictions=predictions,
            labels=[str(e.label) for e in sample],
            dropout_on=dropout_on,
        )


def run(
    model: Network | NetworkTarget,
    examples: Sequence[Example],
    *,
    radius: float | None = None,
    threat: ThreatModel | None = None,
    transfer: Sequence[Network] = (),
    folder: str | Path | None = None,
    only: Sequence[str] = (),
    progress: bool = False,
    **effort: Any,
) -> list[Check]:
    """`SelfCheck(threat=threat, **effort).run(model, examples, ...)` in one call; `radius` replaces that of the threat model."""
    if radius is not None:
        network = model.network if isinstance(model, NetworkTarget) else model
        threat = replace(threat or default_threat(network), radius=radius)
    check = SelfCheck(threat=threat, **effort)
    return check.run(model, examples, transfer=transfer, folder=folder, only=only, progress=progress)


def default_threat(network: Network) -> ThreatModel:
    """L2, 5 % of the mean embedding norm per token; for generators, on the prompt."""
    return ThreatModel(radius=0.05, where="all" if network.head == "classifier" else "prompt")


def of_suite(suite: Suite, network: Network, **options: Any) -> list[Check]:
    """Checks on a suite's data, in the threat model of its first gradient attack that steps, at the middle one of its radii.

    `options`: those of `run`.
    """
    stepping = [a for a in suite.attacks.values() if a.gradient_steps > 0]
    threat = stepping[0].threat if stepping else None
    if threat is not None and suite.radii:
        threat = replace(threat, radius=sorted(suite.radii)[len(suite.radii) // 2])
    return run(network, suite.examples_for(network), threat=threat, seed=suite.seed, **options)


def training(folder: str | Path) -> list[Check]:
    """The gains of inner loops in the log of a run: gain / |loss_start|, in quarters of the run. One check per adversary."""
    rows = run_log.read(folder)
    names = sorted({key.removesuffix("/gain") for row in rows for key in row if key.endswith("/gain")})
    return [check for name in names if (check := _training_check(rows, name)) is not None]


def _training_check(rows: Sequence[Mapping[str, Any]], name: str) -> Check | None:
    pairs = [(row.get(f"{name}/loss_start"), row.get(f"{name}/loss_end")) for row in rows]
    losses = [(start, end) for start, end in pairs if start is not None and end is not None]
    if not losses:
        return None
    size = max(1, len(losses) // 4)
    quarters = [losses[i : i + size] for i in range(0, len(losses) - size + 1, size)]
    means = [(fmean(start for start, _ in q), fmean(end for _, end in q)) for q in quarters]
    ratios = [(end - start) / abs(start) if start else math.inf for start, end in means]
    figures = {"relative gain, first": ratios[0], "relative gain, largest": max(ratios), "relative gain, last": ratios[-1]}
    figures |= {"loss_end / loss_start, last": means[-1][1] / means[-1][0] if means[-1][0] > 0 else math.nan, "steps logged": len(losses)}
    return single.check_result(
        f"training {name}",
        "fail" if ratios[-1] <= 0 else "warn" if ratios[-1] < 0.1 * max(ratios) else "pass",
        figures,
        "The inner loop climbs, and at the end no less than it did.",
        "The inner loop climbs nothing, or far less than it did: evaluate with many steps and restarts (catastrophic overfitting), "
        "and look at `gradients` and `loss` (saturation).",
    )


def markdown(checks: Sequence[Check]) -> str:
    """The checks as a table."""
    return report(checks).markdown()


def report(checks: Sequence[Check]) -> Report:
    """A page of its own; a suite's report carries the same table."""
    number = {status: sum(c.status == status for c in checks) for status in ("pass", "warn", "fail")}
    return Report("Self-checks", ", ".join(f"{n} {status}" for status, n in number.items())).table(check_rows(checks), note=NOTE)


def to_json(checks: Sequence[Check]) -> str:
    """A list of objects; a figure that is nan or infinite is null."""
    return json.dumps([check.to_json() for check in checks], indent=1)


def _selected(classifies: bool, only: Sequence[str]) -> list[Callable[[Bench], Check]]:
    """The checks that apply to a head; with `only`, those of them that it names."""
    excluded = ("outputs",) if classifies else ("constant", "logits", "loss")
    applicable = {name: check for name, check in CHECKS.items() if name not in excluded}
    for name in only:
        if name not in applicable:
            raise unknown("self-check.only", "check", name, applicable)
    return [check for name, check in applicable.items() if not only or name in only]


def _predictions(target: NetworkTarget, examples: Sequence[Example]) -> list[str]:
    unlabelled = next((e.id for e in examples if e.label is None), None)
    if unlabelled is not None:
        raise ConfigError(f"self-check: example '{unlabelled}' has no label; a classifier is checked on labels.")
    if not examples:
        return []
    return [str(k) for k in target.predict([e.prompt for e in examples], paired_texts(examples)).argmax(1).tolist()]


def _detached(bench: Bench) -> str:
    """Why no gradient reaches the hidden states at all; empty if one does."""
    try:
        _ = bench.input_gradients
    except RuntimeError as error:
        if not any(part in str(error) for part in ("does not require grad", "not have been used")):
            raise
        return (
            "No gradient reaches the hidden states (something inside cuts the graph), so no gradient attack runs and the checks that "
            "need one were left out: give the cut a differentiable surrogate."
        )
    return ""


__all__ = ["Check", "SelfCheck", "markdown", "of_suite", "report", "run", "to_json", "training"]

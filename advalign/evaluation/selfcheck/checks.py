"""Self-checks of the model itself: is it deterministic, does it say anything, has it gradients, do they predict what it does.

Every check is a function of one `Bench` that says what it measured, where it warns and fails, and what to do. Those that compare
attacks with one another are in `comparisons`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from advalign.evaluation.reports.report import show
from advalign.evaluation.selfcheck.probe import AttackProbe
from advalign.metrics import utility
from advalign.targets.target import Edits
from advalign.types import Sampling


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the table. status: "pass" | "warn" | "fail"; `queries`: what it cost, over all examples."""

    name: str
    status: str
    figures: Mapping[str, float]
    meaning: str
    queries: int = 0

    def plain(self) -> dict[str, Any]:
        """For JSON: what is nan or infinite is None."""
        return asdict(self) | {"figures": {name: x if math.isfinite(x) else None for name, x in self.figures.items()}}


NOTE = "Gains are rises of the margin (classifiers) or of the negative log-likelihood (generators); queries are those of all examples."


def rows_of(checks: Sequence[Check]) -> list[dict[str, Any]]:
    """The checks as lines of a table."""
    lines = []
    for check in checks:
        figures = "; ".join(f"{name} {show(value)}" for name, value in check.figures.items())
        line = {"check": check.name, "status": check.status, "figures": figures, "meaning": check.meaning, "queries": check.queries}
        lines.append(line)
    return lines


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What the checks share: the probe, the effort of the attack under scrutiny (`base`), the predictions nobody attacked."""

    probe: AttackProbe
    steps: int
    restarts: int
    queries: int
    max_new_tokens: int
    shown: Sequence[str]
    labels: Sequence[str]
    dropout_on: bool

    @property
    def step_size(self) -> float:
        """Long enough to cross the ball (`pgd`); the same for more steps, whose first ones are then these."""
        return 2.5 / self.steps

    @cached_property
    def edits(self) -> list[Edits]:
        return self.probe.attack(steps=self.steps, step_size=self.step_size, restarts=self.restarts)

    @cached_property
    def base(self) -> Tensor:
        """Gains of the attack under scrutiny."""
        return self.probe.gain(self.edits)

    @cached_property
    def input_gradients(self) -> list[Edits]:
        return self.probe.input_gradients()

    def rate(self, gain: Tensor) -> float:
        return self.probe.broken(gain).double().mean().item()

    @property
    def classifies(self) -> bool:
        return self.probe.target.network.head == "classifier"


def randomised(bench: Bench) -> Check:
    """Two forwards of the same texts."""
    difference = (bench.probe.scores() - bench.probe.clean).abs().max() / bench.probe.clean.abs().max().clamp(min=1e-12)
    figures = {"largest relative difference": difference.item(), "dropout left on": float(bench.dropout_on)}
    if difference > 1e-4:
        return Check(
            name="randomised",
            status="fail",
            figures=figures,
            meaning="Two forwards of one text differ: switch the randomness off, or attack and report the expectation over it.",
        )
    if bench.dropout_on:
        left = "Dropout was left on in the model handed over: this harness switches it off, any other code must call eval() first."
        return Check(name="randomised", status="warn", figures=figures, meaning=left)
    good = "Two forwards of one text agree, so the answer that is attacked is the answer that is judged."
    return Check(name="randomised", status="pass", figures=figures, meaning=good)


def constant(bench: Bench) -> Check:
    """The most frequent prediction of a classifier."""
    share = max(map(bench.shown.count, set(bench.shown))) / len(bench.shown)
    return check_result(
        "constant",
        "fail" if utility.constant(bench.shown, bench.labels) else "pass",
        {"share of the most frequent prediction": share, "examples": len(bench.shown)},
        "The model gives different answers to different texts.",
        "The model answers the same to almost everything and so is as accurate under any attack as without: its robustness means nothing.",
    )


def logits(bench: Bench) -> Check:
    """Outputs of a classifier that are probabilities (or their logarithms) already: rows of its answers that sum to 1."""
    probe = bench.probe
    pairs = [e.pair or "" for e in probe.examples] if probe.examples[0].pair is not None else None
    rows = probe.target.predict([e.prompt for e in probe.examples], pairs).double()
    sums = {"softmax": rows.sum(1), "log-softmax": rows.exp().sum(1)}
    shares = {name: ((x - 1).abs() < 1e-3).double().mean().item() for name, x in sums.items()}
    proper = bool((rows >= 0).all()) and rows.shape[1] > 1
    taken = (shares["softmax"] if proper else 0.0) > 0.99
    return check_result(
        "logits",
        "fail" if taken else "pass",
        {f"rows that are a {name}": share if name != "softmax" or proper else 0.0 for name, share in shares.items()},
        "The model hands over logits (log-probabilities are as good: a softmax leaves them as they are).",
        "The model returns probabilities where logits are expected: every softmax after it flattens the loss, so training and "
        "cross-entropy attacks see gradients that vanish where the model is sure; return what goes into the softmax.",
    )


def gradients(bench: Bench) -> Check:
    """Examples whose gradient at delta = 0 is exactly zero, or not finite."""
    figures, status = {}, "pass"
    for loss in ("margin", "cross_entropy") if bench.classifies else ("margin",):
        sizes = torch.tensor([max(float(g.abs().max()) for g in edit.values()) for edit in bench.probe.input_gradients(loss)])
        name = loss.replace("_", "-") if bench.classifies else "log-likelihood"
        figures[f"zero, {name}"] = zero = (sizes == 0).double().mean().item()
        figures[f"not finite, {name}"] = broken = 1 - sizes.isfinite().double().mean().item()
        status = max(status, "fail" if broken > 0 else grade(zero, 0.05, 0.5), key=ORDER.index)
    return check_result(
        "gradients",
        status,
        figures,
        "Gradients are finite and not zero, so a gradient attack can move.",
        "A gradient attack cannot move where the gradient is zero or not finite: climb the margin, give the step a differentiable "
        "surrogate, and believe gradient-free attacks.",
    )


def first_order(bench: Bench) -> Check:
    """(L(delta) - L(0)) / <g, delta> for steepest steps of a hundredth and a tenth of the radius. L is the margin, or log NLL: the
    NLL itself is exponential in its logits where the model is sure, and bends without any masking."""
    probe, figures, status = bench.probe, {}, "pass"
    for share in (0.01, 0.1):
        edits = probe.along(bench.input_gradients, share)
        expected = torch.tensor([_inner(g, e) for g, e in zip(bench.input_gradients, edits, strict=True)], dtype=torch.float64)
        seen = expected > 4 * probe.floor
        figures[f"measurable at {share:g} radius"] = seen.double().mean().item()
        if not seen.any():
            continue
        gain = probe.gain(edits) if bench.classifies else probe.clean * (probe.scores(edits) / probe.clean).log()
        ratio = (gain[seen] / expected[seen]).median().item()
        figures[f"median ratio at {share:g} radius"] = ratio
        # A gradient that promises too much is shattered; one that promises too little is curved, or flat where it is saturated.
        status = max(status, "warn" if ratio > 4 else grade(1 / ratio if ratio > 0 else math.inf, 1.5, 4.0), key=ORDER.index)
    if not any(name.startswith("median") for name in figures):
        status = "fail" if all(_inner(g, g) == 0 for g in bench.input_gradients) else "warn"
    return check_result(
        "first_order",
        status,
        figures,
        "The gradient predicts what a small step does.",
        "The gradient does not predict what a small step does (masked, shattered, or lost in rounding): an attack that follows it says "
        "little; smooth the gradient over random points and compare with gradient-free attacks.",
    )


def outputs(bench: Bench) -> Check:
    """Greedy answers of a generator, clean and with the attacked prompt, that are no answers; answers that never change."""
    probe = bench.probe
    groups = probe.target.generate(probe.examples, 1, Sampling(max_new_tokens=bench.max_new_tokens, temperature=0.0), ("clean",))
    clean = [group.rollouts[0].text for group in groups]
    attacked = probe.target.continue_edited(probe.examples, bench.edits, bench.max_new_tokens)
    rates = [sum(map(degenerate, texts)) / len(texts) for texts in (clean, attacked)]
    same = max(map(clean.count, clean)) / len(clean)
    status = max(grade(rates[0], 0.05, 0.25), grade(rates[1], 0.25, 2.0), key=ORDER.index)
    return check_result(
        "outputs",
        "fail" if utility.constant(clean, [e.prompt for e in probe.examples]) else status,
        {"degenerate, clean": rates[0], "degenerate, attacked": rates[1], "most frequent answer": same},
        "Answers are words, and differ from prompt to prompt.",
        "Empty, repeating or constant answers are not robust ones, and gibberish under attack is not a success: count them separately.",
    )


def degenerate(text: str) -> bool:
    """No letter or digit; or, from eight words on, fewer than half of the word pairs distinct."""
    return not any(c.isalnum() for c in text) or (len(text.split()) >= 8 and utility.distinct_n([text], 2) < 0.5)


def switched_on(network: nn.Module) -> bool:
    """Whether a dropout layer of the model would act."""
    return any(isinstance(m, nn.Dropout) and m.training and m.p > 0 for m in network.modules())


ORDER = ("pass", "warn", "fail")


def grade(value: float, warn: float, fail: float) -> str:
    """Larger is worse."""
    return "fail" if not value <= fail else "warn" if value > warn else "pass"


def check_result(name: str, status: str, figures: Mapping[str, float], good: str, bad: str) -> Check:
    return Check(name=name, status=status, figures=figures, meaning=good if status == "pass" else bad)


def _inner(first: Edits, second: Edits) -> float:
    return sum(float((first[site].double() * second[site].double()).sum()) for site in first)


__all__ = [
    "NOTE", "ORDER", "Bench", "Check", "constant", "degenerate", "first_order", "grade", "gradients", "logits", "outputs", "randomised",
    "rows_of", "switched_on", "check_result",
]  # fmt: skip

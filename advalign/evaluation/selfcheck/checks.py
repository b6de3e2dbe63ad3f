"""Self-checks of the model itself: deterministic forwards, answers that differ, and gradients that predict its outputs.

Every check is a function of one `Bench`; its docstring says what it measures. Checks that compare attacks are in `pairwise`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor, nn

from advalign.evaluation.reports.checks import Check
from advalign.evaluation.selfcheck.probe import AttackProbe
from advalign.interfaces import Edits
from advalign.metrics import utility
from advalign.targets.examples import paired_texts
from advalign.types import Sampling


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What the checks share. The base attack is the one under scrutiny: PGD with `steps` steps and `restarts` random starts."""

    probe: AttackProbe
    """The target, the examples and the threat model."""
    steps: int
    """Of the base attack."""
    restarts: int
    """Of the base attack."""
    queries: int
    """Of the attack without gradients, per example."""
    max_new_tokens: int
    """Length of a generator's responses."""
    predictions: Sequence[str]
    """A classifier's clean predictions on a larger sample; empty for a generator."""
    labels: Sequence[str]
    """Labels of that sample."""
    dropout_on: bool
    """Whether the model was handed over with active dropout."""

    @property
    def step_size(self) -> float:
        """Long enough to cross the ball; the same for more steps, so that their first ones are the same."""
        return 2.5 / self.steps

    @cached_property
    def edits(self) -> list[Edits]:
        """Of the base attack."""
        return self.probe.attack(steps=self.steps, step_size=self.step_size, restarts=self.restarts)

    @cached_property
    def base(self) -> Float[Tensor, "N"]:
        """Gains of the base attack."""
        return self.probe.gain(self.edits)

    @cached_property
    def input_gradients(self) -> list[Edits]:
        """Of the margin, at delta = 0."""
        return self.probe.input_gradients()

    def rate(self, gain: Float[Tensor, "N"]) -> float:
        """Fraction of examples that an attack of that gain breaks."""
        return self.probe.broken(gain).double().mean().item()

    @property
    def classifies(self) -> bool:
        """Whether the model is a classifier."""
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
        active = "Dropout was left on in the model handed over: this harness switches it off, any other code must call eval() first."
        return Check(name="randomised", status="warn", figures=figures, meaning=active)
    good = "Two forwards of one text agree, so the answer that is attacked is the answer that is judged."
    return Check(name="randomised", status="pass", figures=figures, meaning=good)


def constant(bench: Bench) -> Check:
    """The most frequent prediction of a classifier."""
    fraction = max(map(bench.predictions.count, set(bench.predictions))) / len(bench.predictions)
    return check_result(
        "constant",
        "fail" if utility.constant(bench.predictions, bench.labels) else "pass",
        {"fraction of the most frequent prediction": fraction, "examples": len(bench.predictions)},
        "The model gives different answers to different texts.",
        "The model answers the same to almost everything and so is as accurate under any attack as without: its robustness means nothing.",
    )


def logits(bench: Bench) -> Check:
    """Outputs of a classifier that are probabilities (or their logarithms) already: rows of its answers that sum to 1."""
    probe = bench.probe
    rows = probe.target.predict([e.prompt for e in probe.examples], paired_texts(probe.examples)).double()
    sums = {"softmax": rows.sum(1), "log-softmax": rows.exp().sum(1)}
    fractions = {name: ((x - 1).abs() < 1e-3).double().mean().item() for name, x in sums.items()}
    nonnegative = bool((rows >= 0).all()) and rows.shape[1] > 1
    softmaxed = (fractions["softmax"] if nonnegative else 0.0) > 0.99
    return check_result(
        "logits",
        "fail" if softmaxed else "pass",
        {f"rows that are a {name}": x if name != "softmax" or nonnegative else 0.0 for name, x in fractions.items()},
        "The model returns logits (log-probabilities are as good: a softmax leaves them as they are).",
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
    for fraction in (0.01, 0.1):
        edits = probe.along(bench.input_gradients, fraction)
        expected = torch.tensor([_inner(g, e) for g, e in zip(bench.input_gradients, edits, strict=True)], dtype=torch.float64)
        measurable = expected > 4 * probe.floor
        figures[f"measurable at {fraction:g} radius"] = measurable.double().mean().item()
        if not measurable.any():
            continue
        gain = probe.gain(edits) if bench.classifies else probe.clean * (probe.scores(edits) / probe.clean).log()
        ratio = (gain[measurable] / expected[measurable]).median().item()
        figures[f"median ratio at {fraction:g} radius"] = ratio
        # A gradient that promises too much is shattered; one that promises too little is curved, or flat where it is saturated.
        status = max(status, "warn" if ratio > 4 else grade(1 / ratio if ratio > 0 else math.inf, 1.5, 4.0), key=ORDER.index)
    if not any(name.startswith("median") for name in figures):
        status = "fail" if all(_inner(g, g) == 0 for g in bench.input_gradients) else "warn"
    return check_result(
        "first_order",
        status,
        figures,
        "The gradient predicts what a small step does.",
        "The gradient does not predict what a small step does (masked, shattered, or lost in rounding): an attack that follows it proves "
        "little; smooth the gradient over random points and compare with gradient-free attacks.",
    )


def outputs(bench: Bench) -> Check:
    """Degenerate greedy answers of a generator, clean and under attack; answers that never change."""
    probe = bench.probe
    groups = probe.target.generate(probe.examples, 1, Sampling(max_new_tokens=bench.max_new_tokens, temperature=0.0), ("clean",))
    clean = [group.rollouts[0].text for group in groups]
    attacked = probe.target.continue_edited(probe.examples, bench.edits, bench.max_new_tokens)
    rates = [sum(map(utility.degenerate, texts)) / len(texts) for texts in (clean, attacked)]
    same = max(map(clean.count, clean)) / len(clean)
    status = max(grade(rates[0], 0.05, 0.25), grade(rates[1], 0.25, 2.0), key=ORDER.index)
    return check_result(
        "outputs",
        "fail" if utility.constant(clean, [str(e.prompt) for e in probe.examples]) else status,
        {"degenerate, clean": rates[0], "degenerate, attacked": rates[1], "most frequent answer": same},
        "Answers are words, and differ from prompt to prompt.",
        "Empty, repeating or constant answers are not robust ones, and gibberish under attack is not a success: count them separately.",
    )


def dropout_is_active(network: nn.Module) -> bool:
    """Whether a dropout layer of the model would act."""
    return any(isinstance(m, nn.Dropout) and m.training and m.p > 0 for m in network.modules())


ORDER = ("pass", "warn", "fail")


def grade(value: float, warn: float, fail: float) -> str:
    """The status of a value of which larger is worse."""
    return "fail" if not value <= fail else "warn" if value > warn else "pass"


def check_result(name: str, status: str, figures: Mapping[str, float], good: str, bad: str) -> Check:
    """The check, with the meaning that belongs to its status."""
    return Check(name=name, status=status, figures=figures, meaning=good if status == "pass" else bad)


def _inner(first: Edits, second: Edits) -> float:
    return sum(float((first[site].double() * second[site].double()).sum()) for site in first)


__all__ = [
    "ORDER", "Bench", "check_result", "constant", "dropout_is_active", "first_order", "grade", "gradients", "logits", "outputs",
    "randomised",
]  # fmt: skip

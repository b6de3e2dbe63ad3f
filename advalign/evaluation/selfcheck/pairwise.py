"""Self-checks that compare the base attack (PGD) with others of the same threat model: weaker ones, which must gain less, stronger
ones, which must gain no more, and ones without gradients or without a ball. Gains are differences of scores (see `probe`) and every
figure is a rate or a ratio of them, so none depends on the scale of the logits.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from advalign.errors import ConfigError
from advalign.evaluation.reports.checks import Check
from advalign.evaluation.selfcheck.checks import ORDER, Bench, check_result, grade
from advalign.models import Network
from advalign.targets import network_target


def ordering(bench: Bench) -> Check:
    """Random directions of the same norm, best of as many as the base attack evaluated; one steepest step; the base attack."""
    probe, draws = bench.probe, (bench.steps + 1) * bench.restarts
    noise = torch.stack([probe.gain(probe.along(probe.random(i))) for i in range(draws)])
    best, one = noise.amax(0).clamp(min=0), probe.gain(probe.along(bench.input_gradients))
    figures = {"noise": noise.mean().item(), "best of as much noise": best.mean().item(), "one step": one.mean().item()}
    figures |= {"pgd": bench.base.mean().item(), "broken by one step": bench.rate(one), "broken by pgd": bench.rate(bench.base)}
    status = grade(figures["best of as much noise"] / max(figures["pgd"], probe.floor), 0.67, 0.9)
    if figures["one step"] <= figures["noise"] or figures["broken by pgd"] - figures["broken by one step"] > 0.75:
        status = max(status, "warn", key=ORDER.index)
    figures["one step beats pgd on"] = better = probe.beaten(one, bench.base)
    status = max(status, grade(better, 0.1, 0.25), key=ORDER.index)
    return check_result(
        "ordering",
        status,
        figures,
        "Gains rise from random noise over one step to the full attack, as they must.",
        "Noise, one step and the full attack are not in their order: gradients carry no information (noise as good), mislead (one step "
        "better), or hold for one step only (catastrophic overfitting); do not quote this attack's number.",
    )


def gradient_free(bench: Bench) -> Check:
    """An evolution strategy and random search in the same ball."""
    gain = bench.probe.gain(bench.probe.gradient_free(bench.queries))
    beaten = bench.probe.beaten(gain, bench.base)
    figures = {"pgd beaten on": beaten, "gain": gain.mean().item(), "gain of pgd": bench.base.mean().item()}
    check = check_result(
        "gradient_free",
        grade(beaten, 0.05, 0.2),
        figures | {"broken": bench.rate(gain), "broken by pgd": bench.rate(bench.base)},
        "An attack without gradients gains less than the one with them.",
        "An attack on scores alone beats the one with gradients: gradients are masked; count each example by its worst attack.",
    )
    return _compared(bench, check)


def converged(bench: Bench) -> Check:
    """Four times the steps, three times the restarts, smaller and larger steps."""
    probe, arms = bench.probe, {}
    arms["4 x steps"] = probe.attack(steps=4 * bench.steps, step_size=bench.step_size, restarts=bench.restarts)
    arms["3 x restarts"] = probe.attack(steps=bench.steps, restarts=3 * bench.restarts)
    for factor in (0.2, 4.0):
        arms[f"{factor:g} x step size"] = probe.attack(steps=bench.steps, step_size=factor * bench.step_size, restarts=bench.restarts)
    gains = {name: probe.gain(edits) for name, edits in arms.items()}
    best = torch.stack([bench.base, *gains.values()]).amax(0)
    rise = bench.rate(best) - bench.rate(bench.base)
    # Beyond the point where an example is broken, more gain changes no rate.
    improved = probe.beaten(best, 1.1 / 1.05 * bench.base)
    figures = {"base": bench.base.mean().item()} | {name: g.mean().item() for name, g in gains.items()}
    check = check_result(
        "converged",
        max(grade(rise, 0.05, 0.25), grade(improved, 0.3, 0.75), key=ORDER.index),
        figures | {"broken by base": bench.rate(bench.base), "broken by any": bench.rate(best), "gain rises by 10 % on": improved},
        "More steps, more restarts and other step sizes change little: the attack has converged.",
        "More effort gains more: raise steps and restarts until the rate is stable, and report that rate.",
    )
    return _compared(bench, check)


def losses(bench: Bench) -> Check:
    """Margin, cross-entropy and targeted loss, same effort."""
    effort: dict[str, Any] = {"steps": bench.steps, "restarts": bench.restarts}
    gains = {"margin": bench.base} | {n: bench.probe.gain(bench.probe.attack(loss=n, **effort)) for n in ("cross_entropy", "targeted")}
    means = {name: gain.mean().item() for name, gain in gains.items()}
    strongest = max(means.values())
    weakest = min(means.values()) / strongest if strongest > bench.probe.floor else 1.0
    rates = {f"broken by {name}": bench.rate(gain) for name, gain in gains.items()}
    check = check_result(
        "loss",
        grade(1 - weakest, 0.2, 0.5),
        means | rates,
        "All losses that the attack can climb are equally strong.",
        "Losses differ, as they do where the softmax is saturated: attack the margin, never the cross-entropy alone, and take the worst.",
    )
    return _compared(bench, check)


def dropout(bench: Bench) -> Check:
    """The attack with gradients of the model in training mode, judged in evaluation mode."""
    target, network = bench.probe.target, bench.probe.target.network
    modes = {module: module.training for module in network.modules()}
    state = torch.random.get_rng_state()
    network.train()
    target.dropout = True
    try:
        edits = bench.probe.attack(steps=bench.steps, restarts=bench.restarts)
    finally:
        target.dropout = False
        torch.random.set_rng_state(state)
        for module, mode in modes.items():
            module.training = mode
    gain = bench.probe.gain(edits)
    beaten = bench.probe.beaten(gain, bench.base)
    check = check_result(
        "dropout",
        grade(beaten, 0.1, 0.25),
        {"beaten on": beaten, "gain, training mode": gain.mean().item(), "gain, evaluation mode": bench.base.mean().item()},
        "Gradients of training mode gain no more than those of evaluation mode.",
        "Gradients of training mode gain more than those of evaluation mode: something that is active in evaluation only masks them.",
    )
    return _compared(bench, check)


def radius(bench: Bench) -> Check:
    """PGD at 1/4, 1, 4, 16, ... times the radius, until everything is broken."""
    probe, figures, falls = bench.probe, {}, 0.0
    previous: Tensor | None = None
    for factor in (0.25, 1.0, 4.0, 16.0, 64.0, 256.0):
        gain = probe.gain(probe.attack(steps=2 * bench.steps, radius=factor * probe.threat.radius, restarts=bench.restarts))
        figures[f"broken at {factor:g} x"] = bench.rate(gain)
        if previous is not None:
            falls = max(falls, probe.beaten(previous, gain))
        previous = gain
        if factor >= 4 and bench.rate(gain) == 1:
            break
    figures["weaker at the next radius on"] = falls
    end = bench.rate(previous) if previous is not None else 0.0
    return check_result(
        "radius",
        max(grade(falls, 0.1, 0.25), grade(1 - end, 0.01, 0.1), key=ORDER.index),
        figures,
        "The attack grows with the radius and ends by breaking everything.",
        "A larger ball contains the smaller one and a large one contains every text: an attack that is weaker there, or leaves examples "
        "unbroken, is not converged or lacks gradients.",
    )


def unbounded(bench: Bench) -> Check:
    """Steepest ascent from zero that is never projected, in steps of the radius, then 8, 64 and 512 times that."""
    probe, figures = bench.probe, {}
    broken = torch.zeros(len(probe.examples), dtype=torch.bool)
    for factor in (1, 8, 64, 512):
        far, steps = 1e6 * factor, 2 * bench.steps
        edits = probe.attack(steps=steps, step_size=1e-6, radius=far * probe.threat.radius, random_start=False)
        broken = broken | probe.broken(probe.gain(edits))
        figures[f"broken, steps of {factor} x radius"] = broken.double().mean().item()
        if broken.all():
            break
    return check_result(
        "unbounded",
        grade(1 - broken.double().mean().item(), 0.01, 0.1),
        figures,
        "Without a ball everything breaks, so the attack works.",
        "Unlimited hidden states can produce any output; an attack that still fails is broken or masked, and its bounded number too.",
    )


def transfer_checks(bench: Bench, surrogates: Sequence[Network]) -> list[Check]:
    """Edits found on other models of the same token and hidden spaces, judged on this one."""
    probe, checks = bench.probe, []
    for number, network in enumerate(surrogates):
        other = network_target(network)
        ids = [t.tokens(probe.examples).ids for t in (probe.target, other)]
        widths = [[t.network.width(site) for site in probe.threat.sites] for t in (probe.target, other)]
        if not torch.equal(*ids) or widths[0] != widths[1] or network.head != probe.target.network.head:
            raise ConfigError(
                f"self-check: transfer model {number} has another head, tokenizer or hidden size; edits cannot be carried over."
            )
        scale = probe.target.unit(probe.threat) / other.unit(probe.threat)
        effort: dict[str, Any] = {"steps": bench.steps, "restarts": bench.restarts, "radius": scale * probe.threat.radius}
        gain = probe.gain(probe.attack(gradients_of=other, **effort))
        beaten = probe.beaten(gain, bench.base)
        check = check_result(
            f"transfer {number}" if len(surrogates) > 1 else "transfer",
            grade(beaten, 0.05, 0.2),
            {"pgd beaten on": beaten, "gain": gain.mean().item(), "gain of pgd": bench.base.mean().item(), "broken": bench.rate(gain)},
            "What breaks the other model breaks this one less than its own gradients do.",
            "Edits found on another model beat those found on this one: its own gradients are masked; report the worst of both.",
        )
        checks.append(_compared(bench, check))
    return checks


def _compared(bench: Bench, check: Check) -> Check:
    """A comparison with a base attack that gains nothing is a warning."""
    if check.status != "pass" or bench.base.max() > bench.probe.floor:
        return check
    meaning = "The base attack gains nothing at all, so there is nothing to compare: see `gradients` and `constant` first."
    return replace(check, status="warn", meaning=meaning)


__all__ = ["converged", "dropout", "gradient_free", "losses", "ordering", "radius", "transfer_checks", "unbounded"]

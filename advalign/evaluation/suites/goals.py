"""Which way attacks on the reference response move it: to what the judge of the suite calls a violation."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from advalign.errors import ConfigError
from advalign.evaluation.suites.generator_checker import GeneratorChecker
from advalign.interfaces import Attack
from advalign.models import Network
from advalign.targets import BlackBoxModel
from advalign.types import Example

OPPOSITE = {"raise": "lower", "lower": "raise"}


@dataclass(frozen=True, kw_only=True)
class Aimed:
    """Attacks that have their goals."""

    attacks: Mapping[str, Attack]
    """By name."""
    notes: Sequence[str] = ()
    """Sentences about goals that may be wrong."""


def aimed(attacks: Mapping[str, Attack], checker: GeneratorChecker, examples: Sequence[Example]) -> Aimed:
    """Attacks whose goal was left open get the one that follows from what is judged: a reference response that is a violation is brought
    about (lower its loss), one that is right is kept away (raise it). A goal of their own that contradicts it stays, and is said."""
    moving = {name: attack for name, attack in attacks.items() if attack.moves_reference}
    examples = [e for e in examples if e.reference is not None]
    if not moving or not examples:
        return Aimed(attacks=attacks)
    judged = [
        j for j in checker.judgements(examples, [e.reference or "" for e in examples], [math.nan] * len(examples)) if not j.undetermined
    ]
    number, violations, notes = len(judged), sum(j.breaks for j in judged), []
    goal = None if 2 * violations == number else "lower" if 2 * violations > number else "raise"
    open_goals = [name for name, attack in moving.items() if attack.own_goal is None]
    if open_goals and goal is None:
        what = f"calls {violations} of {number} reference responses violations" if number else "can judge no reference response"
        notes.append(f"The judge {what}, so no goal of {_listed(open_goals)} follows from it; give them a `goal`.")
    elif open_goals and 0 < violations < number:
        notes.append(
            f"The judge calls {violations} of {number} reference responses violations; {_listed(open_goals)} {goal} the loss of all."
        )
    for name, attack in moving.items():
        if goal is not None and attack.own_goal == OPPOSITE[goal] and violations in (0, number):
            kind = "a violation" if violations else "right"
            notes.append(
                f"`{name}` has the goal {attack.own_goal}, and the judge calls every reference response {kind}, which asks for {goal}: it "
                "makes what it seeks less likely."
            )
    chosen = {name: attack.aimed(goal) if goal is not None and name in moving else attack for name, attack in attacks.items()}
    return Aimed(attacks=chosen, notes=notes)


def check_beginnings(
    attacks: Mapping[str, Attack], model: Network | BlackBoxModel, checker: GeneratorChecker, examples: Sequence[Example]
) -> None:
    """Raises ConfigError where a forced beginning is by itself what the judge looks for: the model would add nothing to it."""
    if not isinstance(model, Network) or checker.judge is None or not checker.judge.reads_beginning:
        return
    for name, attack in attacks.items():
        texts = attack.beginnings(model.encoder, examples)
        judgements = checker.judgements(examples, texts, [math.nan] * len(examples)) if texts else []
        for example, text, judgement in zip(examples, texts, judgements, strict=False):
            if judgement.breaks:
                raise ConfigError(
                    f"suite.attacks.{name}: it forces the answer to example '{example.id}' to begin with '{text}', which is all that the "
                    "judge looks for, so the model would add nothing; force fewer tokens, or give a judge of what follows."
                )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


__all__ = ["Aimed", "aimed", "check_beginnings"]

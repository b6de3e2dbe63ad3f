"""The same run, as small as it can be: every plugin is started and every forward runs, in two steps per stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from advalign.engine.learner import Learner
from advalign.training.discriminator_evaluation import DiscriminatorEvaluation
from advalign.training.evaluate import Evaluation
from advalign.training.run_spec import Frozen, TrainingArguments
from advalign.training.schedule import Follow, Ramp

STEPS, ROWS = 2, 2


def smaller(sections: Mapping[str, Any]) -> dict[str, Any]:
    """The objects of a run {section: objects}, each as small as it can be; the folder is another one, `<output_dir>-smoke`."""
    small = dict(sections)
    changes: dict[str, Callable[[Any], Any]] = {
        "learners": _learner,
        "frozen": _copy,
        "schedules": _schedule,
        "evaluations": _evaluation,
        "sources": lambda source: source.smaller(),
    }
    for name, change in changes.items():
        small |= {name: {key: change(entry) for key, entry in sections[name].items()}} if name in sections else {}
    if "stages" in sections:
        small["stages"] = [replace(stage, steps=min(stage.steps, STEPS)) for stage in sections["stages"]]
    args: TrainingArguments = sections.get("args") or TrainingArguments()
    folder = f"{args.output_dir}-smoke" if args.output_dir else None
    return small | {"args": replace(args, max_steps=min(args.max_steps, STEPS), output_dir=folder)}


def _learner(learner: Learner) -> Learner:
    """With no more minibatches than a draw has groups."""
    return replace(learner, minibatches=min(learner.minibatches, ROWS), epochs=min(learner.epochs, STEPS))


def _copy(copy: Frozen) -> Frozen:
    """A snapshot that is renewed."""
    return copy if copy.refresh is None else replace(copy, refresh=1)


def _schedule(schedule: Ramp | Follow) -> Ramp | Follow:
    """A ramp that goes from end to end."""
    return replace(schedule, steps=min(schedule.steps, STEPS), delay=0) if isinstance(schedule, Ramp) else schedule


def _evaluation(evaluation: Evaluation | DiscriminatorEvaluation) -> Evaluation | DiscriminatorEvaluation:
    """A few examples; a probe has two halves."""
    if isinstance(evaluation, Evaluation) or evaluation.probe is None:
        return replace(evaluation, number=min(evaluation.number, ROWS))
    probe = replace(evaluation.probe, steps=min(evaluation.probe.steps, STEPS))
    return replace(evaluation, number=min(evaluation.number, 2 * ROWS), probe=probe)

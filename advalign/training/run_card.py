"""What a run says in the model cards of its learners."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advalign import data
from advalign.metrics.run_log import complete_lines, step_of_log
from advalign.models.model_card import TrainingFacts
from advalign.plugins import kind_of

if TYPE_CHECKING:
    from advalign.training.trainer import Trainer


def training_facts(trainer: Trainer, learner: str) -> TrainingFacts:
    """Of one learner, after the steps that the run has made."""
    config, spec = trainer.config, trainer.config["learners"][learner]
    objectives = [objective for objective in config["objectives"].values() if objective.learner == learner]
    attacked = any(view in config["adversaries"] for objective in objectives for view in objective.reads)
    tags = [kind_of(type(objective)) for objective in objectives] + ["adversarial-training"] * attacked
    step, metrics = trainer.evaluated if trainer.evaluated[1] else _logged(trainer)
    own = tuple(f"{name}/" for name, evaluation in trainer.evaluations.items() if evaluation.learner == learner)
    return TrainingFacts(
        learner=learner,
        formula=trainer.formula(),
        stages={stage.name or f"stage {number}": f"{stage.steps} steps at most" for number, stage in enumerate(trainer.run_spec.stages, 1)},
        settings={
            "steps of the run": str(trainer.step),
            "learning rate": f"{spec.learning_rate:g}",
            "precision of the weights": spec.dtype,
            "longest row": f"{spec.max_length} tokens",
            "seed": str(trainer.args.seed),
        },
        datasets=dict(_datasets(config["sources"], [objective.source for objective in objectives])),
        tags=tuple(dict.fromkeys(tags)),
        metrics={name: value for name, value in metrics.items() if own and name.startswith(own) and _is_number(value)},
        step=step,
    )


def _logged(trainer: Trainer) -> tuple[int, dict[str, float]]:
    """(step, metrics) of the newest evaluation in the log, of which a resumed run has not seen everything."""
    file = Path(trainer.args.output_dir or "") / "log.jsonl"
    beginnings = tuple(f"{name}/" for name in trainer.evaluations)
    if not beginnings or not file.is_file():
        return 0, {}
    for number, line in reversed(list(enumerate(complete_lines(file), 1))):
        entry = step_of_log(line, f"{file}, line {number}")
        if metrics := {name: value for name, value in entry.items() if name.startswith(beginnings) and _is_number(value)}:
            return entry["step"], metrics
    return 0, {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _datasets(sources: Mapping[str, Any], names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Pairs of `data.public_names` for what sources, and those that they depend on, read."""
    waiting, seen = list(names), set[str]()
    while waiting:
        name = waiting.pop(0)
        if name in seen or name not in sources:
            continue
        seen.add(name)
        waiting += sources[name].depends_on
        values = {field.name: getattr(sources[name], field.name) for field in dataclasses.fields(sources[name])}
        if values.get("data") is not None and (pair := data.public_names(values["data"], str(values.get("split") or "train"))):
            yield pair


__all__ = ["training_facts"]

"""What a run says that can never have an effect, refused; and what may well not be meant, as notes."""

from __future__ import annotations

from advalign.engine.plan import Plan
from advalign.errors import ConfigError
from advalign.training.run_spec import RunSpec
from advalign.training.schedule import Ramp, Stage


def check_meaning(spec: RunSpec) -> None:
    """Raises ConfigError for a gate of a learner that never trains, a stage without objectives, and rows that cannot be there."""
    trained: set[str] = set()
    drawn: set[str] = set()
    for number, stage in enumerate(spec.stages):
        if stage.objectives == ():
            raise ConfigError(
                f"stages.{stage.name or number}.objectives: none given, so nothing would train; leave it out for all of them."
            )
        step = spec.step_plan(stage, strongest=True)
        updated = {name for name in step.active if step.config["learners"][name].updates}
        if step.active and not updated:
            learner = next(iter(step.active))
            raise ConfigError(f"stages.{stage.name or number}: learners.{learner}.updates is 0 there, so nothing trains in it.")
        trained |= updated
        for plan in step.active.values():
            _check_inner(plan)
        drawn |= {source for plan in step.active.values() for source in plan.sources}
        for source in step.sources:
            for other in set(spec.config["sources"][source].replays) - drawn:
                raise ConfigError(
                    f"sources.{source}: it has no rows in stage '{stage.name or number}', since no objective has read '{other}' by then; "
                    "add one that does, or set include_current: true."
                )
    for name in set(spec.gates) - trained:
        raise ConfigError(f"gates.{name}: learner '{name}' is trained in no stage, so it has no updates to skip.")


def _check_inner(plan: Plan) -> None:
    """What an adversary ascends instead is a loss of the learner it attacks."""
    for name, adversary in plan.adversaries.items():
        inner = adversary.inner
        default = None if inner is None else type(inner).__dataclass_fields__["learner"].default
        if inner is not None and inner.learner not in (plan.learner, default):
            raise ConfigError(
                f"adversaries.{name}.inner.learner: '{inner.learner}' given, and it ascends a loss of '{plan.learner}', which has the view."
            )


def notes_on_meaning(spec: RunSpec) -> list[str]:
    """What is allowed and yet has no effect, or another one than it may seem."""
    active = {name for stage in spec.stages for name in (stage.objectives or spec.config["objectives"])}
    idle = [name for name in spec.config["objectives"] if name not in active]
    sentences = [f"objectives: no stage activates {', '.join(idle)}."] if idle else []
    for path, schedule in spec.schedules.items():
        stages = [stage for stage in spec.stages if schedule.stage in (None, stage.name)]
        sentences += _note_on_ramp(path, schedule, stages) if isinstance(schedule, Ramp) else []
    for number, stage in enumerate(spec.stages):
        if stage.until is not None and stage.until.after > stage.steps:
            sentences.append(
                f"stages.{stage.name or number}.until.after: {stage.until.after} steps given, and the stage has {stage.steps}, so its "
                "length decides."
            )
    return sentences


def _note_on_ramp(path: str, ramp: Ramp, stages: list[Stage]) -> list[str]:
    """A ramp that ends after its stage, or its run, does."""
    length = sum(stage.steps for stage in stages) if ramp.stage is None else max(stage.steps for stage in stages)
    needed = ramp.delay + ramp.steps
    if needed <= length or ramp.start == ramp.end:
        return []
    where = "the run" if ramp.stage is None else f"stage '{ramp.stage}'"
    last = f"its last value is {ramp.at(max(length - 1, 0)):.3g}"
    return [f"schedules.{path}: it takes {needed} steps, and {where} has {length}, so {last}."]

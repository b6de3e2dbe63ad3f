"""The specification of a run, before anything is loaded: its parts by name, and what each stage activates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, Any

from advalign.checked import Checked
from advalign.engine.learner import Learner
from advalign.engine.plan import Plan, formula, plan
from advalign.errors import ConfigError
from advalign.interfaces import Objective, Source
from advalign.names import LearnerName
from advalign.ranges import Count, Fraction, Natural, OneOf, Seed, Words
from advalign.training.moving import read_setting, replace_leaf
from advalign.training.schedule import Follow, Gate, Ramp, Stage

DISTRIBUTED = ("auto", "ddp", "fsdp")
PRECISIONS = ("no", "bf16")
UPDATE_FIELDS = ("updates", "minibatches", "epochs", "every", "coef")
"""Fields of learners and objectives that decide how many updates a step makes."""

REFERENCE = "reference"
"""The frozen copy of this name has the role of the reference: `ref_logprobs` and KL penalties are computed with it, or with the copy
that another learner has in its place (`references.references_of`)."""


@dataclass(frozen=True, kw_only=True)
class TrainingArguments(Checked, section="args"):
    """Arguments of a run. Names are those of transformers where the meaning is the same."""

    max_steps: Natural = 100
    """Training steps, where no stages are given."""
    output_dir: Words | None = None
    """Folder of logs, checkpoints and models; None: nothing is written."""
    overwrite_output_dir: bool = False
    """Give up the run that output_dir holds; without it, such a folder is refused unless the run is resumed."""
    seed: Seed = 0
    """All random streams are functions of it."""
    token_budget: Count = 8192
    """Tokens of one micro-batch, padding included where rows are not packed."""
    eval_steps: Natural = 0
    """Steps between evaluations; 0: none."""
    save_steps: Natural = 0
    """Steps between checkpoints; 0: none."""
    save_total_limit: Count | None = 2
    """Checkpoints that are kept, the newest ones; None: all."""
    measure_every: Natural = 0
    """Steps between measurements of gradient norms and cosines per objective; 0: none."""
    mixed_precision: Annotated[str, OneOf(PRECISIONS, "precision of autocast")] = "no"
    """Autocast of accelerate: no or bf16."""
    model_card: bool = True
    """A README.md about the run beside every model at the end, unless one stands there that a person has changed."""
    max_skipped: Count = 5
    """The run stops after so many updates of a learner in a row that were skipped, since a loss or gradient was not finite."""
    distributed: Annotated[str, OneOf(DISTRIBUTED, "way to use several processes")] = "auto"
    """Use of several processes: ddp (each holds all weights), fsdp (each holds a part of them), or auto (as accelerate was configured)."""


@dataclass(frozen=True, kw_only=True)
class Frozen(Checked, section="frozen"):
    """A copy of a learner that never trains: a snapshot from the start of the stage that first needs it, or an average."""

    learner: LearnerName = "policy"
    """The learner it is a copy of."""
    ema: Fraction | None = None
    """It is an average of the weights instead: w <- ema w + (1 - ema) w_learner after each step of the learner."""
    refresh: Count | None = None
    """The snapshot is renewed every so many steps of the run (a previous iterate)."""

    def __post_init__(self) -> None:
        if self.ema is not None and self.refresh is not None:
            raise ConfigError("frozen: a copy is an average (ema) or a snapshot that is renewed (refresh), not both.")


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """What one step runs, computed once per step."""

    config: Mapping[str, Mapping[str, Any]]
    """{section: {name: object}} with the settings of the stage and the schedules applied."""
    objectives: Mapping[str, Objective]
    """The objectives of the stage."""
    plans: Mapping[str, Plan]
    """{learner: its plan}, without objectives of coefficient 0 and those that are not active in this step."""

    @cached_property
    def active(self) -> dict[str, Plan]:
        """The plans of learners that take part."""
        return {name: p for name, p in self.plans.items() if p.objectives}

    @cached_property
    def sources(self) -> list[str]:
        """Sources that are read, each after those it depends on."""
        return ordered({s: self.config["sources"][s] for p in self.active.values() for s in p.sources})

    def readers(self, source: str) -> list[Objective]:
        """The objectives of the stage that read a source."""
        return [objective for objective in self.objectives.values() if objective.source == source]


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """A run: its parts by name, and how they change from step to step."""

    config: Mapping[str, Mapping[str, Any]]
    """{"learners" | "sources" | "objectives" | "adversaries": {name: object}}"""
    frozen: Mapping[str, Frozen]
    """Frozen copies by name."""
    schedules: Mapping[str, Ramp | Follow]
    """{dotted path: schedule}"""
    stages: Sequence[Stage]
    """In order; what they set is read as the fields ask for it."""
    gates: Mapping[str, Gate] = field(default_factory=dict)
    """{learner: when it skips its updates}"""

    def __post_init__(self) -> None:
        stages = []
        for stage in self.stages:
            settings = {
                path: read_setting(self.config, path, value, f"stages.{stage.name}.set.{path}") for path, value in stage.set.items()
            }
            stages.append(replace(stage, set=settings))
        object.__setattr__(self, "stages", stages)
        for path, schedule in self.schedules.items():
            for value in schedule.ends:
                read_setting(self.config, path, value, f"schedules.{path}")
            for stage in self.stages:
                if path in stage.set and schedule.stage in (None, stage.name):
                    raise ConfigError(f"stages.{stage.name}.set.{path}: a schedule moves it in this stage; give one of both.")

    @property
    def total_steps(self) -> int:
        """Steps of all stages, none of which ends early."""
        return sum(stage.steps for stage in self.stages)

    @property
    def reference(self) -> str | None:
        """The frozen copy that has the role of the reference; None: there is none."""
        return REFERENCE if REFERENCE in self.frozen else None

    def active_config(
        self, stage: Stage, step: int = 0, first: int = 0, *, strongest: bool = False, values: Mapping[str, float] | None = None
    ) -> dict[str, Any]:
        """The configuration of a step of a stage that began at step `first`: settings of the stage and schedules are applied.

        `strongest` takes every schedule at the larger of its ends; `values` are those of schedules that follow a metric.
        """
        config = dict(self.config)
        for path, value in stage.set.items():
            config = replace_leaf(config, path, value, f"stages.{stage.name}.set.{path}")
        for path, schedule in self.schedules.items():
            if schedule.stage is None or schedule.stage == stage.name:
                value = (values or {}).get(path, schedule.at(step - (first if schedule.stage else 0)))
                value = max(schedule.start, schedule.end, key=abs) if strongest else value
                config = replace_leaf(config, path, value, f"schedules.{path}")
        return config

    def step_plan(
        self, stage: Stage, step: int = 0, first: int = 0, *, strongest: bool = False, values: Mapping[str, float] | None = None
    ) -> StepPlan:
        """What a step runs (arguments as in `active_config`); with `strongest`, objectives of any interval are active."""
        config = self.active_config(stage, step, first, strongest=strongest, values=values)
        names = stage.objectives if stage.objectives is not None else tuple(config["objectives"])
        objectives = {name: config["objectives"][name] for name in names}
        plans = {}
        for learner, spec in config["learners"].items():
            active = {n: o for n, o in objectives.items() if o.learner == learner and o.coef != 0}
            if not strongest:
                active = {n: o for n, o in active.items() if (step - first) % (spec.every * o.interval) == 0}
            plans[learner] = plan(learner, active, config["adversaries"], self.frozen)
        return StepPlan(config=config, objectives=objectives, plans=plans)

    def num_updates(self, learner: str) -> int:
        """Updates of a learner in the whole run, where no stage ends early; skipped ones count."""
        total = first = 0
        for stage in self.stages:
            moving = any(path.rpartition(".")[2] in UPDATE_FIELDS and s.stage in (None, stage.name) for path, s in self.schedules.items())
            constant = None if moving else self.active_config(stage, first, first)
            for step in range(stage.steps):
                config = self.active_config(stage, first + step, first) if constant is None else constant
                spec, names = config["learners"][learner], stage.objectives or tuple(config["objectives"])
                read = [config["objectives"][name] for name in names]
                active = [o for o in read if o.learner == learner and o.coef != 0 and step % (spec.every * o.interval) == 0]
                total += spec.num_updates if active else 0
            first += stage.steps
        return total

    def formula(self) -> str:
        """The losses of every stage, as text."""
        parts = []
        for stage in self.stages:
            updates = {name: learner.updates for name, learner in self.active_config(stage)["learners"].items()}
            head = f"[{stage.name or 'stage'}: {stage.steps} steps]\n" if len(self.stages) > 1 else ""
            parts.append(head + formula(self.step_plan(stage, strongest=True).active.values(), updates))
        parts += [f"{path} {schedule}" for path, schedule in self.schedules.items()]
        return "\n".join(parts)


def learners_of(model: str | Learner | None, learners: Mapping[str, Learner] | None) -> dict[str, Learner]:
    """{name: learner}; `model` alone is short for one learner named "policy"."""
    if (model is None) == (learners is None):
        raise ConfigError("Trainer: give either model or learners.")
    if model is not None:
        return {"policy": model if isinstance(model, Learner) else Learner(model=model)}
    return dict(learners or {})


def ordered(sources: Mapping[str, Source]) -> list[str]:
    """Names such that every source comes after those it depends on."""
    order: list[str] = []

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise ConfigError(f"sources.{name}: it waits for itself ({' -> '.join((*path, name))}).")
        for other in sources[name].depends_on:
            if other in sources:
                visit(other, (*path, name))
        if name not in order:
            order.append(name)

    for name in sources:
        visit(name, ())
    return order

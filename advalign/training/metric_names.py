"""Which numbers a run logs, as far as its configuration says, and what is said of a metric that is never logged."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from advalign.engine.plan import Plan
from advalign.errors import ConfigError
from advalign.names import MetricOf
from advalign.training.run_names import references_of_run
from advalign.training.run_spec import RunSpec, TrainingArguments
from advalign.training.schedule import Follow, Stage

OF_LEARNER = ("grad_norm", "learning_rate", "num_nonfinite_updates")
OF_OBJECTIVE = ("loss", "num_nonfinite_losses")
OF_ADVERSARY = ("loss_start", "loss_end", "gain", "num_nonfinite_gradients")


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """What the steps of a stage log."""

    names: frozenset[str]
    """Whole names that are known before the first step."""
    owners: frozenset[str]
    """What stands before the first slash of others: sources, and objectives that do not say what they log."""

    def may_hold(self, name: str) -> bool:
        """Whether a number of this name may be logged."""
        return name in self.names or name.partition("/")[0] in self.owners


def stage_metrics(spec: RunSpec, stage: Stage, evaluations: Mapping[str, Any], args: TrainingArguments) -> Metrics:
    """What the steps of a stage log, its evaluations included."""
    step = spec.step_plan(stage, strongest=True)
    names = {"num_truncated", *(f"schedules/{path}" for path, schedule in spec.schedules.items() if isinstance(schedule, Follow))}
    owners = {"rollout", *(source for plan in step.active.values() for source in plan.sources)}
    for learner, plan in step.active.items():
        names |= {f"{learner}/{metric}" for metric in (*OF_LEARNER, *(("skipped",) if learner in spec.gates else ()))}
        names |= {f"{adversary}/{metric}" for adversary in plan.adversaries for metric in OF_ADVERSARY}
        names |= _of_objectives(plan, measured=bool(args.measure_every))
        owners |= {name for name, objective in plan.objectives.items() if objective.metric_names is None}
    for name, evaluation in evaluations.items() if args.eval_steps else ():
        names |= {f"{name}/{metric}" for metric in evaluation.metric_names}
    return Metrics(names=frozenset(names), owners=frozenset(owners))


def _of_objectives(plan: Plan, *, measured: bool) -> set[str]:
    names = {f"{name}/{metric}" for name, o in plan.objectives.items() for metric in (*OF_OBJECTIVE, *(o.metric_names or ()))}
    if measured:
        names |= {f"{name}/gradient_norm" for name in plan.objectives}
        names |= {f"cosine/{a}~{b}" for a in plan.objectives for b in plan.objectives if a != b}
    return names


def check_metrics(spec: RunSpec, evaluations: Mapping[str, Any], args: TrainingArguments, *, callbacks: bool = False) -> None:
    """Raises ConfigError for a gate, a stage or a schedule that waits for a metric that is never logged, as far as that is known.

    `callbacks`: there are some, which may log names of their own.
    """
    stages = {f"stages.{stage.name or number}.until": stage for number, stage in enumerate(spec.stages)}
    by_stage = {path: stage_metrics(spec, stage, evaluations, args) for path, stage in stages.items()}
    for reference in references_of_run(spec):
        if not isinstance(reference.mark, MetricOf):
            continue
        own = by_stage.get(reference.path.rpartition(".")[0])
        logged = list(by_stage.values()) if own is None else [own]
        if any(metrics.may_hold(reference.name) for metrics in logged):
            continue
        owner = reference.name.partition("/")[0]
        if callbacks and owner not in {*evaluations, *(entry for entries in spec.config.values() for entry in entries)}:
            continue
        if owner in evaluations and not args.eval_steps:
            raise ConfigError(f"{reference.path}: '{reference.name}' is of an evaluation, and args.eval_steps is 0, so it is never logged.")
        elsewhere = own is not None and any(metrics.may_hold(reference.name) for metrics in by_stage.values())
        reason = "in this stage" if elsewhere else "by this run"
        raise _never_logged(reference.path, reference.name, {name for metrics in logged for name in metrics.names}, reason)


def _never_logged(path: str, name: str, logged: Iterable[str], reason: str) -> ConfigError:
    """The error, with the nearest metrics that are logged."""
    names, owner = sorted(logged), name.partition("/")[0]
    nearest = difflib.get_close_matches(name, names, n=3, cutoff=0.5) or [n for n in names if n.partition("/")[0] == owner][:3]
    quoted = [f"'{n}'" for n in nearest]
    hint = (
        f"did you mean {' or '.join([', '.join(quoted[:-1]), quoted[-1]] if quoted[1:] else quoted)}?" if quoted else "see docs/metrics.md."
    )
    return ConfigError(f"{path}: no metric '{name}' is logged {reason}; {hint}")


@dataclass(kw_only=True)
class MetricWatch:
    """What gates, stages and schedules wait for, until it was logged."""

    waiting: dict[str, str] = field(default_factory=dict)
    """{path: metric} of what no step has logged so far."""
    occasional: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """{owner of metrics that are known by its first step alone: patterns of those that not every step logs}"""

    @classmethod
    def of(cls, spec: RunSpec, evaluations: Mapping[str, Any], args: TrainingArguments) -> MetricWatch:
        """The watch of a run."""
        waiting = {r.path: r.name for r in references_of_run(spec) if isinstance(r.mark, MetricOf)}
        known = {name for stage in spec.stages for name in stage_metrics(spec, stage, evaluations, args).names}
        owners = {name.partition("/")[0] for name in {*waiting.values()} - known}
        occasional = {name: ("num_nonfinite_losses",) for name, objective in spec.config["objectives"].items() if name in owners}
        for name, source in spec.config["sources"].items():
            if name in owners:
                occasional[name] = (*occasional.get(name, ()), "num_nonfinite_rows", *source.occasional_metrics)
        return cls(waiting=waiting, occasional=occasional)

    def observe(self, logs: Mapping[str, Any]) -> None:
        """After a step. Raises ConfigError for a metric that is missing among those that its owner has just logged."""
        self.waiting = {path: name for path, name in self.waiting.items() if name not in logs}
        for path, name in self.waiting.items():
            owner, _, metric = name.partition("/")
            siblings = [other for other in logs if other.startswith(f"{owner}/")]
            if owner in self.occasional and siblings and not any(fnmatchcase(metric, p) for p in self.occasional[owner]):
                raise _never_logged(path, name, logs, f"by '{owner}'")

    def end(self) -> None:
        """After the last step: warns of what was never logged."""
        for path, name in self.waiting.items():
            warnings.warn(f"{path}: '{name}' was never logged in this run, so nothing followed from it.", stacklevel=2)

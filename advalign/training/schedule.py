"""Numbers that move during a run, and stages that change what runs.

Configurations are frozen; a schedule or a stage replaces the one leaf that its dotted path names, for the current step.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from advalign.errors import ConfigError, unknown

SHAPES = ("linear", "cosine", "constant")


@dataclass(frozen=True, kw_only=True)
class Ramp:
    """A number that goes from `start` to `end` over `steps` steps after `delay`: linear or cosine; constant jumps at the end.
    Steps are counted from the start of the stage that is named, else of the run."""

    end: float
    start: float = 0.0
    steps: int = 1
    delay: int = 0
    kind: str = "linear"
    stage: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in SHAPES:
            raise unknown("schedules", "ramp", self.kind, SHAPES)

    def at(self, step: int) -> float:
        progress = min(max((step - self.delay) / max(self.steps, 1), 0.0), 1.0)
        if self.kind == "cosine":
            progress = (1 - math.cos(math.pi * progress)) / 2
        if self.kind == "constant":
            progress = float(progress >= 1)
        return self.start + (self.end - self.start) * progress


@dataclass(frozen=True, kw_only=True)
class Until:
    """A stage may end early: once the running mean of `metric` has reached `above` (or sunk to `below`)."""

    metric: str
    above: float | None = None
    below: float | None = None
    after: int = 1
    smoothing: float = 0.9

    def met(self, value: float) -> bool:
        return (self.above is not None and value >= self.above) or (self.below is not None and value <= self.below)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """`steps` steps with only the named `objectives` (all by default), and `set` of dotted paths to other values."""

    steps: int
    name: str = ""
    objectives: tuple[str, ...] | None = None
    until: Until | None = None
    set: Mapping[str, Any] = field(default_factory=dict)


class Timeline:
    """Where in its stages a run stands. A stage whose `until` was met is shorter than it might have been."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.stages = list(stages)
        self.lengths: dict[int, int] = {}  # of stages that ended early
        self.means: dict[str, float] = {}

    def place(self, step: int) -> tuple[int, int]:
        """The number of the stage that a step belongs to, and the first step of that stage."""
        start = 0
        for number, stage in enumerate(self.stages):
            length = self.lengths.get(number, stage.steps)
            if step < start + length or number == len(self.stages) - 1:
                return number, start
            start += length
        raise AssertionError("a run without stages")

    def finished(self, step: int) -> bool:
        return step >= sum(self.lengths.get(number, stage.steps) for number, stage in enumerate(self.stages))

    def observe(self, step: int, logs: Mapping[str, Any]) -> None:
        """Ends the stage of the step that has just been made, where its `until` is met."""
        number, first = self.place(step - 1)
        until = self.stages[number].until
        if until is None or until.metric not in logs:
            return
        key = f"{number}/{until.metric}"
        mean = until.smoothing * self.means.get(key, logs[until.metric]) + (1 - until.smoothing) * logs[until.metric]
        self.means[key] = mean
        if step - first >= until.after and until.met(mean):
            self.lengths[number] = step - first

    def state_dict(self) -> dict[str, Any]:
        return {"lengths": dict(self.lengths), "means": dict(self.means)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.lengths, self.means = dict(state["lengths"]), dict(state["means"])


def replaced(tree: Any, path: str, value: Any, where: str = "") -> Any:
    """`tree` with the leaf at a dotted path replaced. Raises ConfigError with the nearest name."""
    head, _, rest = path.partition(".")
    at = where or path
    if isinstance(tree, Mapping):
        if head not in tree:
            raise unknown(at, "entry", head, map(str, tree))
        return {**tree, head: replaced(tree[head], rest, value, at) if rest else value}
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        names = [f.name for f in dataclasses.fields(tree)]
        if head not in names:
            raise unknown(at, f"field of {type(tree).__name__}", head, names)
        if not rest and isinstance(value, float) and next(f.type for f in dataclasses.fields(tree) if f.name == head) in (int, "int"):
            value = round(value)  # a ramp through whole numbers, such as steps
        return dataclasses.replace(tree, **{head: replaced(getattr(tree, head), rest, value, at) if rest else value})
    raise ConfigError(f"{at}: '{head}' is below a {type(tree).__name__}, which has no named parts.")

"""Numbers that move during a run, and stages that change what runs.

Configurations are frozen; a schedule or a stage replaces the one leaf that its dotted path names, for the current step.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

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

    def __str__(self) -> str:
        return f"goes from {self.start:.3g} to {self.end:.3g} in {self.steps} steps ({self.kind})"


@dataclass(frozen=True, kw_only=True)
class Follow:
    """A number that follows what is measured: after each step that logs `metric`, of which m is a running mean,

        v <- clip(v * exp(rate * d), low, high),    d = clip((target - m) / |target|, -1, 1), its sign reversed for raise_when "above".

    A radius that keeps what the attack gains near a target, whatever the model has learned meanwhile: `metric: pgd/gain`. (Ours.)
    """

    metric: str
    target: float
    start: float
    low: float = 0.0
    high: float = math.inf
    rate: float = 0.1
    smoothing: float = 0.9
    raise_when: str = "below"

    stage: ClassVar[None] = None

    def __post_init__(self) -> None:
        if self.raise_when not in ("below", "above"):
            raise unknown("schedules.raise_when", "side of the target", self.raise_when, ("below", "above"))
        if not self.start > 0 or not self.low <= self.start <= self.high or not self.target:
            raise ConfigError(
                f"schedules: start {self.start:g} must be above 0 and between low {self.low:g} and high {self.high:g}, "
                f"and target {self.target:g} must not be 0."
            )
        if not self.rate > 0 or not 0 <= self.smoothing < 1:
            raise ConfigError(f"schedules: rate {self.rate:g} must be above 0 and smoothing {self.smoothing:g} in [0, 1).")

    @property
    def end(self) -> float:
        """The largest it may become."""
        return self.high if math.isfinite(self.high) else self.start

    def at(self, step: int) -> float:
        return self.start

    def moved(self, value: float, mean: float) -> float:
        distance = min(max((self.target - mean) / abs(self.target), -1.0), 1.0)
        return min(max(value * math.exp(self.rate * (distance if self.raise_when == "below" else -distance)), self.low), self.high)

    def __str__(self) -> str:
        return f"follows {self.metric}, from {self.start:.3g}, to keep it near {self.target:.3g} ({self.low:.3g} to {self.high:.3g})"


@dataclass(frozen=True, kw_only=True)
class Gate:
    """A learner skips_update while the running mean of `metric` is above `above` or below `below`, at most `max_skips` steps in a row.

    It still reads its rows (one forward, no update), so its own metrics stay fresh: `judge/accuracy` is then the accuracy on rows that
    it has not been trained on. A discriminator that is far ahead teaches nothing but noise; one that is behind should not be obeyed.
    """

    metric: str
    above: float | None = None
    below: float | None = None
    max_skips: int = 10
    smoothing: float = 0.9

    def __post_init__(self) -> None:
        if self.above is None and self.below is None:
            raise ConfigError("gates: a gate needs a bound; give above or below.")
        if self.max_skips < 1 or not 0 <= self.smoothing < 1:
            raise ConfigError(f"gates: max_skips is {self.max_skips} and smoothing {self.smoothing}; at least 1, and in [0, 1).")

    def closed(self, mean: float) -> bool:
        return (self.above is not None and mean > self.above) or (self.below is not None and mean < self.below)


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
    """Where in its stages a run stands. A stage whose `until` was met is shorter than it might have been. `values`: numbers that
    follow a metric, by their path. `skips`: how long each gated learner has been resting."""

    def __init__(
        self, stages: Sequence[Stage], schedules: Mapping[str, Ramp | Follow] | None = None, gates: Mapping[str, Gate] | None = None
    ) -> None:
        self.stages = list(stages)
        self.followers = {path: s for path, s in (schedules or {}).items() if isinstance(s, Follow)}
        self.values = {path: follow.start for path, follow in self.followers.items()}
        self.gates = dict(gates or {})
        self.skips = dict.fromkeys(self.gates, 0)
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
        """After a step: ends its stage where `until` is met, and moves the numbers that follow a metric."""
        for path, follow in self.followers.items():
            if follow.metric in logs:
                mean = self._mean(path, follow.smoothing, logs[follow.metric])
                self.values[path] = follow.moved(self.values[path], mean)
        for name, gate in self.gates.items():
            if gate.metric in logs:
                self._mean(f"gates.{name}/{gate.metric}", gate.smoothing, logs[gate.metric])
        number, first = self.place(step - 1)
        until = self.stages[number].until
        if until is None or until.metric not in logs:
            return
        mean = self._mean(f"{number}/{until.metric}", until.smoothing, logs[until.metric])
        if step - first >= until.after and until.met(mean):
            self.lengths[number] = step - first

    def skips_update(self, learner: str) -> bool:
        """Whether a learner sits this step out; counts it."""
        gate = self.gates.get(learner)
        if gate is None:
            return False
        mean = self.means.get(f"gates.{learner}/{gate.metric}")
        resting = mean is not None and gate.closed(mean) and self.skips[learner] < gate.max_skips
        self.skips[learner] = self.skips[learner] + 1 if resting else 0
        return resting

    def _mean(self, key: str, smoothing: float, value: float) -> float:
        self.means[key] = smoothing * self.means.get(key, value) + (1 - smoothing) * value
        return self.means[key]

    def state_dict(self) -> dict[str, Any]:
        kept: dict[str, dict[Any, Any]] = {"lengths": self.lengths, "means": self.means, "values": self.values, "skips": self.skips}
        return {name: dict(values) for name, values in kept.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.lengths, self.means, self.values = dict(state["lengths"]), dict(state["means"]), dict(state["values"])
        self.skips |= state.get("skips", {})


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

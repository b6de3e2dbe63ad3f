"""Numbers that move during a run, and stages that change what runs.

Configurations are frozen; a schedule or a stage replaces the one leaf that its dotted path names, for the current step.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from advalign.checked import Checked
from advalign.errors import ConfigError
from advalign.names import MetricName, ObjectiveName, SettingPath, StageName
from advalign.ranges import AnyText, Count, Distinct, Finite, Natural, NonNegative, OneOf, Positive, PositiveBound, ProperFraction

SHAPES = ("linear", "cosine", "constant")


@dataclass(frozen=True, kw_only=True)
class Ramp(Checked, section="schedules"):
    """A number that goes from `start` to `end`."""

    end: Finite
    """Last value."""
    start: Finite = 0.0
    """First value."""
    steps: Count = 1
    """Its length: the first of these steps has `start`, the last one `end`; a single step has `end`."""
    delay: Natural = 0
    """Steps at `start` before."""
    kind: Annotated[str, OneOf(SHAPES, "ramp")] = "linear"
    """linear, cosine, or constant: `start` during these steps, and `end` after them."""
    stage: StageName | None = None
    """Steps are counted from the start of this stage; None: of the run."""

    @property
    def ends(self) -> tuple[float, ...]:
        """The values that it takes at its ends."""
        return (self.start, self.end)

    def at(self, step: int) -> float:
        """The value at a step."""
        if step < self.delay:
            return self.start
        if self.kind == "constant":
            progress = float(step - self.delay >= self.steps)
        else:
            progress = min((step - self.delay) / (self.steps - 1), 1.0) if self.steps > 1 else 1.0
        if self.kind == "cosine":
            progress = (1 - math.cos(math.pi * progress)) / 2
        return self.start + (self.end - self.start) * progress

    def __str__(self) -> str:
        return f"goes from {self.start:.3g} to {self.end:.3g} in {self.steps} steps ({self.kind})"


@dataclass(frozen=True, kw_only=True)
class Follow(Checked, section="schedules"):
    """A number that follows a metric: after each step that logs `metric`, of which m is a running mean,

        v <- clip(v * exp(rate * d), low, high),    d = clip((target - m) / |target|, -1, 1), its sign reversed for raise_when "above".

    For example a radius that keeps the attack's gain near a target while the model learns: `metric: pgd/gain`. (Ours.)
    """

    metric: MetricName
    """Name in the log."""
    target: Finite
    """What the running mean is kept near."""
    start: Positive
    """First value."""
    low: NonNegative = 0.0
    """Smallest value."""
    high: PositiveBound = math.inf
    """Largest value."""
    rate: Positive = 0.1
    """Largest relative change per step, as a logarithm."""
    smoothing: ProperFraction = 0.9
    """m <- smoothing m + (1 - smoothing) metric."""
    raise_when: Annotated[str, OneOf(("below", "above"), "side of the target")] = "below"
    """Side of the target on which the value is raised: below or above."""

    stage: ClassVar[None] = None

    def __post_init__(self) -> None:
        if not self.low <= self.start <= self.high or not self.target:
            raise ConfigError(
                f"schedules: start {self.start:g} must be between low {self.low:g} and high {self.high:g}, and target {self.target:g} "
                "must not be 0."
            )

    @property
    def end(self) -> float:
        """The largest value it may reach."""
        return self.high if math.isfinite(self.high) else self.start

    @property
    def ends(self) -> tuple[float, ...]:
        """The first value, and the smallest and largest that it may reach: it comes near 0, and never there."""
        return (self.start, self.end, *([self.low] if self.low > 0 else []))

    def at(self, step: int) -> float:
        """The value before anything was measured."""
        return self.start

    def next_value(self, value: float, mean: float) -> float:
        """The value after a step whose running mean is `mean`."""
        distance = min(max((self.target - mean) / abs(self.target), -1.0), 1.0)
        factor = math.exp(min(self.rate * (distance if self.raise_when == "below" else -distance), 700.0))  # exp(710) overflows
        return min(max(value * factor, self.low), self.high, sys.float_info.max)

    def __str__(self) -> str:
        return f"follows {self.metric}, from {self.start:.3g}, to keep it near {self.target:.3g} ({self.low:.3g} to {self.high:.3g})"


@dataclass(frozen=True, kw_only=True)
class Gate(Checked, section="gates"):
    """A learner skips its updates while the running mean of a metric is beyond a bound.

    It still reads its rows (one forward, no update), so its metrics stay fresh: `discriminator/accuracy` is then the accuracy on rows that
    it was not trained on. A discriminator far ahead gives no useful signal; one far behind should not be followed.
    """

    metric: MetricName
    """Name in the log."""
    above: Finite | None = None
    """It skips while the mean is above this bound."""
    below: Finite | None = None
    """It skips while the mean is below this bound."""
    max_skips: Count = 10
    """Most steps skipped in a row."""
    smoothing: ProperFraction = 0.9
    """m <- smoothing m + (1 - smoothing) metric."""

    def __post_init__(self) -> None:
        if self.above is None and self.below is None:
            raise ConfigError("gates: a gate needs a bound; give above or below.")
        if self.above is not None and self.below is not None and self.above < self.below:
            raise ConfigError(f"gates: above {self.above:g} and below {self.below:g} given, so it is never open.")

    def is_closed(self, mean: float) -> bool:
        """Whether a running mean is beyond a bound."""
        return (self.above is not None and mean > self.above) or (self.below is not None and mean < self.below)


@dataclass(frozen=True, kw_only=True)
class Until(Checked, section="stages.until"):
    """A stage ends early once the running mean of `metric` has reached `above`, or fallen to `below`."""

    metric: MetricName
    """Name in the log."""
    above: Finite | None = None
    """It ends at or above this bound."""
    below: Finite | None = None
    """It ends at or below this bound."""
    after: Count = 1
    """Fewest steps of the stage."""
    smoothing: ProperFraction = 0.9
    """m <- smoothing m + (1 - smoothing) metric."""

    def __post_init__(self) -> None:
        if self.above is None and self.below is None:
            raise ConfigError("stages: until needs a bound; give above or below.")
        if self.above is not None and self.below is not None and self.above <= self.below:
            raise ConfigError(f"stages: until is always met with above {self.above:g} and below {self.below:g}.")

    def is_met(self, mean: float) -> bool:
        """Whether a running mean has reached a bound."""
        return (self.above is not None and mean >= self.above) or (self.below is not None and mean <= self.below)


@dataclass(frozen=True, kw_only=True)
class Stage(Checked, section="stages"):
    """A part of a run."""

    steps: Natural
    """Its length, at most."""
    name: AnyText = ""
    """Its name in the log and in schedules."""
    objectives: Annotated[tuple[ObjectiveName, ...], Distinct()] | None = None
    """The active objectives; None: all."""
    until: Until | None = None
    """What ends it early."""
    tokens: Count | None = None
    """It ends where the run has sampled and trained on so many tokens since its start; a stage that would begin after that has no step."""
    set: Mapping[SettingPath, Any] = field(default_factory=dict)
    """{dotted path: value during this stage}"""


class Timeline:
    """The position of a run in its stages, and the numbers that follow metrics."""

    def __init__(
        self, stages: Sequence[Stage], schedules: Mapping[str, Ramp | Follow] | None = None, gates: Mapping[str, Gate] | None = None
    ) -> None:
        self.stages = list(stages)
        self.followers = {path: s for path, s in (schedules or {}).items() if isinstance(s, Follow)}
        self.values = {path: follow.start for path, follow in self.followers.items()}
        """{path: current value} of the numbers that follow a metric."""
        self.gates = dict(gates or {})
        self.skips = dict.fromkeys(self.gates, 0)
        """{learner: updates skipped in a row}"""
        self.lengths: dict[int, int] = {}
        """{number of a stage that ended early: its steps}"""
        self.means: dict[str, float] = {}
        """{what reads it: running mean of its metric}"""
        self.tokens = 0
        """Sampled and trained on so far."""

    def place(self, step: int) -> tuple[int, int]:
        """The number of the stage of a step, and the first step of that stage."""
        start = 0
        for number, stage in enumerate(self.stages):
            length = self.lengths.get(number, stage.steps)
            if step < start + length or number == len(self.stages) - 1:
                return number, start
            start += length
        raise AssertionError("a run without stages")

    def finished(self, step: int) -> bool:
        """Whether all stages are over before a step."""
        return step >= sum(self.lengths.get(number, stage.steps) for number, stage in enumerate(self.stages))

    def observe(self, step: int, logs: Mapping[str, Any], tokens: float = 0.0) -> None:
        """After a step, which took so many `tokens`: ends its stage where it is over, and moves the numbers that follow a metric."""
        logs = {name: value for name, value in logs.items() if not isinstance(value, float) or math.isfinite(value)}  # nan moves nothing
        for path, follow in self.followers.items():
            if follow.metric in logs:
                mean = self._mean(path, follow.smoothing, logs[follow.metric])
                self.values[path] = follow.next_value(self.values[path], mean)
        for name, gate in self.gates.items():
            if gate.metric in logs:
                self._mean(f"gates.{name}/{gate.metric}", gate.smoothing, logs[gate.metric])
        number, first = self.place(step - 1)
        self.tokens += round(tokens)
        if self._is_met(number, step - first, logs):
            self.lengths[number] = step - first
        self._end_by_tokens(number, step - first)

    def _is_met(self, number: int, length: int, logs: Mapping[str, Any]) -> bool:
        """Whether what a stage waits for has come, after so many of its steps."""
        until = self.stages[number].until
        if until is None or until.metric not in logs:
            return False
        mean = self._mean(f"{number}/{until.metric}", until.smoothing, logs[until.metric])
        return length >= until.after and until.is_met(mean)

    def _end_by_tokens(self, number: int, length: int) -> None:
        """Ends the current stage, after so many of its steps, and those to come whose tokens are used up."""
        for other, stage in enumerate(self.stages[number:], number):
            if stage.tokens is not None and self.tokens >= stage.tokens:
                self.lengths[other] = length if other == number else 0

    def is_skipping(self, learner: str) -> bool:
        """Whether a learner skips its updates in the current step."""
        gate = self.gates.get(learner)
        if gate is None:
            return False
        mean = self.means.get(f"gates.{learner}/{gate.metric}")
        return mean is not None and gate.is_closed(mean) and self.skips[learner] < gate.max_skips

    def count_skip(self, learner: str, skipped: bool) -> None:
        """Once per step in which a gated learner takes part: whether it skipped its updates."""
        if learner in self.gates:
            self.skips[learner] = self.skips[learner] + 1 if skipped else 0

    def _mean(self, key: str, smoothing: float, value: float) -> float:
        self.means[key] = smoothing * self.means.get(key, value) + (1 - smoothing) * value
        return self.means[key]

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        mappings = {"lengths": dict(self.lengths), "means": dict(self.means), "values": dict(self.values), "skips": dict(self.skips)}
        return {**mappings, "tokens": self.tokens}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.lengths, self.means, self.values = dict(state["lengths"]), dict(state["means"]), dict(state["values"])
        self.skips |= state.get("skips", {})
        self.tokens = state.get("tokens", 0)

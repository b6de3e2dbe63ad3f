"""Rollouts of coming steps, asked for before they are needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from advalign.types import Example, RolloutGroup

Waiting = Callable[[], list[RolloutGroup]]


@dataclass(frozen=True, kw_only=True)
class Job:
    """Asked for at step `asked`; `before`: the stream of prompts as it was then."""

    asked: int
    examples: Sequence[Example]
    wait: Waiting
    before: dict[str, Any]


class Ahead:
    """At step s those of s are handed out and those up to s + `bound` are asked for, so the weights that sampled them are at most
    `bound` steps old. `take` gives the next prompts, `ask(step, prompts)` begins to answer them, `state` describes the stream."""

    def __init__(
        self,
        bound: int,
        last: int | None,
        take: Callable[[], Sequence[Example]],
        ask: Callable[[int, Sequence[Example]], Waiting],
        state: Callable[[], dict[str, Any]],
    ) -> None:
        self.bound, self.last, self.take, self.ask, self.state = bound, last, take, ask, state
        self.jobs: dict[int, Job] = {}

    def __call__(self, step: int) -> list[RolloutGroup]:
        """The rollouts for `step`."""
        self._renew(step)
        if step not in self.jobs:
            self._begin(step, step)
        job = self.jobs.pop(step)
        assert step - job.asked <= self.bound
        groups = job.wait()
        # Only now: the copy of the weights that this job read is free again.
        for coming in range(step + 1, step + self.bound + 1):
            if coming not in self.jobs and (self.last is None or coming < self.last):
                self._begin(coming, step)
        return groups

    def _begin(self, step: int, asked: int, old: Job | None = None) -> None:
        before = self.state() if old is None else old.before
        prompts = self.take() if old is None else old.examples
        self.jobs[step] = Job(asked=asked, examples=prompts, wait=self.ask(step, prompts), before=before)

    def _renew(self, step: int) -> None:
        """Where steps were left out, what was sampled for them is too old; its prompts are asked again."""
        for passed in [s for s in sorted(self.jobs) if s < step]:
            old = self.jobs.pop(passed)
            old.wait()
            self._begin(next(s for s in count(step) if s not in self.jobs), step, old)

    def state_dict(self) -> dict[str, Any]:
        """The stream as it was before the oldest prompts that nobody has trained on: they are asked again after a resume."""
        return self.jobs[min(self.jobs)].before if self.jobs else self.state()

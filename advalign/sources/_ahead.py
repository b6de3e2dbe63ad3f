"""Rollouts of coming steps, submitted before they are needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from advalign.types import Example, RolloutGroup

PendingRollouts = Callable[[], list[RolloutGroup]]
"""Waits for the rollouts and returns them."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """The prompts of one step, submitted to the rollout engine."""

    submitted: int
    """Step at which it was submitted."""
    examples: Sequence[Example]
    """Its prompts."""
    wait: PendingRollouts
    """Waits for its rollouts."""
    stream_state: dict[str, Any]
    """The stream of prompts before these were taken."""


class RolloutQueue:
    """At step s it returns the rollouts of s and submits those up to s + `bound`, so the weights that sampled them are at most
    `bound` steps old."""

    def __init__(
        self,
        bound: int,
        last: int | None,
        take: Callable[[], Sequence[Example]],
        submit: Callable[[int, Sequence[Example]], PendingRollouts],
        stream_state: Callable[[], dict[str, Any]],
    ) -> None:
        """`take` returns the next prompts, `submit(step, prompts)` begins to answer them; nothing is submitted from step `last` on."""
        self.bound, self.last, self.take, self.submit, self.stream_state = bound, last, take, submit, stream_state
        self.jobs: dict[int, Job] = {}

    def __call__(self, step: int) -> list[RolloutGroup]:
        """The rollouts for `step`."""
        self._resubmit_passed(step)
        if step not in self.jobs:
            self._submit(step, step)
        job = self.jobs.pop(step)
        assert step - job.submitted <= self.bound
        groups = job.wait()
        # Only now: the copy of the weights that this job read is free again.
        for coming in range(step + 1, step + self.bound + 1):
            if coming not in self.jobs and (self.last is None or coming < self.last):
                self._submit(coming, step)
        return groups

    def _submit(self, step: int, submitted: int, old: Job | None = None) -> None:
        stream_state = self.stream_state() if old is None else old.stream_state
        prompts = self.take() if old is None else old.examples
        wait = self.submit(step, prompts)
        self.jobs[step] = Job(submitted=submitted, examples=prompts, wait=wait, stream_state=stream_state)

    def _resubmit_passed(self, step: int) -> None:
        """Where steps were left out, what was sampled for them is too old; its prompts are submitted again."""
        for passed in [s for s in sorted(self.jobs) if s < step]:
            old = self.jobs.pop(passed)
            old.wait()
            self._submit(next(s for s in count(step) if s not in self.jobs), step, old)

    def state_dict(self) -> dict[str, Any]:
        """The stream before the oldest prompts that were not trained on: they are submitted again after a resume."""
        return self.jobs[min(self.jobs)].stream_state if self.jobs else self.stream_state()

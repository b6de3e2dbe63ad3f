"""A price on length, counted in sampled tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from advalign.errors import ConfigError
from advalign.interfaces import Context, Reward
from advalign.ranges import Count, Natural
from advalign.types import RolloutGroup


@dataclass(frozen=True, kw_only=True)
class Length(Reward):
    """r = 0 for n <= m - b, (m - b - n) / b up to m, -1 above   (DAPO's soft overlong punishment, arXiv:2503.14476, eq. 13).

    n counts `response_ids`, the end token included. With `target` it is instead r = -min(1, |n - target| / b), the distance of LCPO-Exact
    (arXiv:2503.04697, eq. 1); ours: in units of the buffer, capped.
    """

    max_length: Count = 20480  # the paper's
    """m, in tokens."""
    buffer: Count = 4096  # the paper's
    """b, in tokens."""
    target: Natural | None = None
    """Length that costs nothing, in tokens."""

    prices_length: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.buffer > self.max_length:
            raise ConfigError(f"rewards.length.buffer: {self.buffer} given; it must be at most max_length, {self.max_length}.")

    def start(self, context: Context) -> Callable[[Sequence[RolloutGroup]], Sequence[float]]:
        def score(groups: Sequence[RolloutGroup]) -> list[float]:
            return [self._price(len(r.response_ids)) for g in groups for r in g.rollouts]

        return score

    def _price(self, n: int) -> float:
        over = n - (self.max_length - self.buffer) if self.target is None else abs(n - self.target)
        return -min(1.0, max(0, over) / self.buffer)


__all__ = ["Length"]

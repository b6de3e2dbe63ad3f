"""What samples responses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch

from advalign.types import Example, RolloutGroup, Sampling


class RolloutEngine(ABC):
    """Abstract base: samples from a learner's network.

    Where a source works `ahead`, `generate` and `sync` are also called from another thread, with a copy of the network; an engine
    with a state of its own locks itself.
    """

    @property
    def logs(self) -> dict[str, float]:
        """Written to the log of every step as `rollout/<name>`."""
        return {}

    @property
    def is_remote(self) -> bool:
        """Samples outside this process: of several processes only the first one tells it that weights moved."""
        return False

    @property
    def rows_at_once(self) -> int | None:
        """The most rows that are decoded side by side; None: all of them."""
        return None

    @abstractmethod
    def generate(
        self, network: Any, examples: Sequence[Example], n: int, sampling: Sampling, generator: torch.Generator
    ) -> list[RolloutGroup]:
        """`n` responses per example, one group each, in order."""

    @abstractmethod
    def extend(
        self, network: Any, groups: list[RolloutGroup], n: int, sampling: Sampling, generator: torch.Generator
    ) -> list[RolloutGroup]:
        """`n` more rollouts per group, from its own `prompt_ids`, which may already hold the beginning of a response."""

    @abstractmethod
    def sync(self, network: Any, version: int) -> None:
        """The weights of `network` moved to `version`."""

    def skip(self, generator: torch.Generator, number: int, sampling: Sampling) -> bool:
        """Leaves out the random numbers of `number` responses, so that a share of a draw is sampled as one process would.
        False: it cannot, and the share is given a random stream of its own."""
        return False

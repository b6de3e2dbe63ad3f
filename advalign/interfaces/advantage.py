"""What turns the rewards of a draw into advantages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from torch import Tensor

from advalign.types import RolloutRows

AdvantageState = dict[str, Any]
"""Floats, or dictionaries of floats, by string: what an advantage carries from draw to draw, saved with the run."""


class Advantage(ABC):
    """Abstract base: rewards of a whole draw -> (advantages "B T", returns "B T" or None); advantages are zero off target.

    Off-policy rows take part in all statistics like any other row.
    """

    @property
    def needs_values(self) -> bool:
        """Reads `rows.values`, so a critic must exist."""
        return False

    @property
    def needs_baseline(self) -> bool:
        """Reads `rows.baseline`, the reward of the greedy response to the prompt."""
        return False

    @property
    def reads_token_rewards(self) -> bool:
        """Reads `rows.token_rewards`; else they are summed into the reward of the response."""
        return False

    @property
    def compares(self) -> bool:
        """Compares the responses of one prompt, so that one response per prompt teaches nothing."""
        return False

    @property
    def amplifies_noise(self) -> bool:
        """Divides by the spread of a group with a floor below 0.1: where rewards nearly agree, their noise decides."""
        return False

    def initial_state(self) -> AdvantageState | None:
        """What is carried from draw to draw, one per source, handed in as `state` and updated in place. None: nothing."""
        return None

    @abstractmethod
    def __call__(
        self, rows: RolloutRows, state: Any, all_reduce: Callable[[Tensor], Tensor]
    ) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"] | None]:
        """`state` is what `initial_state` gave. `all_reduce` sums over processes; every process calls it equally often."""

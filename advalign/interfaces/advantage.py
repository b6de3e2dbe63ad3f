"""What an advantage declares: how the rewards of a draw become a number per token."""

from __future__ import annotations

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor

from advalign.checked import Checked
from advalign.functional.advantages import AllReduce
from advalign.types import RolloutRows

AdvantageState = dict[str, float]
"""What an advantage carries from draw to draw, by name; saved with the run."""


class Advantage(Checked, ABC, section="advantages"):
    """Abstract base of every advantage: rewards of a whole draw -> (advantages "B T", returns "B T" or None), zero off target.

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
    def separates_penalty(self) -> bool:
        """Reads the KL penalty of a response in `rows.penalty`; else it is added to the rewards."""
        return False

    @property
    def compares(self) -> bool:
        """Compares the responses of one prompt, so that one response per prompt teaches nothing."""
        return False

    @property
    def amplifies_noise(self) -> bool:
        """Divides by a spread of rewards whose floor is below 0.1: where rewards nearly agree, their noise decides the advantages."""
        return False

    def initial_state(self) -> AdvantageState | None:
        """What is carried from draw to draw, one per source, passed as `state` and updated in place. None: nothing."""
        return None

    @abstractmethod
    def __call__(
        self, rows: RolloutRows, state: AdvantageState | None, all_reduce: AllReduce
    ) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"] | None]:
        """`state` is what `initial_state` gave. `all_reduce` sums over processes; every process calls it equally often."""

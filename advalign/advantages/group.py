"""Group-relative advantages: A = (R - mean of the group) / scale.

scale "group": max(std of the group, floor)    (GRPO, arXiv:2402.03300, section 4.1.2)
scale "batch": max(std of the batch, floor)    (Lite PPO, arXiv:2508.08221)
scale "none":  1                               (Dr. GRPO, arXiv:2503.20783, section 3.2)

Difference: the paper divides by std alone; public code adds a guard of 1e-4 or 1e-6 to it. Ours is a floor, so that the formula is the
paper's wherever the std is larger, and with a trainable reward a large floor (1.0) gives "none" near equilibrium, where dividing by a
vanishing std would turn the discriminator's noise into unit-variance advantages. Standard deviations have ddof = 1, as in public code.
Constant groups, singletons included, get exactly 0 (one framework gives a singleton its raw reward).
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from jaxtyping import Float
from torch import Tensor

from advalign.functional import advantages
from advalign.interfaces import Advantage, AdvantageState, AllReduce
from advalign.ranges import OneOf, Positive
from advalign.types import RolloutRows

__all__ = ["Group"]

SCALES = ("group", "batch", "none")


@dataclass(frozen=True, kw_only=True)
class Group(Advantage):
    """A = (R - mean_group) / max(std, floor)."""

    scale: Annotated[str, OneOf(SCALES, "scale")] = "group"
    """Standard deviation that the difference is divided by: of the group, of the batch, or none."""
    floor: Positive = 1e-4
    """Of the standard deviation; public code adds 1e-4 or 1e-6 to it instead."""

    compares: ClassVar[bool] = True

    @property
    def amplifies_noise(self) -> bool:
        return self.scale != "none" and self.floor < 0.1

    def __call__(
        self, rows: RolloutRows, state: AdvantageState | None, all_reduce: AllReduce
    ) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"] | None]:
        rewards, group = rows.rewards.sum(1), rows.tokens.group
        if self.scale == "group":
            per_row = advantages.group_relative(rewards, group, floor=self.floor)
        elif self.scale == "batch":
            per_row = advantages.batch_relative(rewards, group, floor=self.floor, all_reduce=all_reduce)
        else:
            per_row, _ = advantages.centred(rewards, group)
        return advantages.expand(per_row, rows.tokens.target), None

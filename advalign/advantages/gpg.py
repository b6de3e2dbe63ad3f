"""A = alpha (R - mean of the group), alpha = number of responses of the draw / number that count   (GPG, arXiv:2504.02546).

Responses of constant groups have no gradient but do count in the mean of the loss; alpha undoes that shrinking. Paper and code disagree:
counted "groups":  responses of groups whose rewards differ (paper: alpha = B / (B - M), M the responses of constant groups)
counted "rewards": responses whose reward is not 0 (public code), which depends on where the zero of the reward lies
Counts span all ranks; where nothing counts, alpha multiplies zeros. Differences: constant groups, groups of one included, get exactly 0
(public code gives a group of one its raw reward); the paper's resampling until enough groups differ belongs to a source.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from advalign.functional import advantages
from advalign.interfaces import Advantage, AdvantageState, AllReduce
from advalign.ranges import OneOf
from advalign.types import RolloutRows

__all__ = ["GPG"]

COUNTED = ("groups", "rewards")


@dataclass(frozen=True, kw_only=True)
class GPG(Advantage):
    """A = alpha (R - mean), alpha = number of responses / number that count."""

    counted: Annotated[str, OneOf(COUNTED, "way to count")] = "groups"
    """Which responses count in alpha: groups (those of groups whose rewards differ) or rewards (those whose reward is not 0)."""

    compares: ClassVar[bool] = True

    def __call__(
        self, rows: RolloutRows, state: AdvantageState | None, all_reduce: AllReduce
    ) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"] | None]:
        rewards, group = rows.rewards.sum(1), rows.tokens.group
        counts = ~advantages.is_constant(rewards, group) if self.counted == "groups" else rewards != 0
        total = all_reduce(torch.stack([rewards.new_tensor(float(rewards.numel())), counts.to(rewards.dtype).sum()]))
        alpha = total[0] / total[1].clamp(min=1)
        return advantages.expand(alpha * advantages.centred(rewards, group)[0], rows.tokens.target), None

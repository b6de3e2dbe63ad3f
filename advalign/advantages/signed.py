"""A = +positive for a correct response, -negative for an incorrect one; no baseline   (arXiv:2506.01347).

    PSR          positive 1,   negative 0      only what was right is reinforced
    NSR          positive 0,   negative 1      only what was wrong is suppressed
    W-REINFORCE  positive 0.1, negative 1      the default; the paper's lambda is 0.1

Correct means R > threshold: 0.5 suits rewards in {0, 1} and in {-1, 1}, and shaped rewards have a threshold of their own (released code
tests R == 1 and R == 0, so that a shaped reward is neither). Difference: a response whose advantage is 0 stays in the denominators of the
loss. Released code drops it from the batch, which for PSR and NSR multiplies a mean over tokens by all tokens / kept tokens; with the mean
over all, a prompt that is mostly solved teaches NSR little, which is the expectation of the paper's equation.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from advalign.errors import ConfigError
from advalign.functional import advantages
from advalign.interfaces import Advantage, AdvantageState, AllReduce
from advalign.ranges import Finite, NonNegative
from advalign.types import RolloutRows

__all__ = ["Signed"]


@dataclass(frozen=True, kw_only=True)
class Signed(Advantage):
    """A = +positive where R > threshold, -negative elsewhere."""

    positive: NonNegative = 0.1
    """Advantage of a correct response; lambda of W-REINFORCE."""
    negative: NonNegative = 1.0
    """Minus the advantage of an incorrect response."""
    threshold: Finite = 0.5
    """A response is correct if its reward is above this."""

    def __post_init__(self) -> None:
        if self.positive == self.negative == 0:
            raise ConfigError("advantages.signed: positive and negative are both 0, so nothing is learned; set one above 0.")

    def __call__(
        self, rows: RolloutRows, state: AdvantageState | None, all_reduce: AllReduce
    ) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"] | None]:
        rewards = rows.rewards.sum(1)
        positive = torch.full_like(rewards, self.positive)
        per_row = torch.where(rewards > self.threshold, positive, -self.negative)
        return advantages.expand(per_row, rows.tokens.target), None

"""A = +positive for a correct response, -negative for an incorrect one; no baseline   (arXiv:2506.01347).

    PSR          positive 1,   negative 0      only what was right is reinforced
    NSR          positive 0,   negative 1      only what was wrong is suppressed
    W-REINFORCE  positive 0.1, negative 1      the default; the paper's lambda is 0.1

Correct means R > threshold: 0.5 suits rewards in {0, 1} and in {-1, 1}, and shaped rewards have a threshold of their own (released code
tests R == 1 and R == 0, so that a shaped reward is neither). Difference: a response whose advantage is 0 stays in the denominators of the
loss. Released code drops it from the batch, which for PSR and NSR multiplies a mean over tokens by all tokens / kept tokens; with the mean
over all, a prompt that is mostly solved teaches NSR little, which is the expectation of the paper's equation.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from advalign.errors import ConfigError
from advalign.functional import advantages
from advalign.interfaces import Advantage
from advalign.types import RolloutRows

__all__ = ["Signed"]


@dataclass(frozen=True, kw_only=True)
class Signed(Advantage):
    """A = +positive where R > threshold, -negative elsewhere."""

    positive: float = 0.1  # lambda of W-REINFORCE
    negative: float = 1.0
    threshold: float = 0.5

    needs_values: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("positive", "negative"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"advantages.signed.{name}: got {getattr(self, name)}, must not be below 0.")
        if self.positive == self.negative == 0:
            raise ConfigError("advantages.signed: positive and negative are both 0, so that nothing is learned; set one above 0.")

    def __call__(
        self, rows: RolloutRows, state: Any, all_reduce: Callable[[Tensor], Tensor]
    ) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"] | None]:
        rewards = rows.rewards.sum(1)
        right = torch.full_like(rewards, self.positive)
        each = torch.where(rewards > self.threshold, right, -self.negative)
        return advantages.expand(each, rows.tokens.target), None

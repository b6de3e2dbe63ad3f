"""A_t = sum_{k >= t} R_k - b, b = the reward of the greedy response to the same prompt   (ReMax, arXiv:2310.10505, algorithm 1).

The source draws one greedy response per prompt, scores it with the same rewards and hands it on as `rows.baseline`; that response is not
trained on. Without token rewards A is R - b on every target token. Not group relative: one response per prompt is enough, and a group whose
rewards are all equal still learns, unless the greedy response earned the same. Difference: public code leaves the reward to go on tokens
between two stretches of a response; here everything off target is zero.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from advalign.errors import ConfigError
from advalign.functional import advantages
from advalign.interfaces import Advantage, AdvantageState, AllReduce
from advalign.types import RolloutRows

__all__ = ["ReMax"]


@dataclass(frozen=True, kw_only=True)
class ReMax(Advantage):
    """A = R - R(greedy response)."""

    needs_baseline: ClassVar[bool] = True
    reads_token_rewards: ClassVar[bool] = True

    def __call__(
        self, rows: RolloutRows, state: AdvantageState | None, all_reduce: AllReduce
    ) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"] | None]:
        if rows.baseline is None:
            raise ConfigError("advantages.remax: rows carry no baseline; use a source that scores the greedy response to every prompt.")
        target = rows.tokens.target
        per_token = advantages.expand(rows.rewards.sum(1) - rows.baseline, target)
        if rows.token_rewards is not None:
            per_token = per_token + advantages.reward_to_go(rows.token_rewards, target, gamma=1.0)
        return per_token, None

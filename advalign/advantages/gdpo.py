"""A = S / std(S), S = sum_k w_k (R_k - mean_g R_k) / std_g R_k   (GDPO, arXiv:2601.05242).

Each reward is normalised in its group before they are added up. Summed first, different combinations of rewards share one advantage,
and the reward that varies most drowns the others.
whiten "rows":   divided by the std of S over all responses of the draw (the paper; its mean is 0 already, as it is in every group)
whiten "tokens": (S - mean) / std over all target tokens (one public framework), which shifts S where lengths differ
whiten "none":   S itself
Differences: stds have floors instead of addends. The weight of a reward cancels when it is normalised and its sign does not, so weights
between rewards are `weights`, one per reward, in order. A reward that is constant in a group adds exactly 0 there.
A KL penalty of the source is no reward to normalise: P - mean_g P is added to A (of "tokens": to S's whitened form), at its own size.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from advalign.errors import ConfigError
from advalign.functional import advantages
from advalign.interfaces import Advantage, AdvantageState, AllReduce
from advalign.ranges import Finite, OneOf, Positive
from advalign.types import RolloutRows

__all__ = ["GDPO"]

WHITEN = ("rows", "tokens", "none")


@dataclass(frozen=True, kw_only=True)
class GDPO(Advantage):
    """A = S / std(S), S = sum_k w_k (R_k - mean_g R_k) / std_g R_k."""

    weights: tuple[Finite, ...] | None = None
    """w_k, one per reward, in order; None: 1 each."""
    whiten: Annotated[str, OneOf(WHITEN, "way to whiten")] = "rows"
    """rows: S over its standard deviation over responses; tokens: S whitened over target tokens; none: S."""
    floor: Positive = 1e-4
    """Of all standard deviations; public code adds 1e-6 or 1e-4 to them."""

    compares: ClassVar[bool] = True
    separates_penalty: ClassVar[bool] = True

    def __call__(
        self, rows: RolloutRows, state: AdvantageState | None, all_reduce: AllReduce
    ) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"] | None]:
        rewards, group, target = rows.rewards, rows.tokens.group, rows.tokens.target
        weights = self.weights or (1.0,) * rewards.shape[1]
        if len(weights) != rewards.shape[1]:
            raise ConfigError(f"advantages.gdpo.weights: got {len(weights)} for {rewards.shape[1]} rewards, must be one for each.")
        per_row = torch.zeros_like(rewards[:, 0])
        for i, (weight, reward) in enumerate(zip(weights, rewards.unbind(1), strict=True)):
            relative = torch.zeros_like(reward)
            # A row that a reward abstained on is not in that reward's statistics. Columns appended later (a penalty) are complete.
            scored = torch.ones_like(group, dtype=torch.bool)
            if rows.scored is not None and i < rows.scored.shape[1]:
                scored = rows.scored[:, i]
            relative[scored] = advantages.group_relative(reward[scored], group[scored], floor=self.floor)
            per_row = per_row + weight * relative
        if self.whiten == "rows":
            per_row = per_row / advantages.moments(per_row, all_reduce)[1].clamp(min=self.floor)
        per_token = advantages.expand(per_row, target)
        if self.whiten == "tokens":
            per_token = advantages.whiten(per_token, target, floor=self.floor, all_reduce=all_reduce)
        if rows.penalty is not None:
            per_token = per_token + advantages.expand(advantages.centred(rows.penalty, group)[0], target)
        return per_token, None

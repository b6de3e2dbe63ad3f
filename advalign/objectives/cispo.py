"""l_t = -sg(clip(r_t, 1 - low, 1 + high)) A_t log p_t; mean over all tokens   (CISPO, arXiv:2506.13585, eq. 4).

The weight is clipped, the token never dropped. Both clips are distances from 1, as everywhere here: `clip_high: 4` caps the weight at 5
(ScaleRL's value; in one framework the option of this name is the cap itself), `clip_low: 1` leaves it unbounded below, as in the paper.
On another view the log-probability is the attacked one, the weight stays clean.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from advalign.functional import policy
from advalign.functional.logprobs import zero_off_target
from advalign.objectives._policy import PolicyObjective
from advalign.ranges import Bound
from advalign.types import Losses, Outputs, RolloutRows

__all__ = ["CISPO"]


@dataclass(frozen=True, kw_only=True)
class CISPO(PolicyObjective):
    """-sg(clip(r, 1 - low, 1 + high)) A log p."""

    clip_low: Bound = 1.0
    """How far the weight may fall below 1."""
    clip_high: Bound = 4.0
    """How far the weight may rise above 1."""

    def losses(self, rows: RolloutRows, views: Mapping[str, Outputs]) -> Losses:
        clean, old, attacked = self.logprobs(rows, views)
        target = self.target(rows)
        ratio, advantages = policy.token_ratio(clean, old, target), zero_off_target(rows.advantages, target)
        through = zero_off_target(clean if attacked is None else attacked, target)
        losses = policy.weighted_likelihood(through, ratio.clamp(1 - self.clip_low, 1 + self.clip_high), advantages)
        return Losses(losses, policy.policy_metrics(ratio, clean, old, advantages, target, low=self.clip_low, high=self.clip_high))

"""l_t = -A_t log p_t: the score-function estimator   (Williams, 1992; arXiv:2402.14740 for language models).

No ratio: from the second update of a draw on it is biased, which is the point of comparing with it. The baseline is the advantage's
(`leave_one_out`: RLOO; `reinforce_pp`; `remax`; `opo`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from advalign.functional import policy
from advalign.functional.logprobs import zero_off_target
from advalign.objectives._policy import PolicyObjective
from advalign.types import Losses, Outputs, RolloutRows

__all__ = ["REINFORCE"]


@dataclass(frozen=True, kw_only=True)
class REINFORCE(PolicyObjective):
    """-A log p: no ratio, no clip."""

    def losses(self, rows: RolloutRows, views: Mapping[str, Outputs]) -> Losses:
        clean, old, attacked = self.logprobs(rows, views)
        target = self.target(rows)
        through = zero_off_target(clean if attacked is None else attacked, target)
        losses = policy.weighted_likelihood(through, torch.ones_like(through), zero_off_target(rows.advantages, target))
        ratio = policy.token_ratio(clean, old, target)
        return Losses(losses, policy.policy_metrics(ratio, clean, old, rows.advantages, target, low=1.0, high=float("inf")))

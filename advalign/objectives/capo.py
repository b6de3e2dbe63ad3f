"""l = (d_chosen - d_rejected - 1 / (2 beta))^2, d = mean_t log p - log p_ref, log p of rejected tokens cut at `cutoff`
(C-AdvIPO, arXiv:2405.15589: the loss of IPO, arXiv:2310.12036; the policy is attacked, the reference reads the clean prompt).

A rejected token below the cutoff has no gradient: the harmful answer is unlikely enough. Differences: the released code sets the log p
of such tokens to 0, as if they were certain, so that its loss jumps; here they are clamped, of the policy and of the reference alike, and
d is 0 where the two agree. There the reference's numbers also reach the rows in reverse order. No utility rows were used.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from advalign.functional import preference
from advalign.functional.logprobs import zero_off_target
from advalign.objectives._pairs import REPORTED, PairObjective
from advalign.ranges import Interval, Positive
from advalign.types import Losses, Outputs, PairRows

__all__ = ["CAPO"]


@dataclass(frozen=True, kw_only=True)
class CAPO(PairObjective):
    """(d_chosen - d_rejected - 1 / (2 beta))^2, d = mean of log p - log p_ref, rejected tokens cut at `cutoff`."""

    beta: Positive = 0.25
    """Margin: the difference of mean log-ratios is regressed onto 1 / (2 beta)."""
    cutoff: Annotated[float, Interval(high=0, high_open=True, unbounded=True)] = -5.0
    """Log-probability at which rejected tokens are cut; -.inf: not at all."""

    metric_names: ClassVar[frozenset[str] | None] = REPORTED | {"cut/rejected"}
    annotations: ClassVar[frozenset[str]] = frozenset({"ref_logprobs"})

    def losses(self, rows: PairRows, views: Mapping[str, Outputs]) -> Losses:
        logprobs, target = views[self.view].logprobs, rows.tokens.target
        assert logprobs is not None
        assert rows.ref_logprobs is not None
        ratios = self._mean(logprobs, target) - self._mean(rows.ref_logprobs, target)
        losses = preference.ipo(preference.difference(ratios), beta=self.beta)
        below = (zero_off_target(logprobs, target) < self.cutoff).to(losses.dtype).sum(1) / target.sum(1).clamp(min=1)
        means = self.logps(rows, views, normalize=True)
        return self.report(rows, losses, rewards=self.beta * ratios, logps=means, extra={"cut/rejected": below[1::2]})

    def _mean(self, logprobs: Float[Tensor, "B T"], target: Bool[Tensor, "B T"]) -> Float[Tensor, "B"]:
        """Mean log-probability per row, that of rejected rows of clamped tokens."""
        rejected = torch.arange(len(target), device=target.device)[:, None] % 2 == 1
        return preference.mean(torch.where(rejected, logprobs.clamp(min=self.cutoff), logprobs), target)

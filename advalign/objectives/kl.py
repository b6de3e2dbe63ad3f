"""KL(p || p_ref) estimated on the sampled tokens; d = log p - log p_ref (Schulman, 2020; in GRPO: arXiv:2402.03300, eq. 4).

k1 = d · k2 = d^2 / 2 · k3 = exp(-d) - 1 + d · k3+ = value of k3, gradient of k2.

Difference: GRPO and most public code differentiate k3, whose expected gradient is that of KL(p_ref || p). The default here is k3+: its
value is k3's (low variance, never negative), and its expected gradient is that of KL(p || p_ref) while samples are on-policy. k1 is for
logging and for tests: as a loss its expected gradient is zero. `importance` multiplies by r = p / p_old, with gradient: then k1 and k3 have
the gradient of KL(p || p_ref) whatever policy drew the samples (DeepSeek-V3.2, arXiv:2512.02556, section 3.1), and k2 and k3+ do not.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from advalign.functional import divergence, ratios, weights
from advalign.functional.logprobs import zero_off_target
from advalign.functional.masks import sampled_tokens
from advalign.interfaces import Objective
from advalign.ranges import OneOf
from advalign.types import Losses, Outputs, RolloutRows, Rows, Weights

__all__ = ["KL"]


@dataclass(frozen=True, kw_only=True)
class KL(Objective[RolloutRows]):
    """k3+(log p - log p_ref) on sampled tokens."""

    estimator: Annotated[str, OneOf(divergence.ESTIMATORS, "estimator")] = "k3+"
    """k1, k2, k3 or k3+."""
    weighting: weights.Weighting = "token"
    """token: every target token of the update counts the same; sequence: every row does."""
    importance: bool = False
    """Multiply by r = p / p_old, with gradient."""

    metric_names: ClassVar[frozenset[str] | None] = frozenset({"k1", "k3"})
    row_types: ClassVar[tuple[type[Rows], ...]] = (RolloutRows,)
    annotations: ClassVar[frozenset[str]] = frozenset({"ref_logprobs"})

    @property
    def columns(self) -> frozenset[str]:
        return self.annotations | ({"old_logprobs"} if self.importance else frozenset())

    @property
    def reads(self) -> Mapping[str, frozenset[str]]:
        return {self.view: frozenset({"logprobs"})}

    def weights(self, rows: RolloutRows) -> Weights:
        return weights.by_name(self.weighting, sampled_tokens(rows.tokens.target, rows.offpolicy))

    def losses(self, rows: RolloutRows, views: Mapping[str, Outputs]) -> Losses:
        # Demonstrations inside groups were not drawn from any policy, so no estimator holds for them.
        logprobs, target = views[self.view].logprobs, sampled_tokens(rows.tokens.target, rows.offpolicy)
        assert logprobs is not None
        assert rows.ref_logprobs is not None
        logprobs, ref = zero_off_target(logprobs, target), zero_off_target(rows.ref_logprobs, target)
        weight = target.to(logprobs.dtype)
        metrics = {
            "k1": (divergence.k1(logprobs, ref).detach(), weight),
            "k3": (divergence.k3(logprobs, ref).detach(), weight),
        }
        losses = divergence.ESTIMATORS[self.estimator](logprobs, ref)
        if self.importance:
            old = logprobs.detach() if rows.old_logprobs is None else zero_off_target(rows.old_logprobs, target)
            losses = losses * ratios.token(logprobs, old)
        return Losses(losses, metrics)

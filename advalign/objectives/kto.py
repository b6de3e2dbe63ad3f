"""l = lambda_D (1 - sigmoid(beta (r - z0))) of a desirable response, lambda_U (1 - sigmoid(beta (z0 - r))) of an undesirable one.

(KTO, arXiv:2402.01306, eq. 7; r = sum_t log p - log p_ref.) The reference point z0 = max(0, mean of r over mismatched rows), prompt i with
the response of row i + 1, is an annotation: one number per draw, without gradient. lambda_D n_D / (lambda_U n_U) should lie between 1
and 4/3 (eq. 8; n: how many rows there are of each kind). Differences: z0 belongs to the draw and not to the micro-batch, so results do not
depend on the split; with several updates per draw it is that of the first.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from advalign.functional import preference, weights
from advalign.interfaces import Objective
from advalign.ranges import Positive
from advalign.types import FeedbackRows, Losses, Outputs, Rows, Weights

__all__ = ["KTO"]


@dataclass(frozen=True, kw_only=True)
class KTO(Objective[FeedbackRows]):
    """lambda (1 - sigmoid(+-beta (r - z0))), r = log p - log p_ref: + for desirable responses, - for undesirable ones."""

    beta: Positive = 0.1
    """Scale of the log-ratio; a larger one stays closer to the reference."""
    desirable_weight: Positive = 1.0
    """lambda_D."""
    undesirable_weight: Positive = 1.0
    """lambda_U."""

    metric_names: ClassVar[frozenset[str] | None] = frozenset(
        {"kl", "logps/chosen", "logps/rejected", "rewards/chosen", "rewards/rejected"}
    )
    row_types: ClassVar[tuple[type[Rows], ...]] = (FeedbackRows,)
    annotations: ClassVar[frozenset[str]] = frozenset({"ref_logprobs", "anchor"})

    @property
    def reads(self) -> Mapping[str, frozenset[str]]:
        return {self.view: frozenset({"logprobs"})}

    def weights(self, rows: FeedbackRows) -> Weights:
        return weights.rows(rows.tokens.target.any(1))

    def losses(self, rows: FeedbackRows, views: Mapping[str, Outputs]) -> Losses:
        logprobs, target = views[self.view].logprobs, rows.tokens.target
        assert logprobs is not None
        assert rows.ref_logprobs is not None
        assert rows.anchor is not None
        logps, anchor = preference.total(logprobs, target), rows.anchor.to(logprobs.dtype)
        ratios = logps - preference.total(rows.ref_logprobs, target)
        losses = preference.kto(
            ratios,
            anchor,
            rows.desirable,
            beta=self.beta,
            desirable_weight=self.desirable_weight,
            undesirable_weight=self.undesirable_weight,
        )
        weight = target.any(1).to(losses.dtype)
        desirable, undesirable = weight * rows.desirable, weight * ~rows.desirable
        rewards = self.beta * ratios.detach()
        metrics = {
            "rewards/chosen": (rewards, desirable),
            "rewards/rejected": (rewards, undesirable),
            "logps/chosen": (logps.detach(), desirable),
            "logps/rejected": (logps.detach(), undesirable),
            "kl": (anchor.detach(), weight),
        }
        return Losses(losses, metrics)

"""l = -log sigmoid(beta (d_chosen - d_rejected)), d = sum_t log p - log p_ref   (arXiv:2305.18290, eq. 7).

label_smoothing e > 0 is conservative DPO: (1 - e) l(d) + e l(-d). Differences: none; log-probabilities are summed over the
target tokens, not averaged. On the view of an adversary the policy is attacked, the reference (an annotation) is not.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from advalign.errors import ConfigError
from advalign.functional import preference, weights
from advalign.functional.logprobs import only
from advalign.protocols import Term
from advalign.types import Losses, Outputs, PairRows, Rows, Weights

__all__ = ["DPO"]


@dataclass(frozen=True, kw_only=True)
class DPO(Term):
    """-log sigmoid(beta (d_chosen - d_rejected)), d = log p - log p_ref."""

    beta: float = 0.1
    label_smoothing: float = 0.0

    rows: ClassVar[tuple[type[Rows], ...]] = (PairRows,)
    annotations: ClassVar[frozenset[str]] = frozenset({"ref_logprobs"})

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 0.5:
            raise ConfigError(f"objectives.dpo.label_smoothing: got {self.label_smoothing}, must be at least 0 and below 0.5.")

    @property
    def reads(self) -> Mapping[str, frozenset[str]]:
        return {self.view: frozenset({"logprobs"})}

    def weights(self, rows: PairRows) -> Weights:
        """One per PAIR; a pair with an empty side does not count."""
        counted = rows.tokens.target.any(1)
        return weights.rows(counted[0::2] & counted[1::2])

    def losses(self, rows: PairRows, views: Mapping[str, Outputs]) -> Losses:
        logprobs, target = views[self.view].logprobs, rows.tokens.target
        assert logprobs is not None
        assert rows.ref_logprobs is not None
        chosen, rejected = preference.sums(only(logprobs, target), only(rows.ref_logprobs, target))
        losses = preference.dpo(chosen - rejected, beta=self.beta, label_smoothing=self.label_smoothing)
        margin = self.beta * (chosen - rejected).detach()
        each = self.weights(rows).values.to(margin.dtype)
        metrics = {
            "accuracy": ((margin > 0).to(margin.dtype), each),
            "margin": (margin, each),
            "chosen": (self.beta * chosen.detach(), each),
            "rejected": (self.beta * rejected.detach(), each),
        }
        return Losses(losses, metrics)

"""l = -log sigmoid(beta (d_chosen - d_rejected)), d = sum_t log p - log p_ref   (arXiv:2305.18290, eq. 7).

`label_smoothing` and `flip_rate` are two answers to labels that are wrong with probability e.
Differences: none; log-probabilities are summed over the target tokens, not averaged. On the view of an adversary the policy is attacked,
the reference (an annotation) is not.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from advalign.errors import ConfigError
from advalign.functional import preference
from advalign.objectives._pairs import REPORTED, PairObjective
from advalign.ranges import Positive, number
from advalign.types import Losses, Outputs, PairRows

__all__ = ["DPO"]


@dataclass(frozen=True, kw_only=True)
class DPO(PairObjective):
    """-log sigmoid(beta (d_chosen - d_rejected)), d = log p - log p_ref."""

    beta: Positive = 0.1
    """Strength of the KL constraint; a larger one stays closer to the reference."""
    label_smoothing: Annotated[float, number(0, 0.5, below=True)] = 0.0
    """e of conservative DPO: (1 - e) l(d) + e l(-d), which stops at a finite margin."""
    flip_rate: Annotated[float, number(0, 0.5, below=True)] = 0.0
    """e of robust DPO (arXiv:2403.00409): ((1 - e) l(d) - e l(-d)) / (1 - 2 e), an unbiased estimate of the loss of the true labels."""

    metric_names: ClassVar[frozenset[str] | None] = REPORTED
    annotations: ClassVar[frozenset[str]] = frozenset({"ref_logprobs"})

    def __post_init__(self) -> None:
        if self.label_smoothing and self.flip_rate:
            raise ConfigError(
                f"objectives.dpo: label_smoothing {self.label_smoothing} and flip_rate {self.flip_rate} answer the same question; set one."
            )

    def losses(self, rows: PairRows, views: Mapping[str, Outputs]) -> Losses:
        logps = self.logps(rows, views)
        ratios = logps - self.ref_logps(rows)
        d = preference.difference(ratios)
        if self.flip_rate:
            losses = preference.robust_dpo(d, beta=self.beta, flip_rate=self.flip_rate)
        else:
            losses = preference.dpo(d, beta=self.beta, label_smoothing=self.label_smoothing)
        return self.report(rows, losses, rewards=self.beta * ratios, logps=logps)

"""A discriminator's loss on scores s (D = sigmoid(s)): real rows against perturbed and generated ones.

bce:            -(1 - e) log D - e log(1 - D) if real, -log(1 - D) if not    (arXiv:1406.2661, eq. 1; e: arXiv:1606.03498, section 3.4)
hinge:          max(0, 1 - s) if real, max(0, 1 + s) if not                  (arXiv:1705.02894)
bradley_terry:  -log sigmoid(s_real - s_other), every pair in one group      (GAD, arXiv:2511.10643)

Differences: GAPO (the source of perturbed negatives) has no smoothing; one-sided e = 0.1 is our default, because it bounds scores and
keeps q = p as the only fixed point. GAD pairs one reference with the rollouts of its prompt; we pair every real row with every other row
of its group. Bradley-Terry is written per row, so that weights stay per row: a row's loss is its mean over opponents, its weight half
their number, the count the number of pairs. A group must then stay whole within a micro-batch: `bundle` says so. Rows without an opponent
do not count.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from advalign.errors import ConfigError, unknown
from advalign.functional import gan, weights
from advalign.protocols import Term
from advalign.types import LabelRows, Losses, Outputs, Rows, Weights

__all__ = ["Discriminate"]

LOSSES = ("bce", "hinge", "bradley_terry")
SATURATED = 8.0  # |s| beyond which sigmoid(s) leaves a gradient below 3.4e-4


@dataclass(frozen=True, kw_only=True)
class Discriminate(Term):
    """Real against perturbed and generated rows: -log D(real) - log(1 - D(other))."""

    learner: str = "judge"
    loss: str = "bce"
    label_smoothing: float = 0.1

    rows: ClassVar[tuple[type[Rows], ...]] = (LabelRows,)

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise unknown("objectives.discriminate.loss", "loss", self.loss, LOSSES)
        if not 0 <= self.label_smoothing < 0.5:
            raise ConfigError(f"objectives.discriminate.label_smoothing: got {self.label_smoothing}, must be at least 0 and below 0.5.")

    @property
    def bundle(self) -> str:
        """What must not be split over micro-batches: "row", or "group"."""
        return "group" if self.loss == "bradley_terry" else "row"

    @property
    def reads(self) -> Mapping[str, frozenset[str]]:
        return {self.view: frozenset({"scores"})}

    def weights(self, rows: LabelRows) -> Weights:
        counted = rows.tokens.mask.any(1)
        if self.loss == "bradley_terry":
            return weights.matched(rows.labels, rows.tokens.group, counted)
        return weights.rows(counted)

    def losses(self, rows: LabelRows, views: Mapping[str, Outputs]) -> Losses:
        scores = views[self.view].scores
        assert scores is not None
        counted = rows.tokens.mask.any(1)
        right = (scores.detach() * gan.signs(rows.labels) > 0).to(scores.dtype)
        if self.loss == "bradley_terry":
            losses, right = gan.bradley_terry(scores, rows.labels, rows.tokens.group, counted)
        elif self.loss == "hinge":
            losses = gan.hinge(scores, rows.labels)
        else:
            losses = gan.bce(scores, rows.labels, label_smoothing=self.label_smoothing)
        return Losses(losses, self._metrics(rows, scores.detach(), right))

    def _metrics(self, rows: LabelRows, scores: Float[Tensor, "B"], right: Float[Tensor, "B"]) -> dict[str, tuple[Tensor, Tensor]]:
        each = rows.tokens.mask.any(1).to(scores.dtype)
        judged = self.weights(rows).values.to(scores.dtype)
        metrics = {
            "accuracy": (right, judged),
            "margin": (scores * gan.signs(rows.labels), each),
            "saturation": ((scores.abs() > SATURATED).to(scores.dtype), each),
        }
        if rows.kind is not None:
            for index, name in enumerate(LabelRows.KINDS):
                metrics[f"accuracy/{name}"] = (right, judged * (rows.kind == index))
        return metrics

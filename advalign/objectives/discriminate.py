"""A discriminator's loss on scores s (D = sigmoid(s)): real rows against perturbed and generated ones.

bce:            -(1 - e) log D - e log(1 - D) if real, -log(1 - D) if not    (arXiv:1406.2661, eq. 1; e: arXiv:1606.03498, section 3.4)
hinge:          max(0, 1 - s) if real, max(0, 1 + s) if not                  (arXiv:1705.02894)
least_squares:  (s - 1)^2 / 2 if real, (s + 1)^2 / 2 if not                  (arXiv:1611.04076, eq. 2)
wasserstein:    -s if real, s if not; bound its gradient (gradient_penalty)  (arXiv:1701.07875, eq. 3)
bradley_terry:  -log sigmoid(s_real - s_other), every pair in one group      (GAD, arXiv:2511.10643)
relativistic:   -log sigmoid of the lead over the mean of the other side    (RaGAN, arXiv:1807.00734)

plus score_l2 s^2 (PRISM, arXiv:2604.28123). Differences: GAPO (the source of perturbed negatives) has no smoothing; one-sided e = 0.1 is
our default, because it bounds scores and keeps q = p as the only fixed point. GAD pairs one reference with the rollouts of its prompt; we
pair every real row with every other row of its group. Bradley-Terry is written per row: a row's loss is its mean over opponents, its weight
half their number, the count the number of pairs. The relativistic means are over the group, the paper's over the batch, so
micro-batches do not change them. Both need groups whole within a micro-batch: `bundle` says so. Rows without an opponent count in neither.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from advalign.errors import ConfigError, unknown
from advalign.functional import gan, weights
from advalign.interfaces import Objective
from advalign.names import LearnerName
from advalign.ranges import NonNegative, OneOf, number
from advalign.types import LabelRows, Losses, Outputs, Rows, Weights

__all__ = ["Discriminate"]

ALONE = ("bce", "hinge", "least_squares", "wasserstein")
ROW_BY_ROW = ("bce", "hinge", "least_squares")  # a row's weight is its own
COMPARED = ("bradley_terry", "relativistic")  # with the other side of the row's group
LEVELS = ("sequence", "token")
SATURATED = 8.0  # |s| beyond which sigmoid(s) leaves a gradient below 3.4e-4


@dataclass(frozen=True, kw_only=True)
class Discriminate(Objective[LabelRows]):
    """Real against perturbed and generated rows: -log D(real) - log(1 - D(other)).

    The loss of rows with an `offset` reads s - offset (AIRL, arXiv:1710.11248: offset = log pi(text | prompt)). With BCE, kind weights
    w_p of perturbed and w_g of generated rows move the game's fixed point to q ~ (p / c - w_p k)+ (docs/gan_theory.md); w_g alone only
    shifts all scores.
    """

    learner: LearnerName = "discriminator"
    """Name of the discriminator."""
    loss: Annotated[str, OneOf(ALONE + COMPARED, "loss")] = "bce"
    """bce, hinge, least_squares or wasserstein (row by row); bradley_terry or relativistic (against the other rows of the group)."""
    label_smoothing: Annotated[float, number(0, 0.5, below=True)] = 0.1
    """e of bce, on real rows only; at least 0 and below 0.5."""
    score_l2: NonNegative = 0.0
    """Weight of s^2."""
    level: Annotated[str, OneOf(LEVELS, "level")] = "sequence"
    """sequence: one score per row; token: one per token of the text, and a row's loss is the mean over its tokens."""
    kind_weights: Mapping[str, NonNegative] = field(default_factory=dict)
    """{kind of row: its weight}, such as {"generated": 0.5}; 1 for kinds that are not named."""

    metric_names: ClassVar[frozenset[str] | None] = frozenset(
        {"accuracy", *(f"accuracy/{name}" for name in LabelRows.KINDS), "margin", "saturation", "score/real", "score/other"}
    )
    row_types: ClassVar[tuple[type[Rows], ...]] = (LabelRows,)
    first_pass_metrics: ClassVar[frozenset[str]] = frozenset({"accuracy", "margin", "saturation", "score"})

    def __post_init__(self) -> None:
        if self.level == "token" and self.loss in COMPARED:
            allowed = ", ".join(ALONE)
            raise ConfigError(
                f"objectives.discriminate.level: '{self.loss}' compares whole rows, so it has no level 'token'; use {allowed}."
            )
        if self.kind_weights and self.loss not in ROW_BY_ROW:
            allowed = ", ".join(ROW_BY_ROW)
            raise ConfigError(f"objectives.discriminate.kind_weights: '{self.loss}' weighs sides or pairs, not kinds; use {allowed}.")
        for name in self.kind_weights:
            if name not in LabelRows.KINDS:
                raise unknown("objectives.discriminate.kind_weights", "kind of row", name, LabelRows.KINDS)

    @property
    def bundle(self) -> str:
        return "group" if self.loss in COMPARED else "row"

    @property
    def reads(self) -> Mapping[str, frozenset[str]]:
        return {self.view: frozenset({"token_scores" if self.level == "token" else "scores"})}

    def weights(self, rows: LabelRows) -> Weights:
        counted, by_token = self._counted(rows), weights.sequence(rows.tokens.target)
        if self.loss == "bradley_terry":
            return weights.matched(rows.labels, rows.tokens.group, counted)
        per_row = weights.rows(counted)
        if self.loss == "relativistic":
            per_row = weights.by_side(rows.labels, rows.tokens.group, counted)
        elif self.loss == "wasserstein":  # else a constant added to every score would pay
            per_row = weights.by_side(rows.labels, torch.zeros_like(rows.tokens.group), counted)
        if self.kind_weights:
            per_row = weights.scale(per_row, self._by_kind(rows))
        return per_row if self.level == "sequence" else replace(per_row, values=per_row.values[:, None] * by_token.values)

    def losses(self, rows: LabelRows, views: Mapping[str, Outputs]) -> Losses:
        scores, labels = self._scores(rows, views[self.view])
        logits = scores
        if rows.offset is not None:
            if self.level == "token":
                raise ConfigError("objectives.discriminate.level: rows with an offset have one score per row; use level: sequence.")
            logits = scores - rows.offset.to(scores.dtype)
        correct = logits.detach() * gan.signs(labels) > 0
        if self.loss == "bradley_terry":
            values, correct = gan.bradley_terry(logits, labels, rows.tokens.group, self._counted(rows))
        elif self.loss == "relativistic":
            values, lead = gan.relativistic(logits, labels, rows.tokens.group, self._counted(rows))
            correct = lead.detach() > 0
        elif self.loss == "bce":
            values = gan.bce(logits, labels, label_smoothing=self.label_smoothing)
        else:
            values = {"hinge": gan.hinge, "least_squares": gan.least_squares, "wasserstein": gan.wasserstein}[self.loss](logits, labels)
        if self.score_l2:
            values = values + self.score_l2 * scores.square()
        return Losses(values, self._metrics(rows, logits.detach(), labels, correct.to(logits.dtype)))

    def _counted(self, rows: LabelRows) -> Tensor:
        return (rows.tokens.target if self.level == "token" else rows.tokens.mask).any(1)

    def _by_kind(self, rows: LabelRows) -> Float[Tensor, "B"]:
        if rows.kind is None:
            raise ConfigError("objectives.discriminate.kind_weights: these rows have no kinds; use a source `contrast`, or leave it out.")
        return rows.kind.new_tensor([self.kind_weights.get(name, 1.0) for name in LabelRows.KINDS], dtype=torch.float64)[rows.kind]

    def _scores(self, rows: LabelRows, outputs: Outputs) -> tuple[Tensor, Tensor]:
        """Scores and their labels: "B", or by token "B T", zero off target."""
        if self.level == "sequence":
            assert outputs.scores is not None
            return outputs.scores, rows.labels
        assert outputs.token_scores is not None
        scores = torch.where(rows.tokens.target, outputs.token_scores, 0.0)
        return scores, rows.labels[:, None].expand(scores.shape)

    def _metrics(
        self, rows: LabelRows, scores: Float[Tensor, "*S"], labels: Tensor, correct: Float[Tensor, "*S"]
    ) -> dict[str, tuple[Tensor, Tensor]]:
        by_token, column = weights.sequence(rows.tokens.target).values, (-1, *[1] * (scores.ndim - 1))
        weight = (by_token if self.level == "token" else self._counted(rows)).to(scores.dtype)
        real = (rows.labels == 1).reshape(column)
        metrics = {
            "margin": (scores * gan.signs(labels), weight),
            "saturation": ((scores.abs() > SATURATED).to(scores.dtype), weight),
            "score/real": (scores, weight * real),
            "score/other": (scores, weight * ~real),
        }
        if self.loss == "wasserstein":  # the zero of its scores means nothing
            return metrics
        loss_weight = self.weights(rows).values.to(scores.dtype)
        metrics["accuracy"] = (correct, loss_weight)
        if rows.kind is not None:
            kind = rows.kind.reshape(column)
            metrics |= {f"accuracy/{name}": (correct, loss_weight * (kind == index)) for index, name in enumerate(LabelRows.KINDS)}
        return metrics

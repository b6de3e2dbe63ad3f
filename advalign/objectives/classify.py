"""l = -log softmax(z)_y: cross-entropy of a classifier's logits z against labels y, every row alike. Differences: none."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch.nn.functional import cross_entropy

from advalign.functional import weights
from advalign.interfaces import Objective
from advalign.types import LabelRows, Losses, Outputs, Rows, Weights

__all__ = ["Classify"]


@dataclass(frozen=True, kw_only=True)
class Classify(Objective[LabelRows]):
    """-log softmax(z)_y of labelled rows."""

    metric_names: ClassVar[frozenset[str] | None] = frozenset({"accuracy"})
    row_types: ClassVar[tuple[type[Rows], ...]] = (LabelRows,)

    @property
    def reads(self) -> Mapping[str, frozenset[str]]:
        return {self.view: frozenset({"class_logits"})}

    def weights(self, rows: LabelRows) -> Weights:
        return weights.rows(rows.tokens.mask.any(1))

    def losses(self, rows: LabelRows, views: Mapping[str, Outputs]) -> Losses:
        logits = views[self.view].class_logits
        assert logits is not None
        losses = cross_entropy(logits, rows.labels, reduction="none")
        correct = (logits.argmax(1) == rows.labels).to(losses.dtype)
        return Losses(losses, {"accuracy": (correct, rows.tokens.mask.any(1).to(losses.dtype))})

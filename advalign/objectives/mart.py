"""l = -log p'_y - log(1 - max_{k != y} p'_k) + weight KL(p || p') (1 - p_y),   p clean, p' attacked   (MART, Wang et al., ICLR 2020).

The divergence counts as far as the CLEAN prediction is wrong, with gradient. lambda is 5 in the released scripts (6
where the function is called without one).
Differences: logarithms are exact; the released code adds 1e-12 inside them, and takes log(1.0001 - p') and 1.0000001 - p.
The paper's attack climbs the cross-entropy, not this loss: give the adversary `inner: {kind: classify, ...}`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from advalign.errors import ConfigError
from advalign.functional import adversarial, weights
from advalign.interfaces import Objective
from advalign.names import ViewName
from advalign.ranges import NonNegative
from advalign.types import LabelRows, Losses, Outputs, Rows, Weights

__all__ = ["MART"]


@dataclass(frozen=True, kw_only=True)
class MART(Objective[LabelRows]):
    """BCE(p', y) + weight KL(p || p') (1 - p_y) of labelled rows."""

    against: ViewName = "clean"
    """The view whose predictions are p."""
    weight: NonNegative = 5.0
    """Of the divergence: the paper's lambda."""

    metric_names: ClassVar[frozenset[str] | None] = frozenset({"accuracy", "boosted", "divergence"})
    row_types: ClassVar[tuple[type[Rows], ...]] = (LabelRows,)

    def __post_init__(self) -> None:
        if self.view == self.against:
            raise ConfigError(f"objectives.mart.view: '{self.view}' is also `against`; name an adversary.")

    @property
    def reads(self) -> Mapping[str, frozenset[str]]:
        return {view: frozenset({"class_logits"}) for view in (self.against, self.view)}

    def weights(self, rows: LabelRows) -> Weights:
        return weights.rows(rows.tokens.mask.any(1))

    def losses(self, rows: LabelRows, views: Mapping[str, Outputs]) -> Losses:
        clean, attacked = views[self.against].class_logits, views[self.view].class_logits
        assert clean is not None
        assert attacked is not None
        losses, boosted, divergence = adversarial.mart(clean, attacked, rows.labels, weight=self.weight)
        weight = rows.tokens.mask.any(1).to(losses.dtype)
        correct = (attacked.argmax(1) == rows.labels).to(losses.dtype)
        metrics = {"boosted": boosted.detach(), "divergence": divergence.detach(), "accuracy": correct}
        return Losses(losses, {name: (values, weight) for name, values in metrics.items()})

"""l_t = -H(p(. | y_<t)): an entropy bonus, minimised as the negative entropy, `coef` its strength (arXiv:1602.01783, section 4).

Difference: none; the entropy is that of the full distribution at the sampling temperature, not a one-sample estimate.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from advalign.functional import weights
from advalign.functional.logprobs import zero_off_target
from advalign.interfaces import Objective
from advalign.types import DemoRows, Losses, Outputs, RolloutRows, Rows, Weights

__all__ = ["Entropy"]


@dataclass(frozen=True, kw_only=True)
class Entropy(Objective[RolloutRows | DemoRows]):
    """-H(p(. | y_<t)) on target tokens."""

    weighting: weights.Weighting = "token"
    """token: every target token of the update counts the same; sequence: every row does."""

    metric_names: ClassVar[frozenset[str] | None] = frozenset({"entropy"})
    row_types: ClassVar[tuple[type[Rows], ...]] = (RolloutRows, DemoRows)

    @property
    def reads(self) -> Mapping[str, frozenset[str]]:
        return {self.view: frozenset({"entropy"})}

    def weights(self, rows: RolloutRows | DemoRows) -> Weights:
        return weights.by_name(self.weighting, rows.tokens.target)

    def losses(self, rows: RolloutRows | DemoRows, views: Mapping[str, Outputs]) -> Losses:
        entropy = views[self.view].entropy
        assert entropy is not None
        entropy = zero_off_target(entropy, rows.tokens.target)
        return Losses(-entropy, {"entropy": (entropy.detach(), rows.tokens.target.to(entropy.dtype))})

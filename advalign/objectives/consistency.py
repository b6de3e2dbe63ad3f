"""l = D(p(. | x; against) || p(. | x; view)): two views of the same rows should predict alike.

divergence "symmetric_kl" (SMART, arXiv:1911.03437, section 2.1): KL(p || q) + KL(q || p). "kl" without `stop`: TRADES (arXiv:1901.08573),
with `stop`: VAT (arXiv:1704.03976). "js", "mse" (of logits). `output: classes` compares classifiers, one loss per row; `output: tokens`
compares next-token distributions, one loss per target token, in chunks (`models.heads`), so that no B x T x V tensor is stored.
`against` may be a frozen copy: with `frozen: {teacher: {learner: model, ema: 0.999}}`, `against: teacher` is SMART's Bregman proximal term.
With one draw of noise and "symmetric_kl" it is R3F (arXiv:2008.03156), with an attack and "symmetric_kl" ALUM (arXiv:2004.08994).
Differences: none.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from advalign.errors import ConfigError
from advalign.functional import weights
from advalign.functional.divergence import BETWEEN
from advalign.interfaces import Objective
from advalign.models import heads
from advalign.names import ViewName
from advalign.ranges import OneOf
from advalign.types import DemoRows, LabelRows, Losses, Outputs, RolloutRows, Rows, Weights

__all__ = ["Consistency"]

NEEDS = {"classes": "class_logits", "tokens": "distribution"}


@dataclass(frozen=True, kw_only=True)
class Consistency(Objective[LabelRows | DemoRows | RolloutRows]):
    """D(p(. | against) || p(. | view)), per row (classes) or per token."""

    against: ViewName = "clean"
    """The view it compares with: clean, or the name of an adversary or of a frozen copy."""
    output: Annotated[str, OneOf(NEEDS, "comparison")] = "classes"
    """What is compared: classes (one loss per row) or tokens (one per target token)."""
    divergence: Annotated[str, OneOf(BETWEEN, "divergence")] = "symmetric_kl"
    """symmetric_kl, kl, js or mse."""
    stop: bool = False
    """Whether `against` gets no gradient. Off, as in SMART and TRADES; a frozen copy never gets one."""

    is_divergence: ClassVar[bool] = True
    metric_names: ClassVar[frozenset[str] | None] = frozenset({"agreement", "divergence"})
    row_types: ClassVar[tuple[type[Rows], ...]] = (LabelRows, DemoRows, RolloutRows)

    def __post_init__(self) -> None:
        if self.view == self.against:
            raise ConfigError(f"objectives.consistency.view: '{self.view}' is also `against`; a view always agrees with itself.")

    @property
    def reads(self) -> Mapping[str, frozenset[str]]:
        return {view: frozenset({NEEDS[self.output]}) for view in (self.against, self.view)}

    def weights(self, rows: LabelRows | DemoRows | RolloutRows) -> Weights:
        if isinstance(rows, LabelRows) != (self.output == "classes"):
            readable = "classes" if isinstance(rows, LabelRows) else "tokens"
            raise ConfigError(f"objectives.consistency.output: '{self.output}' cannot read {type(rows).__name__}; use '{readable}'.")
        return weights.rows(rows.tokens.mask.any(1)) if self.output == "classes" else weights.token(rows.tokens.target)

    def losses(self, rows: LabelRows | DemoRows | RolloutRows, views: Mapping[str, Outputs]) -> Losses:
        p, q = views[self.against], views[self.view]
        if self.output == "tokens":
            assert p.distribution is not None
            assert q.distribution is not None
            target = rows.tokens.target
            losses = heads.divergence(p.distribution, q.distribution, target, kind=self.divergence, stop=self.stop)
            return Losses(losses, {"divergence": (losses.detach(), target.to(losses.dtype))})
        assert p.class_logits is not None
        assert q.class_logits is not None
        base = p.class_logits.detach() if self.stop else p.class_logits
        losses = BETWEEN[self.divergence](base, q.class_logits)
        weight = rows.tokens.mask.any(1).to(losses.dtype)
        agree = (base.argmax(1) == q.class_logits.argmax(1)).to(losses.dtype)
        return Losses(losses, {"divergence": (losses.detach(), weight), "agreement": (agree, weight)})

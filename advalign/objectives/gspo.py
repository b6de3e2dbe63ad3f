"""l = -min(s A, clip(s, 1 - low, 1 + high) A), s = exp(mean_t log r_t); mean over rows   (GSPO, arXiv:2507.18071, eq. 5 and 7).

form "sequence": s carries the gradient of every token. form "token" (eq. 14): s_t = sg(s) p_t / sg(p_t), the value of s with the gradient
of one token, so that advantages may differ within a response; with equal advantages both have the same gradient.
Difference: none; the default of one framework is the token form. Clips are two orders below GRPO's: s is a geometric mean.
"""

from dataclasses import dataclass
from typing import Annotated

from advalign.functional import weights
from advalign.objectives._policy import ClippedObjective
from advalign.ranges import Bound, OneOf

__all__ = ["GSPO"]

FORMS = {"sequence": "sequence", "token": "sequence_token"}


@dataclass(frozen=True, kw_only=True)
class GSPO(ClippedObjective):
    """-min(s A, clip(s, 1 - low, 1 + high) A), s the geometric mean of a response's ratios."""

    weighting: weights.Weighting = "sequence"
    """token: every token of the update counts the same; sequence: every response does."""
    clip_low: Bound = 3e-4
    """How far s may fall below 1; section 5.1."""
    clip_high: Bound = 4e-4
    """How far s may rise above 1; section 5.1."""
    form: Annotated[str, OneOf(FORMS, "form")] = "sequence"
    """sequence: s carries the gradient of every token; token (eq. 14): each token carries its own, so advantages may vary in a response."""

    @property
    def level(self) -> str:
        return FORMS[self.form]

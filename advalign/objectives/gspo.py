"""l = -min(s A, clip(s, 1 - low, 1 + high) A), s = exp(mean_t log r_t); mean over rows   (GSPO, arXiv:2507.18071, eq. 5 and 7).

form "sequence": s carries the gradient of every token. form "token" (eq. 14): s_t = sg(s) p_t / sg(p_t), the value of s with the gradient
of one token, so that advantages may differ within a response; with equal advantages both have the same gradient.
Difference: none; the default of one framework is the token form. Clips are two orders below GRPO's: s is a geometric mean.
"""

from dataclasses import dataclass

from advalign.errors import unknown
from advalign.objectives._policy import ClippedObjective

__all__ = ["GSPO"]

FORMS = {"sequence": "sequence", "token": "sequence_token"}


@dataclass(frozen=True, kw_only=True)
class GSPO(ClippedObjective):
    """-min(s A, clip(s, 1 - low, 1 + high) A), s the geometric mean of a response's ratios."""

    weighting: str = "sequence"
    """token: every token of the update counts the same; sequence: every response does."""
    clip_low: float = 3e-4
    """How far s may fall below 1; section 5.1."""
    clip_high: float = 4e-4
    """How far s may rise above 1; section 5.1."""
    form: str = "sequence"
    """sequence: s carries the gradient of every token; token (eq. 14): each token carries its own, so advantages may vary in a response."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form not in FORMS:
            raise unknown("objectives.gspo.form", "form", self.form, FORMS)

    @property
    def level(self) -> str:
        return FORMS[self.form]

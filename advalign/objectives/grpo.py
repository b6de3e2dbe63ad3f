"""l_t = -min(r_t A_t, clip(r_t, 1 - low, 1 + high) A_t), r_t = p / p_old; mean over rows of the mean over tokens.

(GRPO, arXiv:2402.03300, eq. 3.) Differences: the KL term of eq. 3 is an objective of its own (`kl`); advantages come from the source.

`dual_clip` (arXiv:1912.09729) is off: the paper's objective has none, and frameworks differ silently (on with c = 3 in one, off in
another: 0.70 against 1.48 on one drifted batch). Switch it on where ratios drift far, that is with many updates per draw.

On another view than clean the ratio stays that of the clean view, and the gradient goes through the attacked log-probabilities:
l_t = -sg(clip(r_t, 1 - low, 1 + high)) A_t log p(y_t | y_<t, x + delta). With `ratio: view` it is the clipped surrogate of p(. | x +
delta) / p_old: ill-conditioned (at radius 1.0 the top 1 % of tokens carry 72 % of the gradient), hence refused without `dual_clip`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from advalign.errors import ConfigError, unknown
from advalign.functional import policy, weights
from advalign.protocols import Term
from advalign.types import Losses, Outputs, RolloutRows, Rows, Weights

__all__ = ["GRPO"]


@dataclass(frozen=True, kw_only=True)
class GRPO(Term):
    """-min(r A, clip(r, 1 - low, 1 + high) A), every response alike."""

    clip_low: float = 0.2
    clip_high: float = 0.2
    weighting: str = "sequence"  # eq. 3: 1/G sum_i 1/|o_i| sum_t
    dual_clip: float | None = None
    ratio: str = "clean"

    rows: ClassVar[tuple[type[Rows], ...]] = (RolloutRows,)
    annotations: ClassVar[frozenset[str]] = frozenset({"old_logprobs"})

    def __post_init__(self) -> None:
        weights.check("objectives.grpo.weighting", self.weighting)
        if self.ratio not in ("clean", "view"):
            raise unknown("objectives.grpo.ratio", "ratio", self.ratio, ("clean", "view"))
        if self.ratio == "view" and self.dual_clip is None:
            raise ConfigError("objectives.grpo.ratio: 'view' is ill-conditioned without dual clip; set dual_clip (3.0), or ratio 'clean'.")

    @property
    def reads(self) -> Mapping[str, frozenset[str]]:
        return {view: frozenset({"logprobs"}) for view in ("clean", self.view)}

    def weights(self, rows: RolloutRows) -> Weights:
        return weights.by_name(self.weighting, rows.tokens.target)

    def losses(self, rows: RolloutRows, views: Mapping[str, Outputs]) -> Losses:
        clean, seen = views["clean"].logprobs, views[self.view].logprobs
        assert clean is not None
        assert seen is not None
        own = self.view == "clean" or self.ratio == "view"
        return policy.surrogate(
            seen if own else clean,
            clean.detach() if rows.old_logprobs is None else rows.old_logprobs,
            rows.advantages,
            rows.tokens.target,
            low=self.clip_low,
            high=self.clip_high,
            dual_clip=self.dual_clip,
            attacked=None if own else seen,
        )

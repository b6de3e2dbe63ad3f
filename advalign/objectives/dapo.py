"""l_t = -min(r_t A_t, clip(r_t, 1 - low, 1 + high) A_t), r_t = p / p_old, high > low; mean over ALL tokens of the update.

(DAPO, arXiv:2503.14476, eq. 8.) Differences: dynamic sampling and soft overlong punishment belong to the source and the rewards; the
mean over tokens spans the whole update on all ranks, however it is split.

`mask_truncated` is overlong filtering (section 3.4): responses cut off by the length limit leave the loss AND its count. Off by default,
as in the paper's best run. `dual_clip` is off by default: the paper has none, public scripts run it with c = 10 (`grpo` says how frameworks
differ). On another view than clean, as `grpo`: l_t = -sg(clip(r_t)) A_t log p(y_t | y_<t, x + delta), r_t of the clean view.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from advalign.errors import ConfigError, unknown
from advalign.functional import policy, weights
from advalign.protocols import Term
from advalign.types import Losses, Outputs, RolloutRows, Rows, Weights

__all__ = ["DAPO"]


@dataclass(frozen=True, kw_only=True)
class DAPO(Term):
    """-min(r A, clip(r, 1 - low, 1 + high) A), every token alike."""

    clip_low: float = 0.2
    clip_high: float = 0.28  # "clip-higher", section 4.1
    weighting: str = "token"
    mask_truncated: bool = False
    dual_clip: float | None = None
    ratio: str = "clean"

    rows: ClassVar[tuple[type[Rows], ...]] = (RolloutRows,)
    annotations: ClassVar[frozenset[str]] = frozenset({"old_logprobs"})

    def __post_init__(self) -> None:
        weights.check("objectives.dapo.weighting", self.weighting)
        if self.ratio not in ("clean", "view"):
            raise unknown("objectives.dapo.ratio", "ratio", self.ratio, ("clean", "view"))
        if self.ratio == "view" and self.dual_clip is None:
            raise ConfigError("objectives.dapo.ratio: 'view' is ill-conditioned without dual clip; set dual_clip (3.0), or ratio 'clean'.")

    @property
    def reads(self) -> Mapping[str, frozenset[str]]:
        return {view: frozenset({"logprobs"}) for view in ("clean", self.view)}

    def weights(self, rows: RolloutRows) -> Weights:
        target = rows.tokens.target
        return weights.by_name(self.weighting, target & rows.finished[:, None] if self.mask_truncated else target)

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

"""What all policy objectives share: which tokens count and how much, and where the ratio comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from jaxtyping import Bool, Float
from torch import Tensor

from advalign.checked import Checked
from advalign.errors import ConfigError
from advalign.functional import mismatch, policy, weights
from advalign.functional.masks import sampled_tokens
from advalign.interfaces import Objective
from advalign.plugins import kind_of
from advalign.ranges import Bound, Interval, NonNegative, OneOf, PositiveBound, PositiveFraction
from advalign.types import Losses, Outputs, RolloutRows, Rows, Weights

RATIOS = ("clean", "view")


@dataclass(frozen=True, kw_only=True)
class Correction(Checked):
    """Importance weights between the sampler's log-probabilities and the trainer's (`functional.mismatch`)."""

    level: Annotated[str, OneOf(mismatch.LEVELS, "level")] = "token"
    """Of the ratio: token, sequence (product over the response) or geometric (its geometric mean)."""
    mode: Annotated[str, OneOf(mismatch.MODES, "mode")] = "truncate"
    """truncate (TIS), mask (IcePop, MIS) or reject."""
    low: NonNegative = 0.0
    """Lower bound of the ratio."""
    high: PositiveBound = 2.0
    """Upper bound of the ratio."""

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ConfigError(f"correction.low: {self.low} given; it must be below high, {self.high}.")


@dataclass(frozen=True, kw_only=True)
class PolicyObjective(Objective[RolloutRows]):
    """Abstract base of the objectives that read rollouts and their advantages.

    Rows that the policy did not sample (`offpolicy`) are left out: `luffy` and `sft` read those.
    """

    weighting: weights.Weighting = "token"
    """token: every token of the update counts the same; sequence: every response does."""
    top_entropy: PositiveFraction = 1.0
    """Only this fraction of tokens, those where the policy was least certain when the draw was made, keeps its loss; the count stays
    that of all tokens (arXiv:2506.01939, section 4: 0.2)."""
    correction: Correction | None = None
    """Weights for the gap between sampler and trainer; the count stays that of all tokens."""

    metric_names: ClassVar[frozenset[str] | None] = frozenset(
        {"approx_kl", "clip_fraction", "clip_ratio/high_mean", "clip_ratio/low_mean", "ratio", "ratio_variance"}
    )
    row_types: ClassVar[tuple[type[Rows], ...]] = (RolloutRows,)
    annotations: ClassVar[frozenset[str]] = frozenset({"old_logprobs"})

    @property
    def columns(self) -> frozenset[str]:
        return self.annotations | ({"old_entropy"} if self.top_entropy < 1 else frozenset())

    @property
    def assumes_current_sampler(self) -> bool:
        return self.correction is None

    @property
    def exact_old(self) -> bool:
        return self.correction is not None

    @property
    def reads(self) -> Mapping[str, frozenset[str]]:
        return {view: frozenset({"logprobs"}) for view in ("clean", self.view)}

    def target(self, rows: RolloutRows) -> Bool[Tensor, "B T"]:
        """The tokens that count: those that the policy sampled."""
        return sampled_tokens(rows.tokens.target, rows.offpolicy)

    def weights(self, rows: RolloutRows) -> Weights:
        target = self.target(rows)
        average = self.average(target)
        values = average.values
        if self.top_entropy < 1:
            assert rows.old_entropy is not None
            values = values * policy.high_entropy(rows.old_entropy, target, fraction=self.top_entropy)
        if self.correction is not None:
            assert rows.old_logprobs is not None
            c = self.correction
            w = mismatch.weights(rows.old_logprobs, rows.sampler_logprobs, target, level=c.level, mode=c.mode, low=c.low, high=c.high)
            values = values * w
        return Weights(values, average.count)

    def average(self, target: Bool[Tensor, "B T"]) -> Weights:
        """How much each token counts, before `top_entropy` and `correction`."""
        return weights.by_name(self.weighting, target)

    def logprobs(self, rows: RolloutRows, views: Mapping[str, Outputs]) -> tuple[Tensor, Tensor, Tensor | None]:
        """(log p clean, log p old, log p on the view if that is not clean). Without an annotation the old policy is the current one."""
        clean, on_view = views["clean"].logprobs, views[self.view].logprobs
        assert clean is not None
        old = clean.detach() if rows.old_logprobs is None else rows.old_logprobs
        return clean, old, None if self.view == "clean" else on_view


@dataclass(frozen=True, kw_only=True)
class CovarianceObjective(PolicyObjective):
    """Abstract base of what chooses tokens by their covariance, before the update, over all of its tokens."""

    annotations: ClassVar[frozenset[str]] = frozenset({"old_logprobs", "current_logprobs"})

    @property
    def exact_old(self) -> bool:
        return True

    def covariance(self, rows: RolloutRows) -> Float[Tensor, "B T"]:
        """(log p_t - mean log p)(A_t - mean A) under the current weights, zero off target."""
        current = rows.old_logprobs if rows.current_logprobs is None else rows.current_logprobs
        assert current is not None
        return policy.covariance(current, rows.advantages, self.target(rows))


@dataclass(frozen=True, kw_only=True)
class ClippedObjective(PolicyObjective):
    """Abstract base of the clipped surrogates: -min(r A, clip(r, 1 - low, 1 + high) A), r = p / p_old.

    `dual_clip` is off: the papers have none, and frameworks differ silently (on with c = 3 in one, off in another: 0.70 against 1.48 on
    one drifted batch). Switch it on where ratios drift far, that is with many updates per draw.

    On another view than clean the ratio stays that of the clean view, and the gradient goes through the attacked log-probabilities:
    -sg(clip(r, 1 - low, 1 + high)) A log p(y_t | y_<t, x + delta). With `ratio: view` it is the clipped surrogate of p(. | x + delta) /
    p_old: ill-conditioned (at radius 1.0 the top 1 % of tokens carry 72 % of the gradient), hence refused without `dual_clip`.
    """

    clip_low: Bound = 0.2
    """How far the ratio may fall below 1."""
    clip_high: Bound = 0.2
    """How far the ratio may rise above 1."""
    dual_clip: Annotated[float, Interval(low=1, low_open=True, unbounded=True)] | None = None
    """c > 1: where A < 0 the loss is at most -c A (arXiv:1912.09729). None: off."""
    ratio: Annotated[str, OneOf(RATIOS, "ratio")] = "clean"
    """Of which view r is: clean, or view (this objective's own)."""

    def __post_init__(self) -> None:
        if self.ratio == "view" and self.dual_clip is None:
            path = f"objectives.{kind_of(type(self))}"
            raise ConfigError(f"{path}.ratio: 'view' is ill-conditioned without dual clip; set dual_clip (3.0), or ratio 'clean'.")

    @property
    def level(self) -> str:
        """Of the ratio: a name in `functional.policy.RATIOS`."""
        return "token"

    def losses(self, rows: RolloutRows, views: Mapping[str, Outputs]) -> Losses:
        clean, old, attacked = self.logprobs(rows, views)
        if attacked is not None and self.ratio == "view":
            clean, attacked = attacked, None
        return policy.surrogate(
            clean,
            old,
            rows.advantages,
            self.target(rows),
            low=self.clip_low,
            high=self.clip_high,
            dual_clip=self.dual_clip,
            attacked=attacked,
            level=self.level,
        )

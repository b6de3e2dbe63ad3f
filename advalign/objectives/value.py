"""l_t = 1/2 max((V_t - G_t)^2, (clip(V_t, V_old,t - c, V_old,t + c) - G_t)^2), G = returns, c = `clip`.

Source: value clipping of the PPO code release (not in arXiv:1707.06347, whose eq. 9 has (V - G)^2); the maximum makes it
pessimistic, as the policy's clip is. Difference: with one update per draw V equals V_old and the clip does nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from advalign.errors import ConfigError
from advalign.functional import weights
from advalign.functional.logprobs import zero_off_target
from advalign.interfaces import Objective
from advalign.names import LearnerName
from advalign.ranges import Bound
from advalign.types import Losses, Outputs, RolloutRows, Rows, Weights

__all__ = ["Value"]


@dataclass(frozen=True, kw_only=True)
class Value(Objective[RolloutRows]):
    """1/2 max((V - G)^2, (clip(V, V_old - c, V_old + c) - G)^2)."""

    learner: LearnerName = "critic"
    """Name of the critic."""
    clip: Bound = 0.5
    """How far V may move from V_old, in units of the reward; public defaults: 0.5 in one framework, 0.2 in another."""
    weighting: weights.Weighting = "token"
    """token: every target token of the update counts the same; sequence: every row does."""

    metric_names: ClassVar[frozenset[str] | None] = frozenset({"clip_fraction", "error", "value"})
    row_types: ClassVar[tuple[type[Rows], ...]] = (RolloutRows,)
    annotations: ClassVar[frozenset[str]] = frozenset({"values"})

    @property
    def reads(self) -> Mapping[str, frozenset[str]]:
        return {self.view: frozenset({"values"})}

    def weights(self, rows: RolloutRows) -> Weights:
        if rows.returns is None:
            raise ConfigError(f"objectives.value: source '{self.source}' estimates no returns; give it `advantage: {{kind: gae}}`.")
        return weights.by_name(self.weighting, rows.tokens.target)

    def losses(self, rows: RolloutRows, views: Mapping[str, Outputs]) -> Losses:
        values, target = views[self.view].values, rows.tokens.target
        assert values is not None
        assert rows.values is not None
        assert rows.returns is not None
        values, old, returns = zero_off_target(values, target), zero_off_target(rows.values, target), zero_off_target(rows.returns, target)
        near_old = torch.maximum(torch.minimum(values, old + self.clip), old - self.clip)
        unclipped, clipped = (values - returns) ** 2, (near_old - returns) ** 2
        weight = target.to(values.dtype)
        metrics = {
            "clip_fraction": ((clipped > unclipped).to(values.dtype), weight),
            "error": (unclipped.detach(), weight),
            "value": (values.detach(), weight),
        }
        return Losses(torch.maximum(unclipped, clipped) / 2, metrics)

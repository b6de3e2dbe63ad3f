"""What all objectives of preference pairs share: what they read, which pairs count, and what they report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from advalign.functional import preference, weights
from advalign.interfaces import Objective
from advalign.types import Losses, Outputs, PairRows, Rows, Weights

REWARDS = frozenset({"rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins"})
REPORTED = REWARDS | {"logps/chosen", "logps/rejected"}
"""Names of the metrics of `PairObjective.report`, without and with log-probabilities."""


@dataclass(frozen=True, kw_only=True)
class PairObjective(Objective[PairRows]):
    """Abstract base: rows 2i chosen, rows 2i + 1 rejected, one loss per pair. A pair with an empty side does not count.

    Metrics, each a mean over pairs, under TRL's names: rewards/chosen, rewards/rejected, rewards/accuracies, rewards/margins, and
    logps/chosen, logps/rejected where there are log-probabilities.
    """

    row_types: ClassVar[tuple[type[Rows], ...]] = (PairRows,)

    @property
    def reads(self) -> Mapping[str, frozenset[str]]:
        return {self.view: frozenset({"logprobs"})}

    def weights(self, rows: PairRows) -> Weights:
        counted = rows.tokens.target.any(1)
        return weights.rows(counted[0::2] & counted[1::2])

    def logps(self, rows: PairRows, views: Mapping[str, Outputs], *, normalize: bool = False) -> Float[Tensor, "B"]:
        """log p of every response on this view: the sum over its tokens, or their mean."""
        logprobs = views[self.view].logprobs
        assert logprobs is not None
        return (preference.mean if normalize else preference.total)(logprobs, rows.tokens.target)

    def ref_logps(self, rows: PairRows, *, normalize: bool = False) -> Float[Tensor, "B"]:
        """The same under the reference: an annotation of the clean rows, whatever the view."""
        assert rows.ref_logprobs is not None
        return (preference.mean if normalize else preference.total)(rows.ref_logprobs, rows.tokens.target)

    def report(
        self,
        rows: PairRows,
        losses: Float[Tensor, "P"],
        *,
        rewards: Float[Tensor, "B"],
        logps: Float[Tensor, "B"] | None = None,
        extra: Mapping[str, Float[Tensor, "P"]] | None = None,
    ) -> Losses:
        """The losses with the metrics of the implicit, or explicit, reward of every response; `extra`: further metrics, per pair."""
        margins = preference.difference(rewards)
        metrics = {
            "rewards/chosen": rewards[0::2],
            "rewards/rejected": rewards[1::2],
            "rewards/accuracies": (margins > 0).to(losses.dtype),
            "rewards/margins": margins,
            **({} if logps is None else {"logps/chosen": logps[0::2], "logps/rejected": logps[1::2]}),
            **(extra or {}),
        }
        weight = self.weights(rows).values.to(losses.dtype)
        return Losses(losses, {name: (values.detach(), weight) for name, values in metrics.items()})

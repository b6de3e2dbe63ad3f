"""What targeted objectives on pairs share: the cost of giving an answer, and of being able to give it, per row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from advalign.functional import adversarial, preference
from advalign.functional.logprobs import zero_off_target
from advalign.models import heads
from advalign.objectives._pairs import PairObjective
from advalign.ranges import Interval, NonNegative
from advalign.types import Outputs, PairRows


@dataclass(frozen=True, kw_only=True)
class AnswerObjective(PairObjective):
    """Abstract base: toward_weight CE(one answer) + away_weight log1mp(the other), each a mean over the tokens of its row.

    log1mp = mean_t -log(1 - p_t), where tokens with log p_t < cutoff give 0 and still count. Without `away_weight` only log p is needed.
    """

    toward_weight: NonNegative = 0.5
    """Weight of the cross-entropy of the answer that is to become likely."""
    away_weight: NonNegative = 0.5
    """Weight of log1mp of the answer that is to become unlikely."""
    cutoff: Annotated[float, Interval(high=0, high_open=True, unbounded=True)] = -5.0
    """Log-probability below which a token of that answer has no gradient."""

    metric_names: ClassVar[frozenset[str] | None] = frozenset({"log1mp/chosen", "log1mp/rejected", "nll/chosen", "nll/rejected"})

    @property
    def reads(self) -> Mapping[str, frozenset[str]]:
        return {self.view: frozenset({"distribution" if self.away_weight else "logprobs"})}

    def costs(self, rows: PairRows, views: Mapping[str, Outputs]) -> tuple[Float[Tensor, "B"], Float[Tensor, "B"]]:
        """(CE, log1mp) of every answer, each a mean over its tokens."""
        outputs, target = views[self.view], rows.tokens.target
        if not self.away_weight:
            assert outputs.logprobs is not None
            nll = -preference.mean(outputs.logprobs, target)
            return nll, torch.zeros_like(nll)
        assert outputs.distribution is not None
        logp, log1m = heads.odds(outputs.distribution, rows.tokens)
        unlikely = zero_off_target(adversarial.unlikelihood(logp, log1m, cutoff=self.cutoff), target)
        return -preference.mean(logp, target), preference.mean(unlikely, target)

    def metrics(self, nll: Float[Tensor, "B"], unlikely: Float[Tensor, "B"]) -> dict[str, Tensor]:
        """{name: one number per pair}."""
        columns = {"nll/chosen": nll[0::2], "nll/rejected": nll[1::2]}
        if self.away_weight:
            columns |= {"log1mp/chosen": unlikely[0::2], "log1mp/rejected": unlikely[1::2]}
        return {name: column.detach() for name, column in columns.items()}

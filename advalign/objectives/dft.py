"""l_t = -sg(p_t) log p_t, p_t = p(y_t | y_<t): dynamic fine-tuning (arXiv:2508.05629).

Its gradient is that of -p_t: the 1 / p_t by which likelihood magnifies unlikely tokens is gone. Read as a policy gradient, the reward of
a demonstrated token is 1 instead of 1 / p_t. The loss is not monotonous in p_t (it is largest at p_t = 1/e); watch `nll`.
weighting and rows as `sft`. Differences: none; on another view than clean both factors are of that view.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from advalign.functional import weights
from advalign.functional.logprobs import zero_off_target
from advalign.interfaces import Objective
from advalign.objectives._demos import demonstrated
from advalign.types import DemoRows, Losses, Outputs, RolloutRows, Rows, Weights

__all__ = ["DFT"]


@dataclass(frozen=True, kw_only=True)
class DFT(Objective[DemoRows | RolloutRows]):
    """-sg(p_t) log p_t of demonstrations."""

    weighting: weights.Weighting = "token"
    """token: every target token of the update counts the same; sequence: every row does."""

    metric_names: ClassVar[frozenset[str] | None] = frozenset({"nll", "probability"})
    row_types: ClassVar[tuple[type[Rows], ...]] = (DemoRows, RolloutRows)

    @property
    def reads(self) -> Mapping[str, frozenset[str]]:
        return {self.view: frozenset({"logprobs"})}

    def weights(self, rows: DemoRows | RolloutRows) -> Weights:
        return weights.by_name(self.weighting, demonstrated(rows, "objectives.dft"))

    def losses(self, rows: DemoRows | RolloutRows, views: Mapping[str, Outputs]) -> Losses:
        logprobs, target = views[self.view].logprobs, demonstrated(rows, "objectives.dft")
        assert logprobs is not None
        nll = -zero_off_target(logprobs, target)
        p, weight = (-nll).detach().exp(), target.to(nll.dtype)
        return Losses(p * nll, {"nll": (nll.detach(), weight), "probability": (p, weight)})

"""l_t = -log p(y_t | y_<t): the negative log-likelihood of demonstrations.

Of rollouts it reads the demonstrations inside a group (`offpolicy`) and nothing else: the SFT half of HPT (arXiv:2509.04419).
Differences: none; on the view of an adversary this is adversarial training, on `noise` it is NEFTune (arXiv:2310.05914).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from advalign.functional import weights
from advalign.functional.logprobs import zero_off_target
from advalign.interfaces import Objective
from advalign.objectives._demos import demonstrated
from advalign.types import DemoRows, Losses, Outputs, RolloutRows, Rows, Weights

__all__ = ["SFT"]


@dataclass(frozen=True, kw_only=True)
class SFT(Objective[DemoRows | RolloutRows]):
    """-log p(y_t | y_<t) of demonstrations."""

    weighting: weights.Weighting = "token"
    """token: every target token of the update counts the same; sequence: every demonstration does."""

    metric_names: ClassVar[frozenset[str] | None] = frozenset({"nll"})
    row_types: ClassVar[tuple[type[Rows], ...]] = (DemoRows, RolloutRows)

    @property
    def reads(self) -> Mapping[str, frozenset[str]]:
        return {self.view: frozenset({"logprobs"})}

    def weights(self, rows: DemoRows | RolloutRows) -> Weights:
        return weights.by_name(self.weighting, demonstrated(rows, "objectives.sft"))

    def losses(self, rows: DemoRows | RolloutRows, views: Mapping[str, Outputs]) -> Losses:
        logprobs, target = views[self.view].logprobs, demonstrated(rows, "objectives.sft")
        assert logprobs is not None
        nll = -zero_off_target(logprobs, target)
        return Losses(nll, {"nll": (nll.detach(), target.to(nll.dtype))})

"""l_t = -log p(y_t | y_<t): the negative log-likelihood of demonstrations.

weighting "token" (default): every target token of the update counts the same. "sequence": every demonstration does.
Differences: none; on the view of an adversary this is adversarial training, on `noise` it is NEFTune (arXiv:2310.05914).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from advalign.functional import weights
from advalign.functional.logprobs import only
from advalign.protocols import Term
from advalign.types import DemoRows, Losses, Outputs, Rows, Weights

__all__ = ["SFT"]


@dataclass(frozen=True, kw_only=True)
class SFT(Term):
    """-log p(y_t | y_<t) of demonstrations."""

    weighting: str = "token"

    rows: ClassVar[tuple[type[Rows], ...]] = (DemoRows,)

    def __post_init__(self) -> None:
        weights.check("objectives.sft.weighting", self.weighting)

    @property
    def reads(self) -> Mapping[str, frozenset[str]]:
        return {self.view: frozenset({"logprobs"})}

    def weights(self, rows: DemoRows) -> Weights:
        return weights.by_name(self.weighting, rows.tokens.target)

    def losses(self, rows: DemoRows, views: Mapping[str, Outputs]) -> Losses:
        logprobs = views[self.view].logprobs
        assert logprobs is not None
        nll = -only(logprobs, rows.tokens.target)
        return Losses(nll, {"nll": (nll.detach(), rows.tokens.target.to(nll.dtype))})

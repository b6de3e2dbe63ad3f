"""A suffix found token by token, by gradient proposals that are evaluated exactly, as first published."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from advalign.attacks._suffix_search import RefinedSuffixSearch
from advalign.attacks._token_search import TokenSearchRun
from advalign.attacks._token_steps import descend
from advalign.ranges import Count
from advalign.types import NEUTRAL


@dataclass(frozen=True, kw_only=True)
class TokenSearch(RefinedSuffixSearch):
    """s ← argmin over b of L(x + s^(b)),  s^(b) = s with s_i := v,  i uniform,  v uniform in top-k of -∇_{e_{s_i}} L
    (greedy coordinate gradient, arXiv:2307.15043, algorithm 1).

    L is the mean negative log-likelihood of the reference response; `goal` "raise" raises it instead (the response is then the right
    one). Defaults are the paper's: a suffix of 20 "!", 500 steps, 512 candidates, the top 256; it takes hours on a large model.
    As in the paper the best candidate of a step is taken even where it is worse than the last; the best of all is returned,
    the bare prompt among them.
    Ours: a suffix must survive decoding and encoding (the paper's code filters by length); a suffix that was scored before is not sent
    again; each example has its own random stream, so results depend neither on `batch_size` nor on company. What came later (momentum,
    a buffer) is kind `gcg`.
    """

    steps: Count = 500
    """Gradients."""
    candidates: Count = 512
    """Swaps that are scored per step."""
    top: Count = 256
    """k."""
    batch_size: Annotated[Count, NEUTRAL] = 16
    """Examples of one call."""

    access: ClassVar[str] = "gradients"

    @property
    def examples_at_once(self) -> int | None:
        return self.batch_size

    def drive(self, run: TokenSearchRun) -> None:
        """A step costs one gradient and its candidates."""
        descend(run, steps=self.steps, candidates=self.candidates, top=self.top)


__all__ = ["TokenSearch"]

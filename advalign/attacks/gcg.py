"""Greedy coordinate gradient with momentum and a buffer."""

from dataclasses import dataclass
from typing import ClassVar

from advalign.attacks._suffix_search import RefinedSuffixSearch
from advalign.attacks._token_search import TokenSearchRun
from advalign.attacks._token_steps import descend
from advalign.ranges import Count, Natural, ProperFraction


@dataclass(frozen=True, kw_only=True)
class GCG(RefinedSuffixSearch):
    """m ← μ m + (1 - μ) ∇_{onehot(s)} L,  s^(b) = s with s_i := v, v uniform in top-k of -m_i,  s ← argmin_b L(x + s^(b))
    (greedy coordinate gradient, arXiv:2307.15043, algorithm 1; momentum: MAC, arXiv:2405.01229).

    `objective` "mellowmax" is nanoGCG's of the raw logits, whose scale no model fixes; ours: of -log p. "margin" ends the search at 0,
    where greedy decoding says the response. Momentum 0 and buffer 0 is kind `tokens`. Ours besides: as in `tokens`.
    """

    steps: Count = 500
    """Gradients."""
    candidates: Count = 512
    """Swaps that are scored per step."""
    top: Count = 256
    """k."""
    momentum: ProperFraction = 0.4
    """μ."""
    buffer: Natural = 0
    """b > 0: each step starts from the best of the b best suffixes so far, which begin as `initial` and b - 1 random ones (as in nanoGCG;
    the idea is ACG's, Haize Labs 2024); 0: from the last step's best candidate, even where that is worse (the paper)."""

    access: ClassVar[str] = "gradients"

    def drive(self, run: TokenSearchRun) -> None:
        """A step costs one gradient and its candidates."""
        descend(run, steps=self.steps, candidates=self.candidates, top=self.top, momentum=self.momentum, buffer=self.buffer)


__all__ = ["GCG"]

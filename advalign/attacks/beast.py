"""A suffix that the model itself would write, chosen by what it makes the model say."""

from dataclasses import dataclass
from typing import ClassVar

from advalign.attacks._suffix_search import SuffixSearch
from advalign.attacks._token_search import TokenSearchRun
from advalign.attacks._token_steps import beam
from advalign.ranges import Count, Positive


@dataclass(frozen=True, kw_only=True)
class Beast(SuffixSearch):
    """Beams s_1 .. s_k1;  s_j v with v ~ p(. | x + s_j), k2 of them without replacement;  the k1 of lowest L(x + s_j v) go on
    (BEAST, arXiv:2402.15570, algorithm 1).

    Defaults are the paper's: k1 = k2 = 15 and 40 tokens, some 9,000 forwards. No gradients, and the suffix reads like text.
    Ours: the best suffix of any length is returned (the paper: of the last); only suffixes that survive decoding and encoding are
    scored; special tokens are never drawn.
    """

    length: Count = 40
    """Most tokens of the suffix."""
    beams: Count = 15
    """k1."""
    branches: Count = 15
    """k2."""
    temperature: Positive = 1.0
    """At which tokens are drawn."""

    access: ClassVar[str] = "logprobs"

    def drive(self, run: TokenSearchRun) -> None:
        """A token costs a query per beam, and its candidates."""
        beam(run, beams=self.beams, branches=self.branches, length=self.length, temperature=self.temperature)


__all__ = ["Beast"]

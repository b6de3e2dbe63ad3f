"""A suffix found by random changes: the baseline of every search by gradient, at equal forwards."""

from dataclasses import dataclass
from typing import ClassVar

from advalign.attacks._suffix_search import RefinedSuffixSearch
from advalign.attacks._token_search import TokenSearchRun
from advalign.attacks._token_steps import search_randomly
from advalign.ranges import Count


@dataclass(frozen=True, kw_only=True)
class RandomSearch(RefinedSuffixSearch):
    """s ← s' where L(x + s') < L(x + s),  s' = s with up to `span` neighbouring tokens redrawn uniformly
    (random search on a suffix, arXiv:2404.02151, section 3).

    As published: 25 tokens, up to 10,000 steps, at most 4 tokens at once, and span, span/2, span/4 of them where the wanted token's
    probability is at most 0.01, at most 0.1, above (the released code's schedule for open models).
    Ours: no hand-written template around the request and no start carried over from another request, which are most of the paper's
    strength (give prompts with the template, and `initial`); `objective` "first" is the paper's, the log-probability of the first token,
    the default here is all tokens'; a suffix must survive decoding and encoding.
    """

    length: Count = 25
    """Most tokens of the suffix."""
    steps: Count = 10_000
    """Steps."""
    candidates: Count = 1
    """Changes that are tried at once from one suffix."""
    span: Count = 4
    """Most tokens that change at once."""
    contiguous: bool = True
    """Whether the changed tokens are neighbours."""

    access: ClassVar[str] = "logprobs"

    def drive(self, run: TokenSearchRun) -> None:
        """A step costs its candidates."""
        search_randomly(run, steps=self.steps, candidates=self.candidates, span=self.span, contiguous=self.contiguous)


__all__ = ["RandomSearch"]

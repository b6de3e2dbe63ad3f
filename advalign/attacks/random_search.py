"""A suffix found by trying: what every search by gradient has to beat at equal forwards."""

from dataclasses import dataclass
from typing import ClassVar

from advalign.attacks import _token_search as searching
from advalign.attacks._token_steps import wander


@dataclass(frozen=True, kw_only=True)
class RandomSearch(searching.SuffixSearch):
    """s ← s' where L(x + s') < L(x + s),  s' = s with up to `span` neighbouring tokens redrawn uniformly
    (random search on a suffix, arXiv:2404.02151, section 3).

    As published: 25 tokens, up to 10,000 steps, at most 4 tokens at once, and span, span/2, span/4 of them where the wanted token's
    probability is at most 0.01, at most 0.1, above (the released code's schedule for open models).
    Ours: no hand-written template around the request and no start carried over from another request, which are the most of the paper's
    strength (give prompts with the template, and `initial`); `objective` "first" is the paper's, the log-probability of the first token,
    the default here is all tokens'; `candidates` are tried at once from one suffix; a suffix must survive decoding and encoding.
    """

    length: int = 25
    steps: int = 10_000
    candidates: int = 1
    span: int = 4
    contiguous: bool = True
    initial: str = "!"

    access: ClassVar[str] = "logprobs"
    refines_suffixes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.check("steps", "candidates", "span")

    def drive(self, search: searching.TokenSearchRun) -> None:
        """A step costs its candidates."""
        wander(search, steps=self.steps, candidates=self.candidates, span=self.span, contiguous=self.contiguous)


__all__ = ["RandomSearch"]

"""The same request in other words, codes and frames: one attempt each."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from advalign.attacks._transforms import TRANSFORMS
from advalign.errors import ConfigError
from advalign.interfaces import Attack, Target
from advalign.ranges import Distinct, OneOf, Text
from advalign.types import Budget, Example, Proposal


@dataclass(frozen=True, kw_only=True)
class Template(Attack):
    """x_t = t(x) for every t of `names`; broken if any is   (prefix injection, refusal suppression, encodings: arXiv:2307.02483).

    Ours: the texts are written for this library; they are not the published ones, and the figures of papers do not carry over.
    """

    names: Annotated[tuple[Annotated[str, OneOf(TRANSFORMS, "transform")], ...], Distinct()] = tuple(TRANSFORMS)
    """Names of `_transforms.py`: other characters (upper, leetspeak, fullwidth, ...), codes with the request to read them (base64, rot13,
    morse, ...), and frames (affirmative, refusal_suppression, role_play, json, ...)."""
    own: tuple[Annotated[str, Text(holds="{prompt}")], ...] = ()
    """Further templates, each with {prompt}."""

    access: ClassVar[str] = "text"
    head: ClassVar[str | None] = "policy"

    def __post_init__(self) -> None:
        if not self.names and not self.own:
            raise ConfigError("attacks.template: no names and no templates of your own given; at least one is needed.")

    def propose(self, target: Target, examples: Sequence[Example], budget: Budget, rng: random.Random) -> list[Proposal]:
        """All attempts of each example, as far as the budget of queries reaches. Nothing is sent to the target."""
        proposals = []
        for example in examples:
            texts = [TRANSFORMS[name](example.text) for name in self.names]
            texts += [text.replace("{prompt}", example.text) for text in self.own]
            # Two ways to write the same thing are one attempt.
            attempts = tuple(dict.fromkeys(texts))[: budget.queries]
            proposals.append(Proposal(attempts=attempts, queries=len(attempts), note=f"{len(attempts)} templates"))
        return proposals


__all__ = ["Template"]

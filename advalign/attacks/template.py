"""The same request in other words, codes and frames: one attempt each."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from advalign.attacks._transforms import TRANSFORMS
from advalign.errors import ConfigError, unknown
from advalign.interfaces import Attack, Target
from advalign.types import Budget, Example, Proposal


@dataclass(frozen=True, kw_only=True)
class Template(Attack):
    """x_t = t(x) for every t of `names`; broken if any is   (prefix injection, refusal suppression, encodings: arXiv:2307.02483).

    Ours: the texts are written for this library; they are not the published ones, and the figures of papers do not carry over.
    """

    names: tuple[str, ...] = tuple(TRANSFORMS)
    """Names of `_transforms.py`: other characters (upper, leetspeak, fullwidth, ...), codes with the request to read them (base64, rot13,
    morse, ...), and frames (affirmative, refusal_suppression, role_play, json, ...)."""
    own: tuple[str, ...] = ()
    """Further templates, each with {prompt}."""

    access: ClassVar[str] = "text"
    head: ClassVar[str | None] = "policy"

    def __post_init__(self) -> None:
        for name in self.names:
            if name not in TRANSFORMS:
                raise unknown("attacks.template.names", "transform", name, TRANSFORMS)
        if not self.names and not self.own:
            raise ConfigError("attacks.template: no names and no templates of your own given; at least one is needed.")
        for text in self.own:
            if "{prompt}" not in text:
                raise ConfigError(f"attacks.template.own: '{text}' given; a template holds {{prompt}}, which is replaced by the request.")

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

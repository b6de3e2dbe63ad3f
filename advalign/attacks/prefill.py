"""The beginning of the response is forced."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from advalign.errors import ConfigError
from advalign.interfaces import Attack, Target
from advalign.models import Encoder
from advalign.ranges import Count, Words
from advalign.types import NEUTRAL, Budget, Example, Proposal


@dataclass(frozen=True, kw_only=True)
class Prefill(Attack):
    """y ~ p(. | x, y*_1 .. y*_k): the first k tokens of what the attacker wants to hear are forced, the model continues
    (priming, arXiv:2312.12321; prefilling, arXiv:2404.02151; k tokens of a harmful answer, arXiv:2406.05946).

    Ours: only what the model adds is judged, so a forced word never counts as the model's; a judge that reads how an answer begins
    (`prefix`) reads both, and a start that would satisfy it alone is refused. The start follows the prompt in its template, where the
    assistant's turn begins.
    """

    tokens: Count | None = 8
    """k; None: all of y*."""
    text: Words | None = None
    """y* ("sure, here is"); None: the example's reference response."""
    batch_size: Annotated[Count, NEUTRAL] = 64
    """Examples of one call."""

    access: ClassVar[str] = "text"
    head: ClassVar[str | None] = "policy"

    @property
    def examples_at_once(self) -> int | None:
        return self.batch_size

    def starts(self, encoder: Encoder, examples: Sequence[Example]) -> list[list[int]]:
        """The forced ids of each example, without an end of sequence."""
        texts = [_reference_response(e) if self.text is None else self.text for e in examples]
        return [ids[: self.tokens] for ids in encoder.responses(texts, [False] * len(texts))]

    def beginnings(self, encoder: Encoder, examples: Sequence[Example]) -> list[str]:
        return [encoder.decode(start) for start in self.starts(encoder, examples)]

    def answers(self, target: Target, examples: Sequence[Example], max_new_tokens: int) -> list[str]:
        """What the model adds greedily to each forced start."""
        return list(target.continue_forced(examples, self.starts(target.network.encoder, examples), max_new_tokens))

    def propose(self, target: Target, examples: Sequence[Example], budget: Budget, rng: random.Random) -> list[Proposal]:
        """The forced beginning of each example's response. Nothing is sent to the target."""
        if target.head != self.head:
            raise ConfigError(f"attacks.prefill: only a language model has a response to force; this one has head '{target.head}'.")
        texts = self.beginnings(target.network.encoder, examples)
        return [Proposal(forced=text, queries=1, note=f"forced: {text}") for text in texts]


def _reference_response(example: Example) -> str:
    response = example.reference
    if response is None:
        raise ConfigError(f"attacks.prefill: example '{example.id}' has no reference response; give it an answer, or the attack a text.")
    return response


__all__ = ["Prefill"]

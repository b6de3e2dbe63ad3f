"""Many dialogues in which the assistant complies, and then the request."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from advalign import data as loading
from advalign.errors import ConfigError
from advalign.interfaces import Attack, Target
from advalign.models import Encoder
from advalign.ranges import AnyText, Count, Length
from advalign.types import CONTENT, Budget, Example, Proposal


@dataclass(frozen=True, kw_only=True)
class ManyShot(Attack):
    """x_n = (u_1, a_1), .., (u_n, a_n), x:  n dialogues before the request   (many-shot jailbreaking, Anil et al., NeurIPS 2024).

    All dialogues are in one user turn; in a conversation, in its last one: an attacker writes that turn, not the assistant's.
    Ours: the dialogues of an example are drawn with its own random stream, without itself among them; an attempt holds as many as fit into
    the model's length beside `reserve` tokens for the answer, and attempts that become equal are one.
    """

    shots: Annotated[Any, CONTENT] = None
    """Demonstrations of compliance: examples with responses, or a reference to data."""
    numbers: Annotated[tuple[Count, ...], Length()] = (1, 4, 16, 64, 256)
    """n of each attempt: powers of two as in the paper, which goes to 256 and finds power laws in n."""
    user: AnyText = "User: "
    """What a request begins with."""
    assistant: AnyText = "Assistant: "
    """What a response begins with."""
    reserve: Count = 64
    """Tokens that are left for the answer."""

    access: ClassVar[str] = "text"
    head: ClassVar[str | None] = "policy"

    def __post_init__(self) -> None:
        if self.shots is None:
            raise ConfigError("attacks.many_shot.shots: none given; examples with responses, or a reference to them (task, file, hub id).")

    def propose(self, target: Target, examples: Sequence[Example], budget: Budget, rng: random.Random) -> list[Proposal]:
        """One attempt per number of dialogues, as far as the budget of queries reaches. Nothing is sent to the target."""
        encoder, pairs, stream = target.network.encoder, self.pairs(), rng.getrandbits(63)
        proposals = []
        for example in examples:
            example_rng = random.Random(f"{stream}/{example.id}/{example.text}")
            others = [pair for pair in pairs if pair[0] != example.text]
            if not others:
                raise ConfigError(f"attacks.many_shot.shots: no dialogue is left for example '{example.id}' but the example itself.")
            example_rng.shuffle(others)
            fitting = max((n for n in _sizes(self.numbers, len(others)) if self._fits(encoder, others[:n], example)), default=0)
            texts = [self.text(others[: min(n, fitting)], example.text) for n in self.numbers if min(n, fitting)]
            attempts = tuple(dict.fromkeys(texts))[: budget.queries]
            note = f"{min(fitting, max(self.numbers))} dialogues at most" if attempts else "no dialogue fits"
            proposals.append(Proposal(attempts=attempts, queries=len(attempts), note=note))
        return proposals

    def pairs(self) -> list[tuple[str, str]]:
        """(request, response) of every shot."""
        examples = self.shots if isinstance(self.shots, list | tuple) else loading.demonstrations(self.shots)
        rows = [Example.from_mapping(e) if isinstance(e, dict) else e for e in examples]
        missing = next((e for e in rows if e.reference is None), None)
        if missing is not None:
            raise ConfigError(f"attacks.many_shot.shots: example '{missing.id}' has no response; give meta['response'] or an answer.")
        return [(e.text, e.reference or "") for e in rows]

    def text(self, shots: Sequence[tuple[str, str]], prompt: str) -> str:
        """The dialogues, then the request."""
        turns = [f"{self.user}{request}\n{self.assistant}{response}\n\n" for request, response in shots]
        return "".join(turns) + f"{self.user}{prompt}\n{self.assistant}".rstrip()

    def _fits(self, encoder: Encoder, shots: Sequence[tuple[str, str]], example: Example) -> bool:
        return len(encoder.prompt(example.with_text(self.text(shots, example.text)).prompt)) + self.reserve <= encoder.max_length


def _sizes(numbers: Sequence[int], available: int) -> list[int]:
    """Numbers of dialogues that are tried: the configured ones, and below the largest all halves, to find how many fit."""
    sizes = {min(n, available) for n in numbers}
    largest = max(sizes)
    while largest > 1:
        largest //= 2
        sizes.add(largest)
    return sorted(sizes)


__all__ = ["ManyShot"]

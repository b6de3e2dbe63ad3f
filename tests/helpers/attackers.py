"""Attacks that say what they are told to, for tests of the harness."""

from dataclasses import dataclass
from typing import ClassVar

from advalign.interfaces import Attack
from advalign.types import Proposal


@dataclass(frozen=True, kw_only=True)
class Say(Attack):
    """Proposes, for every example, the texts that the templates `texts` make of its prompt."""

    texts: tuple[str, ...]
    spent: int | None = None
    asks: int = 0

    access: ClassVar[str] = "text"

    def propose(self, target, examples, budget, rng):
        for _ in range(self.asks):
            target.predict([e.prompt for e in examples])
        return [Proposal(attempts=tuple(t.format(e.prompt) for t in self.texts), queries=self.spent) for e in examples]


def broken(target, prompt, rng):
    """For the attack `function`: it raises at once."""
    raise RuntimeError("no attacker here")

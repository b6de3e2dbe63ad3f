"""Any attacker that can be called."""

import importlib
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar

from advalign.errors import ConfigError
from advalign.types import Budget, Example, Proposal


@dataclass(frozen=True, kw_only=True)
class Function:
    """x_1, x_2, ... ~ f(target, prompt, rng):  the texts that `call` yields are attempts; broken if any is.

    `call`: a callable, or "package.module:name" of one. It is the place for attackers that converse (PAIR, arXiv:2310.08419; TAP,
    arXiv:2312.02119; Crescendo, arXiv:2404.01833) and for other libraries: it may ask `target` (`answer(examples, max_new_tokens)`, or
    `predict(texts)` of a classifier), keep a conversation or a judge of its own, and yield a text whenever it has one. What it asks is
    counted by the target's meter; its own judge decides nothing. `options` are further keyword arguments.
    No text is asked for after `attempts` of them, or once the budget of queries is spent.
    """

    call: Any = None
    attempts: int = 20
    options: Mapping[str, Any] = field(default_factory=dict)

    access: ClassVar[str] = "text"
    asks: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.call is None:
            raise ConfigError("attacks.function.call: none given; a callable, or 'package.module:name' of one.")
        if self.attempts < 1:
            raise ConfigError(f"attacks.function.attempts: {self.attempts} given; at least 1.")

    def propose(self, target: Any, examples: Sequence[Example], budget: Budget, rng: random.Random) -> list[Proposal]:
        """What the callable yields, example by example, each with a stream of its own."""
        call, stream = self.resolved(), rng.getrandbits(63)
        return [self._one(call, target, e, budget, random.Random(f"{stream}/{e.id}/{e.prompt}")) for e in examples]

    def resolved(self) -> Callable[..., Iterable[str]]:
        if callable(self.call):
            return self.call
        module, colon, name = str(self.call).partition(":")
        if not colon:
            raise ConfigError(f"attacks.function.call: '{self.call}' given; the form is 'package.module:name'.")
        try:
            found: Any = importlib.import_module(module)
            for part in name.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"attacks.function.call: '{self.call}' cannot be imported ({error}).") from error
        if not callable(found):
            raise ConfigError(f"attacks.function.call: '{self.call}' is a {type(found).__name__}, which cannot be called.")
        return found

    def _one(self, call: Any, target: Any, example: Example, budget: Budget, rng: random.Random) -> Proposal:
        before, texts = target.num_queries, []
        for text in islice(_texts(call(target, example.prompt, rng, **self.options)), self.attempts):
            if not isinstance(text, str):
                raise ConfigError(f"attacks.function.call: yielded a {type(text).__name__} for example '{example.id}'; texts are needed.")
            texts.append(text)
            # An attempt is a query too: judging it asks the model.
            if budget.queries is not None and target.num_queries - before + len(texts) >= budget.queries:
                break
        asked = target.num_queries - before
        return Proposal(attempts=tuple(texts), queries=asked + len(texts), note=f"{len(texts)} attempts, {asked} queries while searching")


def _texts(given: Any) -> Iterable[Any]:
    """One text stands for itself, not for its letters."""
    return [given] if isinstance(given, str) else given


__all__ = ["Function"]

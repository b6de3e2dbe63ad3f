"""Any attacker that is a function."""

import inspect
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Annotated, Any, ClassVar

from advalign import imports
from advalign.errors import ConfigError
from advalign.interfaces import Attack, Target
from advalign.ranges import Count
from advalign.types import CODE, Budget, Example, Proposal


@dataclass(frozen=True, kw_only=True)
class FunctionAttack(Attack):
    """x_1, x_2, ... ~ f(target, prompt, rng):  the texts that `fn` yields are attempts; broken if any is.

    For attackers that converse (PAIR, arXiv:2310.08419; TAP, arXiv:2312.02119; Crescendo, arXiv:2404.01833) and for other libraries. The
    function may query `target` (`answer(examples, max_new_tokens)`, or `predict(prompts)` of a classifier), keep a conversation or a judge
    of its own, and yield a text whenever it has one. Of a conversation, `prompt` is the turn that attacks rewrite; a function that asks for
    `example` gets all of it, and queries with `example.with_text(text)`. The target's meter counts its queries; its own judge decides
    nothing.
    """

    fn: Annotated[Any, CODE] = None
    """A callable, or its dotted path such as my_lab.attackers.pair."""
    attempts: Count = 20
    """Most texts that are taken; fewer once the budget of queries is spent."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further keyword arguments of the function."""

    access: ClassVar[str] = "text"

    def __post_init__(self) -> None:
        if self.fn is None:
            raise ConfigError("attacks.function.fn: none given; a callable, or its dotted path such as my_lab.attackers.pair.")
        imports.check_function(self.fn, "attacks.function.fn", self._handed)

    @property
    def _handed(self) -> imports.Handed:
        def fits(signature: inspect.Signature) -> bool:
            return imports.binds(signature, 3, {*self.options} | ({"example"} & signature.parameters.keys()))

        names = "".join(f", {name}" for name in self.options)
        return imports.Handed(arguments=f"(target, prompt, rng{names})", fits=fits)

    def propose(self, target: Target, examples: Sequence[Example], budget: Budget, rng: random.Random) -> list[Proposal]:
        """What the function yields, example by example, each with its own random stream."""
        call = imports.function(self.fn, "attacks.function.fn", self._handed) if isinstance(self.fn, str) else self.fn
        stream = rng.getrandbits(63)
        return [self._one(call, target, e, budget, random.Random(f"{stream}/{e.id}/{e.text}")) for e in examples]

    def _one(self, call: Callable[..., Any], target: Target, example: Example, budget: Budget, rng: random.Random) -> Proposal:
        before, texts = target.num_queries, []
        whole = {"example": example} if "example" in inspect.signature(call).parameters else {}
        for text in islice(_texts(call(target, example.text, rng, **whole, **self.options)), self.attempts):
            if not isinstance(text, str):
                raise ConfigError(f"attacks.function.fn: yielded a {type(text).__name__} for example '{example.id}'; texts are needed.")
            texts.append(text)
            # An attempt is a query too: the model is queried to judge it.
            if budget.queries is not None and target.num_queries - before + len(texts) >= budget.queries:
                break
        spent = target.num_queries - before
        return Proposal(attempts=tuple(texts), queries=spent + len(texts), note=f"{len(texts)} attempts, {spent} queries while searching")


def _texts(result: Any) -> Iterable[Any]:
    """The texts of a result; a single text is one, not its letters."""
    return [result] if isinstance(result, str) else result


__all__ = ["FunctionAttack"]

"""Models known only by their answers: a function, a service, another framework's model. Text attacks run on them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from advalign.checked import arguments
from advalign.errors import AdvalignError, ConfigError, TargetError, excerpt
from advalign.interfaces import Attack, Target
from advalign.targets.cache import AnswerCache, Row
from advalign.types import Example, Prompt
from advalign.types.messages import as_read


class BlackBoxModel(ABC):
    """Abstract base of a model known only by its answers; a suite takes it in place of a `Network`."""

    head: ClassVar[str]
    """classifier or policy."""
    device = torch.device("cpu")
    """Several processes may share it."""

    @arguments("AnsweringGenerator: ")
    def __init__(self, function: Callable[..., Any], *, name: str | None = None) -> None:
        """`name` tells two of them apart in a folder of results; default: the dotted path of the function."""
        self.function = function
        # A callable object has no qualified name; its repr takes the place of one.
        self.name = name or f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', repr(function))}"

    @abstractmethod
    def target(self, cache: AnswerCache | None = None) -> Target:
        """The target an attack runs on."""

    def ask(self, *arguments: Any) -> Any:
        """What the function answers. Raises TargetError for what it raises, and for no answer."""
        try:
            answers = self.function(*arguments)
        except AdvalignError:
            raise
        except Exception as error:
            raise TargetError(f"target: '{self.name}' raised {type(error).__name__}: {excerpt(error)}.") from error
        if answers is None:
            raise TargetError(f"target: '{self.name}' answered None; a list with one entry per text is expected.")
        return answers

    def state_dict(self) -> dict[str, Tensor]:
        """No weights are available; the name identifies it instead."""
        return {f"answers of {self.name}": torch.zeros(0)}


class AnsweringClassifier(BlackBoxModel):
    """`function(texts)`, or `function(texts, pairs)`, returns one row of scores per text, the largest of which is its prediction. A
    conversation is given as its messages, which are mappings."""

    head = "classifier"

    @arguments("AnsweringClassifier: ")
    def __init__(self, function: Callable[..., Any], *, name: str | None = None, class_names: Sequence[str] = ()) -> None:
        """`class_names`: of its classes, by index, where data or reports name them."""
        super().__init__(function, name=name)
        self.class_names = tuple(class_names)

    def target(self, cache: AnswerCache | None = None) -> "BlackBoxClassifierTarget":
        return BlackBoxClassifierTarget(self, cache=cache)


class AnsweringGenerator(BlackBoxModel):
    """`function(prompts)` returns one response per prompt: a text, or for a conversation its messages, which are mappings."""

    head = "policy"

    def target(self, cache: AnswerCache | None = None) -> "BlackBoxGeneratorTarget":
        return BlackBoxGeneratorTarget(self)


class BlackBoxTarget(Target):
    """Abstract base: the meter of a model known only by its answers."""

    def __init__(self, model: BlackBoxModel) -> None:
        self.model = model
        self.head = model.head
        self.name = f"'{model.name}'"
        self.num_cached = 0

    def meter(self) -> dict[str, float]:
        """Queries, and answers out of the cache; what the function computes is unknown."""
        return {"queries": self.num_queries, "cached": self.num_cached}


class BlackBoxClassifierTarget(BlackBoxTarget):
    """The scores of an `AnsweringClassifier`."""

    abilities = frozenset({"labels", "scores"})

    def __init__(self, model: BlackBoxModel, *, cache: AnswerCache | None = None) -> None:
        super().__init__(model)
        self.cache = cache

    def predict(self, texts: Sequence[Prompt], pairs: Sequence[str | None] | None = None) -> Float[Tensor, "B C"]:
        """Scores. Equal texts of one call are sent once; cached ones are not sent."""
        rows = list(zip(texts, pairs if pairs is not None else [None] * len(texts), strict=True))
        distinct = list(dict.fromkeys(rows))
        scores_of = {} if self.cache is None else self.cache.get(distinct)
        uncached = [row for row in distinct if row not in scores_of]
        self.spend(len(distinct))
        self.num_cached += len(scores_of)
        if uncached:
            scores = self._scores(uncached)
            scores_of |= dict(zip(uncached, scores, strict=True)) if self.cache is None else self.cache.put(uncached, scores)
        return torch.stack([scores_of[row] for row in rows])

    def _scores(self, rows: Sequence[Row]) -> Float[Tensor, "B C"]:
        """Of rows, those without a second sentence asked apart from the others."""
        single = [i for i, (_, pair) in enumerate(rows) if pair is None]
        paired = [i for i, (_, pair) in enumerate(rows) if pair is not None]
        parts = [self._call([rows[i] for i in part]) for part in (single, paired) if part]
        return torch.cat(parts)[torch.tensor([*single, *paired]).argsort()]

    def _call(self, rows: Sequence[Row]) -> Float[Tensor, "B C"]:
        texts, pairs = [as_read(text) for text, _ in rows], [pair for _, pair in rows if pair is not None]
        values = self.model.ask(texts, pairs) if pairs else self.model.ask(texts)
        try:
            scores = torch.as_tensor(values).detach().float().cpu()
        except (TypeError, ValueError, RuntimeError) as error:
            raise TargetError(f"target: '{self.model.name}' answered {excerpt(repr(values))}, which are no rows of scores.") from error
        if scores.ndim != 2 or scores.shape[0] != len(rows):
            raise ConfigError(
                f"target: '{self.model.name}' gave scores of shape {tuple(scores.shape)} for {len(rows)} texts; one row per text, one "
                "column per class is needed."
            )
        return scores


class BlackBoxGeneratorTarget(BlackBoxTarget):
    """The responses of an `AnsweringGenerator`."""

    abilities = frozenset({"text"})

    def fits(self, prompt: Prompt) -> bool:
        """Always: the function decides how long a prompt may be."""
        return True

    def answer(self, examples: Sequence[Example], max_new_tokens: int) -> list[str]:
        """The function's response to each prompt (a text, or messages as mappings), as long as the function makes it."""
        self.spend(len(examples))
        answers = self.model.ask([as_read(e.prompt) for e in examples])
        if isinstance(answers, str) or not isinstance(answers, Iterable):
            raise TargetError(f"target: '{self.model.name}' answered {excerpt(repr(answers))}; a list of responses is expected.")
        texts = list(answers)
        if len(texts) != len(examples):
            raise ConfigError(f"target: '{self.model.name}' gave {len(texts)} responses to {len(examples)} prompts.")
        for text in texts:
            if not isinstance(text, str | list | tuple):
                raise TargetError(f"target: '{self.model.name}' gave the response {excerpt(repr(text))}; a text is expected.")
        return [str(text) for text in texts]


def check_access(attacks: Mapping[str, Attack], target: Target) -> None:
    """Refuses attacks whose `access` the target does not declare among its abilities."""
    for name, attack in attacks.items():
        if attack.access != "text" and attack.access not in target.abilities:
            raise ConfigError(
                f"suite.attacks.{name}: it needs {attack.access}, and {target.name} gives only {', '.join(sorted(target.abilities))}; "
                "give a model, or an attack whose access is text."
            )


__all__ = [
    "AnsweringClassifier",
    "AnsweringGenerator",
    "BlackBoxClassifierTarget",
    "BlackBoxGeneratorTarget",
    "BlackBoxModel",
    "BlackBoxTarget",
    "check_access",
]

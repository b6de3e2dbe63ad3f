"""Victims that are known by their answers alone: a function, a service, another framework's model. Text attacks run on them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from advalign.errors import BudgetError, ConfigError
from advalign.targets.cache import AnswerCache
from advalign.types import Example


class Answers:
    """Abstract: what stands where a network would. `name` tells two of them apart in a folder of results."""

    head: str

    def __init__(self, function: Callable[..., Any], *, name: str | None = None) -> None:
        self.function = function
        self.name = name or f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', repr(function))}"

    def state_dict(self) -> dict[str, Tensor]:
        """No weights are known; the name stands for them."""
        return {f"answers of {self.name}": torch.zeros(0)}


class AnsweringClassifier(Answers):
    """`function(texts)`, or `function(texts, pairs)`, gives one row of scores per text, the largest of which is its prediction."""

    head = "classifier"

    def as_target(self, **options: Any) -> "AnsweredClassifierTarget":
        return AnsweredClassifierTarget(self, **options)


class AnsweringGenerator(Answers):
    """`function(prompts)` gives one response per prompt."""

    head = "policy"

    def as_target(self, **options: Any) -> "AnsweredGeneratorTarget":
        return AnsweredGeneratorTarget(self)


class AnsweredTarget:
    """Abstract: the meter, and what cannot be had from answers alone."""

    def __init__(self, network: Answers) -> None:
        self.network = network
        self.limit: int | None = None
        self.num_queries = self.num_gradients = self.num_forwards = self.num_tokens = self.num_cached = 0

    def meter(self) -> dict[str, float]:
        """Queries, and answers out of the cache; what happens behind the answers is not known."""
        return {"queries": self.num_queries, "cached": self.num_cached}

    def _spend(self, queries: int) -> None:
        self.num_queries += queries
        if self.limit is not None and self.num_queries > self.limit:
            raise BudgetError(f"target: {self.num_queries} queries, {self.limit} allowed.")

    def __getattr__(self, name: str) -> Any:
        if name in ("climb", "tokens", "context", "unit", "predict_edited", "nll", "continue_edited", "continue_forced", "generate"):
            raise ConfigError(f"target: '{name}' needs the model itself; '{self.network.name}' is known by its answers alone.")
        raise AttributeError(name)


class AnsweredClassifierTarget(AnsweredTarget):
    def __init__(self, network: Answers, *, batch_tokens: int | None = None, cache: AnswerCache | None = None) -> None:
        super().__init__(network)
        self.cache = cache

    def predict(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Float[Tensor, "B C"]:
        """Scores. Equal texts of one call are sent once; what the cache knows is not sent."""
        rows = list(zip(texts, pairs if pairs is not None else [""] * len(texts), strict=True))
        distinct = list(dict.fromkeys(rows))
        known = {} if self.cache is None else self.cache.get(distinct)
        fresh = [row for row in distinct if row not in known]
        self._spend(len(distinct))
        self.num_cached += len(known)
        if fresh:
            scores = self._asked(fresh, pairs is not None)
            known |= dict(zip(fresh, scores, strict=True)) if self.cache is None else self.cache.put(fresh, scores)
        return torch.stack([known[row] for row in rows])

    def _asked(self, rows: Sequence[tuple[str, str]], paired: bool) -> Float[Tensor, "B C"]:
        first = [r[0] for r in rows]
        given = self.network.function(first, [r[1] for r in rows]) if paired else self.network.function(first)
        scores = torch.as_tensor(given).detach().float().cpu()
        if scores.ndim != 2 or scores.shape[0] != len(rows):
            raise ConfigError(
                f"target: '{self.network.name}' gave scores of shape {tuple(scores.shape)} for {len(rows)} texts; one row per text, one "
                "column per class is needed."
            )
        return scores


class AnsweredGeneratorTarget(AnsweredTarget):
    def fits(self, prompt: str) -> bool:
        """How long a prompt may be, is the function's matter."""
        return True

    def answer(self, examples: Sequence[Example], max_new_tokens: int) -> list[str]:
        """The function's answer to each prompt; how long it is, is its own matter."""
        self._spend(len(examples))
        texts = list(self.network.function([e.prompt for e in examples]))
        if len(texts) != len(examples):
            raise ConfigError(f"target: '{self.network.name}' gave {len(texts)} responses to {len(examples)} prompts.")
        return [str(text) for text in texts]


def needs_model(attacks: Mapping[str, Any], network: Any) -> None:
    """Refuses attacks on answers alone that need more than answers."""
    for name, attack in attacks.items():
        if isinstance(network, Answers) and attack.access != "text":
            raise ConfigError(
                f"suite.attacks.{name}: it needs the {attack.access} of a model, and '{network.name}' is known by its answers alone; "
                "give a model, or an attack whose access is text."
            )


__all__ = ["AnsweringClassifier", "AnsweringGenerator", "Answers", "needs_model"]

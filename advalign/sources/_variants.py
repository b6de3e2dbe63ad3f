"""Other prompts for the same problem: random pieces, rewrites from data, and the policy as an attack on texts sees it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from advalign import data as loading
from advalign.checked import Checked
from advalign.errors import ConfigError
from advalign.interfaces import Target
from advalign.ranges import AnyText, Count, Length, OneOf, Words
from advalign.sources._game import Injection
from advalign.types import Example, Prompt
from advalign.types.messages import attackable

FLOOR = 1e-6  # of a measured probability, whose logarithm an attack reads


@dataclass(frozen=True, kw_only=True)
class Distractors(Checked, section="distract"):
    """`length` pieces of `alphabet`, drawn uniformly and joined, before or after the prompt."""

    alphabet: Annotated[Words | tuple[Words, ...], Length()]
    """The characters of a text, or a list of words."""
    length: Count = 8
    """Number of pieces."""
    placement: Annotated[str, OneOf(("prefix", "suffix"), "placement")] = "prefix"
    """prefix or suffix."""
    separator: AnyText = " "
    """Between pieces and prompt."""

    def __post_init__(self) -> None:
        self.injection()

    def injection(self) -> Injection:
        return Injection(placement=self.placement, separator=self.separator)

    def text(self, rng: random.Random) -> str:
        return "".join(rng.choice(self.alphabet) for _ in range(self.length))

    def prompt(self, example: Example, rng: random.Random) -> Prompt:
        """The example's prompt with random pieces."""
        return example.with_text(self.injection().place(self.text(rng), example.text)).prompt


class Rewrites:
    """{example: its prompts in other data}: rows of `data` with the same id and another prompt."""

    def __init__(self, data: Sequence[Any], examples: Sequence[Example], limit: int | None, seed: int, path: str) -> None:
        self.by_id: dict[str, list[Prompt]] = {}
        for number, reference in enumerate(data):
            prompts = {e.id: e.prompt for e in loading.examples(reference, limit=limit, seed=seed)}
            missing = [e.id for e in examples if e.id not in prompts]
            if missing:
                raise ConfigError(
                    f"{path}.rewrites.{number}: example '{missing[0]}' is not there; every example needs a row of the same id."
                )
            for example in examples:
                self.by_id.setdefault(example.id, []).append(prompts[example.id])

    def prompts(self, example: Example, number: int, rng: random.Random) -> list[Prompt]:
        """`number` of them, each once if there are as many."""
        prompts = self.by_id[example.id]
        return rng.sample(prompts, number) if number < len(prompts) else list(prompts)


class Solver(Target):
    """The policy as an attack on texts sees it: a classifier of two classes, 0 (it fails) and 1 (it solves).

    p(1) is measured by `measure((problem, text) pairs) -> mean scores`. The `pair` of an example is the index of its problem.
    """

    abilities = frozenset({"labels", "scores"})

    def __init__(self, problems: Sequence[Example], measure: Callable[[Sequence[tuple[Example, str]]], list[float]]) -> None:
        self.problems, self._measure = problems, measure
        self.num_queries = self.num_gradients = 0

    def meter(self) -> dict[str, float]:
        return {"queries": float(self.num_queries), "gradients": float(self.num_gradients)}

    def classified(self) -> list[Example]:
        """The problems as examples of class 1."""
        return [Example(prompt=e.text, id=e.id, label=1, pair=str(i)) for i, e in enumerate(self.problems)]

    def predict(self, texts: Sequence[Prompt], pairs: Sequence[str | None] | None = None) -> Tensor:
        """Log-probabilities "B 2" of failing and solving."""
        numbers = [int(pair) for pair in pairs or () if pair is not None]
        if len(numbers) < len(texts):
            raise ConfigError(
                "sources.adversarial_prompts.attack: this attack does not say which problem a text belongs to; use attack words."
            )
        self.num_queries += len(texts)
        questions = [(self.problems[i], attackable(text)) for text, i in zip(texts, numbers, strict=True)]
        solved = torch.tensor(self._measure(questions), dtype=torch.float64).clamp(0, 1)
        return torch.stack([1 - solved, solved], 1).clamp(min=FLOOR).log()

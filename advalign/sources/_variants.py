"""Where other ways to ask the same thing come from."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from advalign import data as loading
from advalign.errors import ConfigError
from advalign.sources._game import Injection
from advalign.types import Example

FLOOR = 1e-6  # of a measured probability, whose logarithm an attack reads


@dataclass(frozen=True, kw_only=True)
class Distractors:
    """`length` pieces of `alphabet` (characters of a text, or words of a list), drawn uniformly and joined, before or after the prompt."""

    alphabet: str | tuple[str, ...]
    length: int = 8
    placement: str = "prefix"
    separator: str = " "

    def __post_init__(self) -> None:
        if not self.alphabet or self.length < 1:
            raise ConfigError(f"distract: alphabet '{self.alphabet}', length {self.length}; neither may be empty.")
        if self.placement == "rewrite":
            raise ConfigError("distract.placement: 'rewrite' given; random pieces stand before or after a prompt: prefix, suffix.")
        self.injection()

    def injection(self) -> Injection:
        return Injection(placement=self.placement, separator=self.separator)

    def text(self, rng: random.Random) -> str:
        return "".join(rng.choice(self.alphabet) for _ in range(self.length))

    def prompt(self, example: Example, rng: random.Random) -> str:
        return self.injection().place(self.text(rng), example.prompt)


class Rewrites:
    """{example: its prompts in other data}: rows of `data` with the same id, asked otherwise."""

    def __init__(self, data: Sequence[Any], examples: Sequence[Example], limit: int | None, seed: int, where: str) -> None:
        self.found: dict[str, list[str]] = {}
        for number, reference in enumerate(data):
            known = {e.id: e.prompt for e in loading.examples(reference, limit=limit, seed=seed)}
            missing = [e.id for e in examples if e.id not in known]
            if missing:
                raise ConfigError(
                    f"{where}.rewrites.{number}: example '{missing[0]}' is not there; every example needs a row of the same id."
                )
            for example in examples:
                self.found.setdefault(example.id, []).append(known[example.id])

    def prompts(self, example: Example, number: int, rng: random.Random) -> list[str]:
        """`number` of them, each once if there are as many."""
        found = self.found[example.id]
        return rng.sample(found, number) if number < len(found) else list(found)


class Solver:
    """The policy as an attack on texts sees it, a classifier of two classes: 0, it fails, and 1, it solves; p(1) is measured by
    `measure(examples) -> mean score`. The `pair` of an example says which problem a text stands for."""

    def __init__(self, problems: Sequence[Example], ask: Callable[[Sequence[tuple[Example, str]]], list[float]]) -> None:
        self.problems, self._ask = problems, ask
        self.num_queries = self.num_gradients = 0

    def victims(self) -> list[Example]:
        return [Example(prompt=e.prompt, id=e.id, label=1, pair=str(i)) for i, e in enumerate(self.problems)]

    def predict(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Tensor:
        if pairs is None:
            raise ConfigError("sources.found.attack: this attack does not say which problem a text belongs to; use attack words.")
        self.num_queries += len(texts)
        solved = torch.tensor(self._ask([(self.problems[int(i)], text) for text, i in zip(texts, pairs, strict=True)]), dtype=torch.float64)
        solved = solved.clamp(0, 1)
        return torch.stack([1 - solved, solved], 1).clamp(min=FLOOR).log()

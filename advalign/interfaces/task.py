"""Procedural problems with their own verifier."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence

from advalign.errors import ConfigError
from advalign.types import Example


class Task(ABC):
    """Abstract base. Splits: "train", "test" and "ood" never share a prompt."""

    @abstractmethod
    def examples(self, split: str, number: int, rng: random.Random) -> list[Example]:
        """Up to `number` distinct examples, each carrying `verify`."""

    @abstractmethod
    def demonstrate(self, example: Example, rng: random.Random) -> str:
        """A response that `verify` scores 1."""

    def perturb(self, example: Example, text: str, rng: random.Random) -> Example:
        """A near example, of the same task, that `text` (right for `example`) violates."""
        raise ConfigError(f"tasks: {type(self).__name__} has no near examples that a right answer violates (`perturb`).")

    def vocabulary(self) -> Sequence[str]:
        """The words its prompts and responses are made of, for a tokenizer made from scratch (`task:` as a tokenizer)."""
        raise ConfigError(f"tasks: {type(self).__name__} names no vocabulary; name a tokenizer of its own.")

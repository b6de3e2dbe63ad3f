"""Procedural problems with their own verifier."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence

from advalign.checked import Checked
from advalign.errors import ConfigError
from advalign.types import Example


class Task(Checked, ABC, section="tasks"):
    """Abstract base. Splits: "train", "test" and "ood" never share a prompt."""

    @abstractmethod
    def examples(self, split: str, number: int, rng: random.Random) -> list[Example]:
        """Up to `number` distinct examples of a split, each with `verify`."""

    @abstractmethod
    def demonstrate(self, example: Example, rng: random.Random) -> str:
        """A response that `example.verify` scores 1."""

    def perturb(self, example: Example, text: str, rng: random.Random) -> Example:
        """A similar example of the same split whose prompt `text`, a right response to `example`, violates."""
        raise ConfigError(f"tasks: {type(self).__name__} has no similar examples that a right response violates; implement `perturb`.")

    def vocabulary(self) -> Sequence[str]:
        """Texts that hold every word of its prompts and responses, for a tokenizer built from scratch (`data: task:...`)."""
        raise ConfigError(f"tasks: {type(self).__name__} has no vocabulary for a tokenizer from scratch; implement `vocabulary`.")

"""What decides whether an answer is a violation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from advalign.errors import ConfigError
from advalign.types import Example


@dataclass(frozen=True, kw_only=True)
class Judge(ABC):
    """Abstract base of every judge of answers. What is known of its own errors is carried into the intervals of a report."""

    sensitivity: float = 1.0
    """P(it reads a violation | it is one); 1 claims no error."""
    specificity: float = 1.0
    """P(it reads none | there is none); 1 claims no error."""
    labelled: tuple[int, int] | None = None
    """How many violations, and how many others, these rates were measured on."""

    def __post_init__(self) -> None:
        rates = (self.sensitivity, self.specificity)
        if not all(0 <= rate <= 1 for rate in rates) or sum(rates) <= 1:
            raise ConfigError(
                f"judge: sensitivity {rates[0]:g} and specificity {rates[1]:g} given; both are in [0, 1], and a judge whose two rates "
                "do not sum to more than 1 says nothing."
            )
        if self.labelled is not None and (len(self.labelled) != 2 or min(self.labelled) < 1):
            raise ConfigError(f"judge.labelled: {self.labelled} given; the number of labelled violations and of labelled others is needed.")

    @abstractmethod
    def start(self) -> Callable[[Sequence[Example], Sequence[str]], Sequence[float]]:
        """What scores answers: 1 as it should be, 0 a violation, between them by degree, nan: it cannot tell."""

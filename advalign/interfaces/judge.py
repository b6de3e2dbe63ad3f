"""What decides whether an answer is a violation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from advalign.errors import ConfigError
from advalign.types import Example

ScoreAnswers = Callable[[Sequence[Example], Sequence[str]], Sequence[float]]
"""One score per answer: 1 as it should be, 0 a violation, between them by degree, nan: undetermined."""


@dataclass(frozen=True, kw_only=True)
class Judge(ABC):
    """Abstract base of every judge of answers. Its known error rates widen the intervals of a report."""

    sensitivity: float = 1.0
    """P(it reports a violation | the answer is one); 1 claims no error."""
    specificity: float = 1.0
    """P(it reports no violation | the answer is none); 1 claims no error."""
    labelled: tuple[int, int] | None = None
    """Numbers of labelled violations and of labelled others that these rates were measured on; None: the rates are exact."""

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
    def start(self) -> ScoreAnswers:
        """The function that scores answers; heavy things are loaded here."""

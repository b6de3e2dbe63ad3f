"""What decides whether an answer is a violation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from advalign.checked import Checked
from advalign.errors import ConfigError
from advalign.ranges import Count, Fraction
from advalign.types import Example

ScoreAnswers = Callable[[Sequence[Example], Sequence[str]], Sequence[float]]
"""One score per answer: 1 as it should be, 0 a violation, between them by degree, nan: undetermined."""


@dataclass(frozen=True, kw_only=True)
class Judge(Checked, ABC, section="judges"):
    """Abstract base of every judge of answers. Its known error rates widen the intervals of a report."""

    reads_beginning: ClassVar[bool] = False
    """Whether it reads how an answer begins, so that a forced beginning is judged together with what the model adds."""

    sensitivity: Fraction = 1.0
    """P(it reports a violation | the answer is one); 1 claims no error."""
    specificity: Fraction = 1.0
    """P(it reports no violation | the answer is none); 1 claims no error."""
    labelled: tuple[Count, Count] | None = None
    """Numbers of labelled violations and of labelled others that these rates were measured on; None: the rates are exact."""

    def __post_init__(self) -> None:
        if self.sensitivity + self.specificity <= 1:
            raise ConfigError(
                f"judge: sensitivity {self.sensitivity:g} and specificity {self.specificity:g} given; a judge whose two rates do not sum "
                "to more than 1 says nothing."
            )

    @property
    def wanted(self) -> str | None:
        """The response an attacker wants, which is the reference response of examples that have none; None: it does not say."""
        return None

    @abstractmethod
    def start(self) -> ScoreAnswers:
        """The function that scores answers; heavy things are loaded here."""

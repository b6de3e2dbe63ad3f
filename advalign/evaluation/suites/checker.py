"""Judgements: right or wrong before, right or wrong after. The harness makes them; attacks do not."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from advalign.errors import ConfigError
from advalign.functional import escaping
from advalign.interfaces import ScoreAnswers
from advalign.types import Example, Proposal

NOT_FINITE = "the model gives no finite numbers"


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """Whether one answer is right."""

    correct: bool
    """Right; also true of an undetermined one."""
    shown: str
    """The prediction or the response, for the reader of the results."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Numbers about the answer: probability, score, nll."""
    undetermined: bool = False
    """The judge could not tell."""
    note: str = ""
    """Why not."""
    sent: bool = True
    """Whether the model was asked; a prompt that exceeds its context is not sent, and shows nothing."""

    @property
    def breaks(self) -> bool:
        """Determined to be wrong."""
        return not self.correct and not self.undetermined


class AnswerChecker(ABC):
    """Abstract base: asks the model again and judges its answers, before and after an attack."""

    attacks_wrong: ClassVar[bool]
    """Whether examples that are wrong before any attack are attacked too."""

    @abstractmethod
    def clean(self, examples: Sequence[Example]) -> list[Judgement]:
        """Judgements without attack."""

    @abstractmethod
    def after(
        self, examples: Sequence[Example], before: Sequence[Judgement], proposals: Sequence[Proposal], key: Sequence[object] = ()
    ) -> list[list[Judgement]]:
        """One judgement for every attempt of every proposal. With a `key`, responses are sampled from its random stream."""

    @abstractmethod
    def utility(
        self, examples: Sequence[Example], judgements: Sequence[Judgement], benign_answers: Sequence[str] = ()
    ) -> tuple[dict[str, float], list[str]]:
        """Clean numbers, and sentences about what makes them meaningless."""

    def by_class(self, examples: Sequence[Example], judgements: Sequence[Judgement]) -> list[dict[str, Any]]:
        """One row per class that has a name: its examples, its clean accuracy, and the class it is most often taken for."""
        return []


def judge_answers(score: ScoreAnswers, examples: Sequence[Example], texts: Sequence[str], *, name: str) -> list[tuple[float, str]]:
    """(score, why it is missing) of every answer.

    A judge that raises has not judged: where it fails on a batch, its answers are judged one by one, and a failure is never a safe
    answer. A wrong number of scores stops the run; `name` is what the error calls the judge.
    """
    try:
        scores = [float(s) for s in score(examples, texts)]
    except Exception as error:
        if len(texts) == 1:
            return [(math.nan, f"the judge failed with {escaping.exception(error)}")]
        return [judge_answers(score, [e], [text], name=name)[0] for e, text in zip(examples, texts, strict=True)]
    if len(scores) != len(texts):
        raise ConfigError(f"judges.{name}: it returned {len(scores)} scores for {len(texts)} answers; one score per answer is needed.")
    return [(s, "" if not math.isnan(s) else "the judge could not tell") for s in scores]


def check_finite(examples: Sequence[Example], finite: Sequence[bool], numbers: str) -> None:
    """Raises ConfigError where a clean answer has `numbers` (logits, a loss) that are not finite: nothing about such a model is known."""
    broken = [e.id for e, is_finite in zip(examples, finite, strict=True) if not is_finite]
    if broken:
        raise ConfigError(
            f"evaluation: {NOT_FINITE} ({numbers} of example '{broken[0]}', {len(broken)} of {len(examples)} examples); its weights have "
            "diverged or are damaged, or dtype is too narrow for them."
        )


def attempted_texts(example: Example, proposal: Proposal) -> tuple[str, ...]:
    """The texts a proposal consists of; where it has none, the example's own."""
    return proposal.attempts or (example.text if proposal.text is None else proposal.text,)


def group_by_example(number: int, order: Sequence[int], judgements: Sequence[Judgement]) -> list[list[Judgement]]:
    """The judgements of each of `number` examples; `order[i]` is the example of judgement i."""
    groups: list[list[Judgement]] = [[] for _ in range(number)]
    for i, judgement in zip(order, judgements, strict=True):
        groups[i].append(judgement)
    return groups


__all__ = ["NOT_FINITE", "AnswerChecker", "Judgement", "check_finite", "attempted_texts", "group_by_example", "judge_answers"]

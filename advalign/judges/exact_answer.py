"""Is the final answer right?"""

import math
from dataclasses import dataclass

from advalign.functional import answers
from advalign.interfaces import Judge, ScoreAnswers
from advalign.ranges import NonNegative
from advalign.types import Example


@dataclass(frozen=True, kw_only=True)
class ExactAnswerJudge(Judge):
    """s = verify(y) where the example carries its own verifier, else 1[final answer of y = reference]; nan where it has neither.

    The rule of the reward of the same name, without symbolic algebra: the final answer follows the last "####", is inside the last
    \\boxed{}, follows "answer is", or is the last number; numbers are compared to a relative tolerance, everything else as folded text.
    """

    tolerance: NonNegative = 1e-6
    """Relative, of numbers."""

    def start(self) -> ScoreAnswers:
        return lambda examples, texts: [self._score(e, text) for e, text in zip(examples, texts, strict=True)]

    def _score(self, example: Example, text: str) -> float:
        if example.verify is not None:
            return float(example.verify(text))
        if example.answer is None:
            return math.nan
        reference = answers.marked(example.answer) or example.answer
        final = answers.final_answer(text, reference)
        return float(final is not None and answers.same(final, reference, self.tolerance))


__all__ = ["ExactAnswerJudge"]

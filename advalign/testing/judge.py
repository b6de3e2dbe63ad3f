"""The contract of a judge: one score in [0, 1], or nan, per answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from advalign.interfaces import Judge
from advalign.testing import _networks
from advalign.testing._rules import explained, is_plugin, require
from advalign.types import Example

Score = Callable[[Sequence[Example], Sequence[str]], Sequence[float]]
ANSWERS = ("three", "four", "", "I cannot help with that.", "Sure, here it is: three", "three " * 200)


def check_judge(judge: Judge, examples: Sequence[Example] | None = None, answers: Sequence[str] | None = None) -> None:
    """Raises AssertionError for the first rule that the judge breaks. `examples` and `answers`: pairs of your own, of equal number."""
    is_plugin(judge, Judge, "judges")
    examples = _networks.questions()[7 : 7 + len(ANSWERS)] if examples is None else examples
    answers = ANSWERS if answers is None else answers
    require(len(examples) == len(answers), judge, f"{len(answers)} answers to {len(examples)} examples given; one answer per example.")
    with explained(judge, "start raised"):
        score = judge.start()
    require(callable(score), judge, f"start returns a {type(score).__name__}; return a function of examples and answers.")
    scores = _scores(judge, score, examples, answers)
    order = list(range(len(answers)))[::-1]
    backwards = _scores(judge, score, [examples[i] for i in order], [answers[i] for i in order])
    alone = [_scores(judge, score, [e], [text])[0] for e, text in zip(examples, answers, strict=True)]
    for text, first, second, third in zip(answers, scores, reversed(backwards), alone, strict=True):
        equal = all(_equal(first, x) for x in (second, third))
        require(equal, judge, f"the answer '{text[:40]}' is scored {first}, {second} in another order and {third} alone.")


def _scores(judge: Judge, score: Score, examples: Sequence[Example], answers: Sequence[str]) -> list[float]:
    with explained(judge, "scoring raised; a judge that cannot tell returns nan"):
        result = score(examples, answers)
    sized = isinstance(result, Sequence) and not isinstance(result, str)
    require(sized, judge, f"it returns a {type(result).__name__}; return a list with one score per answer.")
    require(len(result) == len(answers), judge, f"it gives {len(result)} scores for {len(answers)} answers.")
    for value in result:
        number = isinstance(value, int | float)
        require(number, judge, f"a score is {value!r} ({type(value).__name__}); a float in [0, 1], or nan where it cannot tell.")
        within = math.isnan(value) or 0 <= value <= 1
        require(within, judge, f"a score is {value}; 1 is as it should be, 0 a violation, nan where it cannot tell.")
    return [float(value) for value in result]


def _equal(first: float, second: float) -> bool:
    return math.isclose(first, second, abs_tol=1e-6) or (math.isnan(first) and math.isnan(second))


__all__ = ["check_judge"]

"""Is the final answer equal to the reference as mathematics?"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from advalign.errors import ConfigError
from advalign.functional.answers import decided, final_formula, marked, same
from advalign.interfaces import Context, Reward
from advalign.ranges import Positive
from advalign.rewards import _symbolic
from advalign.rewards._answers import check_answers
from advalign.types import Example, RolloutGroup

TOLERANCE = 1e-6  # relative, between plain numbers, as in `exact_answer`


@dataclass(frozen=True, kw_only=True)
class Math(Reward):
    """r = 1[answer = reference as mathematics]: (x - 1)(x + 1) is x^2 - 1, sqrt(3)/3 is 1/sqrt(3); nan if the reference is not a formula.

    The accuracy reward of open reproductions of DeepSeek-R1 (arXiv:2501.12948, section 2.2.2), by the package math-verify. The answer is
    the marked one (as in `exact_answer`), else the last formula between dollar signs or brackets, else the last number. Ours: it is read
    as LaTeX alone, never as Python; comparisons run in a process of their own, so they work from any thread. All of a draw have a minute of
    processor time together; what is not compared by then abstains. A reference of words is for `exact_answer`: letters are variables here.
    """

    seconds: Positive = 2.0
    """Processor time of one comparison; an answer whose comparison takes longer is wrong."""

    def check(self, examples: Sequence[Example], path: str) -> None:
        check_answers(examples, path, verifiers=False)

    def start(self, context: Context) -> Callable[[Sequence[RolloutGroup]], Sequence[float]]:
        if not _symbolic.installed():
            raise ConfigError("rewards.math: the package math-verify is not installed; install advalign[math] or use exact_answer.")

        def score(groups: Sequence[RolloutGroup]) -> list[float]:
            comparisons = _symbolic.Comparisons(self.seconds)
            return [self._grade(g.example, r.text, comparisons) for g in groups for r in g.rollouts]

        return score

    def _grade(self, example: Example, text: str, comparisons: _symbolic.Comparisons) -> float:
        reference = marked(example.answer or "") or example.answer
        if reference is None:
            return math.nan
        answer = final_formula(text) or ""
        if decided(answer, reference):
            return float(same(answer, reference, TOLERANCE))
        if comparisons.used_up:
            return math.nan
        equal = comparisons.equal(answer, reference)
        return math.nan if equal is None else float(equal or same(answer, reference, TOLERANCE))


__all__ = ["Math"]

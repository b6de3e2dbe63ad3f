"""Is the final answer right?"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

from advalign.errors import ConfigError
from advalign.functional.answers import decided, final_answer, final_formula, marked, same
from advalign.interfaces import Context, Reward
from advalign.ranges import NonNegative, OneOf
from advalign.rewards import _symbolic
from advalign.rewards._answers import check_answers
from advalign.types import Example, RolloutGroup

ENGINES = ("auto", "numeric", "math_verify")
SECONDS = 2.0  # of processor time for one symbolic comparison


@dataclass(frozen=True, kw_only=True)
class ExactAnswer(Reward):
    """r = 1[the final answer of the text equals the reference], or the example's own `verify(text)`; nan where it has neither.

    The rule-based accuracy reward of DeepSeek-R1 (arXiv:2501.12948, section 2.2.2). The final answer is what follows the last "####",
    is in the last \\boxed{}, follows the last "answer is" or "answer:", or is the last number, in this order. Numbers are compared
    as exact fractions, everything else as folded text.
    """

    engine: Annotated[str, OneOf(ENGINES, "engine")] = "auto"
    """numeric (that rule), math_verify (that rule, then the package of this name for symbolic answers) or auto (math_verify where it is
    installed)."""
    tolerance: NonNegative = 1e-6
    """Relative, between numbers."""

    def check(self, examples: Sequence[Example], path: str) -> None:
        check_answers(examples, path)

    def start(self, context: Context) -> Callable[[Sequence[RolloutGroup]], Sequence[float]]:
        installed = _symbolic.installed()
        if self.engine == "math_verify" and not installed:
            raise ConfigError("rewards.exact_answer.engine: 'math_verify' is not installed; install advalign[math] or use 'numeric'.")
        symbolic = installed and self.engine != "numeric"

        def score(groups: Sequence[RolloutGroup]) -> list[float]:
            comparisons = _symbolic.Comparisons(SECONDS) if symbolic else None
            return [grade(g.example, r.text, tolerance=self.tolerance, comparisons=comparisons) for g in groups for r in g.rollouts]

        return score


def grade(example: Example, text: str, *, tolerance: float, comparisons: _symbolic.Comparisons | None = None) -> float:
    """The score of one text, nan where the example cannot say, and where the time for symbolic `comparisons` is used up."""
    if example.verify is not None:
        return float(example.verify(text))
    if example.answer is None:
        return math.nan
    reference = marked(example.answer) or example.answer
    answer = final_answer(text, reference)
    if answer is not None and same(answer, reference, tolerance):
        return 1.0
    formula = final_formula(text)
    if comparisons is None or formula is None or decided(formula, reference):
        return 0.0
    return math.nan if comparisons.used_up else float(comparisons.equal(formula, reference) is True)


__all__ = ["ExactAnswer"]

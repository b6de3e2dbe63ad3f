"""Is the final answer right?"""

import importlib.util
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from advalign.errors import ConfigError, unknown
from advalign.protocols import Context
from advalign.types import Example, RolloutGroup

ENGINES = ("auto", "numeric", "math_verify")
# At most 40 digits and no exponent: the longest number a text can make us build is a small one.
NUMBER = re.compile(r"(?<![0-9.])-?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,40})(?:\.[0-9]{1,40}|/[0-9]{1,40})?|(?<![0-9])-?\.[0-9]{1,40}")
STATED = re.compile(rf"[\s$€£(*]*(?:[A-Za-z]+[\s$€£(*]+)*({NUMBER.pattern})[\s%°$.)*]*(?:\s[A-Za-z][^0-9]*)?")
FRACTION = re.compile(r"\\[dt]?frac\{(-?[0-9]+)\}\{([0-9]+)\}")
PHRASE = re.compile(r"\banswer(?:\s+is\b\s*:?|\s*:)\s*(?=\S)([^\n]*)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class ExactAnswer:
    """r = 1[the final answer of the text equals the reference], or the example's own `verify(text)`; nan where it has neither.

    The rule-based accuracy reward of DeepSeek-R1 (arXiv:2501.12948, section 2.2.2). The final answer is what follows the last "####",
    stands in the last \\boxed{}, follows the last "answer is" or "answer:", or is the last number, in this order. Numbers are compared
    as exact fractions to a relative `tolerance`, everything else as folded text. engine: "numeric" (that rule), "math_verify" (that
    rule, then the package of this name for symbolic answers) or "auto" ("math_verify" where it is installed).
    """

    engine: str = "auto"
    tolerance: float = 1e-6
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise unknown("rewards.exact_answer.engine", "engine", self.engine, ENGINES)

    def start(self, context: Context) -> Callable[[Sequence[RolloutGroup]], Sequence[float]]:
        installed = importlib.util.find_spec("math_verify") is not None
        if self.engine == "math_verify" and not installed:
            raise ConfigError("rewards.exact_answer.engine: 'math_verify' is not installed; install advalign[math] or use 'numeric'.")
        symbolic = installed and self.engine != "numeric"

        def score(groups: Sequence[RolloutGroup]) -> list[float]:
            return [grade(g.example, r.text, tolerance=self.tolerance, symbolic=symbolic) for g in groups for r in g.rollouts]

        return score


def grade(example: Example, text: str, *, tolerance: float, symbolic: bool) -> float:
    """The score of one text, nan where the example cannot say."""
    if example.verify is not None:
        return float(example.verify(text))
    if example.answer is None:
        return math.nan
    reference = marked(example.answer) or example.answer
    given = final_answer(text)
    if given is not None and same(given, reference, tolerance):
        return 1.0
    return float(symbolic and _math_verify(text, reference))


def final_answer(text: str) -> str | None:
    """What a text offers as its answer: the marked one, else the last number."""
    number = _last_number(text)
    return marked(text) or number


def marked(text: str) -> str | None:
    """The answer after "####", in \\boxed{} or after "answer is"; None if the text marks none."""
    if "####" in text:
        return text.rpartition("####")[2].strip().partition("\n")[0].strip() or None
    if "\\boxed{" in text:
        return _balanced(text.rpartition("\\boxed{")[2])
    phrases = PHRASE.findall(text)
    return phrases[-1].strip() if phrases else None


def same(given: str, reference: str, tolerance: float) -> bool:
    """Equal as text without case, spaces, markup and final full stop; or both numbers, equal to the relative tolerance."""
    if _fold(given) == _fold(reference):
        return True
    a, b = _number(given), _number(reference)
    return a is not None and b is not None and abs(a - b) <= Fraction(tolerance) * abs(b)


def _number(text: str) -> Fraction | None:
    """The number a short answer states, between words and units: "about $1,200 a month", "x = 5", but not "x^2" or "2 or 3"."""
    before, _, value = re.sub(r"\\(?=[$%()])", "", FRACTION.sub(r"\1/\2", text[:500])).rpartition("=")
    # "x = 5" and "2 + 3 = 5" state 5; "2x - 3y = 0" is an equation.
    if re.search("[A-Za-z]", before) and re.search("[0-9]", before):
        return None
    match = STATED.fullmatch(value)
    if match is None:
        return None
    try:
        return Fraction(match[1].replace(",", ""))
    except ZeroDivisionError:
        return None


def _last_number(text: str) -> str | None:
    found = NUMBER.findall(FRACTION.sub(r"\1/\2", text[-2000:]))
    return found[-1] if found else None


def _balanced(text: str) -> str | None:
    depth = 1
    for at, letter in enumerate(text[:2000]):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if depth == 0:
            return text[:at].strip()
    return None


def _fold(text: str) -> str:
    return re.sub(r"[\s$*`\"]+|\.$", "", re.sub(r"\\(?:text|mathrm)\{([^{}]*)\}", r"\1", text.strip())).casefold()


def _math_verify(text: str, reference: str) -> bool:
    from math_verify import parse, verify

    return bool(verify(parse(f"${reference}$"), parse(text)))


__all__ = ["ExactAnswer"]

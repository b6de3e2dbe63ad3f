"""The final answer of a text, and when two answers are the same: shared by rewards and judges."""

import re
from fractions import Fraction

# At most 40 digits and no exponent, so that no text can make us build a huge number.
NUMBER = re.compile(r"(?<![0-9.])-?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,40})(?:\.[0-9]{1,40}|/[0-9]{1,40})?|(?<![0-9])-?\.[0-9]{1,40}")
STATED = re.compile(rf"[\s$€£(*]*(?:[A-Za-z]+[\s$€£(*]+)*({NUMBER.pattern})[\s%°$.)*]*(?:\s[A-Za-z][^0-9]*)?")
FRACTION = re.compile(r"\\[dt]?frac\{(-?[0-9]+)\}\{([0-9]+)\}")
PHRASE = re.compile(r"\banswer(?:\s+is\b\s*:?|\s*:)\s*(?=\S)([^\n]*)", re.IGNORECASE)
# A dollar sign opens a formula before a letter or figure and closes one after it, and never before a figure: "$5 and $6" is money.
FORMULA = re.compile(
    r"\$\$(.{1,500}?)\$\$|(?<![\\$])\$(?=[^\s$])([^$\n]{1,500})(?<!\s)\$(?![0-9$])|\\\((.{1,500}?)\\\)|\\\[(.{1,500}?)\\\]", re.DOTALL
)


def final_answer(text: str) -> str | None:
    """The marked answer, else the last number."""
    return marked(text) or last_number(text)


def final_formula(text: str) -> str | None:
    """The marked answer, else the last formula, else the last number: what symbolic algebra compares."""
    return marked(text) or last_formula(text) or last_number(text)


def marked(text: str) -> str | None:
    """The answer after "####", in \\boxed{} or after "answer is"; None if the text marks none."""
    if "####" in text:
        return text.rpartition("####")[2].strip().partition("\n")[0].strip() or None
    if "\\boxed{" in text:
        return _balanced(text.rpartition("\\boxed{")[2])
    phrases = PHRASE.findall(text)
    return phrases[-1].strip() if phrases else None


def last_number(text: str) -> str | None:
    """The last number of the last 2000 characters."""
    numbers = NUMBER.findall(FRACTION.sub(r"\1/\2", text[-2000:]))
    return numbers[-1] if numbers else None


def last_formula(text: str) -> str | None:
    """What is between the last pair of $ $, $$ $$, \\( \\) or \\[ \\]."""
    formulas = FORMULA.findall(text[-2000:])
    return "".join(formulas[-1]).strip() if formulas else None


def same(answer: str, reference: str, tolerance: float) -> bool:
    """Equal as text without case, spaces, markup and final full stop; or both numbers, equal to the relative tolerance."""
    if fold(answer) == fold(reference):
        return True
    a, b = number(answer), number(reference)
    return a is not None and b is not None and abs(a - b) <= Fraction(tolerance) * abs(b)


def decided(answer: str, reference: str) -> bool:
    """Whether both are plain numbers, so that `same` decides. A percentage is not: 50 % may be 50 or 1/2."""
    return number(answer) is not None and number(reference) is not None and "%" not in answer + reference


def number(text: str) -> Fraction | None:
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


def fold(text: str) -> str:
    """Without case, spaces, markup and final full stop."""
    return re.sub(r"[\s$*`\"]+|\.$", "", re.sub(r"\\(?:text|mathrm)\{([^{}]*)\}", r"\1", text.strip())).casefold()


def _balanced(text: str) -> str | None:
    depth = 1
    for at, letter in enumerate(text[:2000]):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if depth == 0:
            return text[:at].strip()
    return None

"""Answers as people write them: a table judged by hand, kinds of notation, and time linear in the length of a hostile text."""

import importlib.util
import json
import time
from fractions import Fraction
from pathlib import Path

import pytest

from advalign.functional import answers, notation
from advalign.judges import ExactAnswerJudge
from advalign.rewards._scores import SENTENCE
from advalign.rewards.exact_answer import grade
from advalign.types import Example

# Golds in the manner of the math data sets, responses written and judged by hand. `unread`: why the rule differs from the verdict;
# `math_verify`: why math-verify, reading gold and response by itself, does.
ROWS = [json.loads(line) for line in Path(__file__).with_name("hand_judged_answers.jsonl").read_text("utf-8").splitlines()]


def test_the_table_is_long_and_has_both_verdicts():
    assert len(ROWS) >= 120
    assert 30 <= sum(not row["verdict"] for row in ROWS) <= len(ROWS) / 2


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['gold']} | {row['response'][:40]}")
def test_verifier_and_judge_give_the_verdict_of_the_hand_or_the_reason_is_listed(row):
    example = Example(prompt="?", answer=row["gold"])
    expected = 1 - row["verdict"] if "unread" in row else row["verdict"]
    assert grade(example, row["response"], tolerance=1e-6) == expected
    assert ExactAnswerJudge().start()([example], [row["response"]]) == [expected]


@pytest.mark.skipif(importlib.util.find_spec("math_verify") is None, reason="the optional package math-verify is not installed")
def test_every_disagreement_with_math_verify_has_a_reason():
    from math_verify import parse, verify

    for row in ROWS:
        gold, response = (parse(text, parsing_timeout=None) for text in (f"${row['gold']}$", row["response"]))
        agrees = verify(gold, response, timeout_seconds=None) == bool(row["verdict"])
        assert agrees == ("math_verify" not in row), row


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *((f"{minus}5", -5) for minus in "-\u2212\u2013\u2010\u2011\u2012\uff0d\ufe63"),
        *((f"{''.join(chr(zero + d) for d in (4, 2))}", 42) for zero in (0x660, 0x6F0, 0x966, 0x9E6, 0xE50, 0xFF10, 0x1D7CE)),
        *((f"1{mark}234{mark}567", 1234567) for mark in (",", " ", "\u00a0", "\u2009", "\u202f", "'", "’", "_", "{,}", ",\\!", "\\,")),
        ("1.234", Fraction("1.234")), ("1.234.567", 1234567), ("1.234,5", Fraction("1234.5")), ("1,234.5", Fraction("1234.5")),
        ("3,5", None), ("3 5", None), ("1,2,3", None),
        ("¾", Fraction(3, 4)), ("-¾", Fraction(-3, 4)), ("2¾", Fraction(11, 4)), ("-2 3/4", Fraction(-11, 4)),
        ("2 and 3/4", Fraction(11, 4)),
        ("\\dfrac34", Fraction(3, 4)),
        ("-\\frac{3}{4}", Fraction(-3, 4)), ("\\frac{-3}{4}", Fraction(-3, 4)), ("{3 \\over 4}", Fraction(3, 4)),
        ("14/3", Fraction(14, 3)), ("275/2", Fraction(275, 2)), ("1/0", None), ("\\frac{1}{0}", None),
        ("1.5e3", 1500), ("1.5E-3", Fraction("0.0015")), ("1.5 × 10³", 1500),
        ("1.5 \\times 10^{-3}", Fraction("0.0015")), ("2^{10}", 1024),
        ("1e999999999", None), ("9^{9999}", None), ("9" * 41, None),
        ("x = -5", -5), ("x = 5 or x = 6", None), ("2x = 5", None), ("14/3 ≈ 4.67", Fraction(14, 3)), ("x^2", None),
        ("5!", None), ("f(5)", None),
        ("-$5", -5), ("$-5", -5), ("\\$5", 5), ("5 €", 5), ("5cm", 5), ("5 cm²", 5), ("5 km/h", 5), ("5%", 5),
        ("5 million", 5_000_000), ("(5)", 5),
    ],
)  # fmt: skip
def test_a_number_by_its_notation(text, value):
    assert notation.number(text) == value


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("\\boxed{\\frac{\\sqrt{3}}{\\sqrt{2^{x}}}}", "\\frac{\\sqrt{3}}{\\sqrt{2^{x}}}"),
        ("\\boxed{1}, no: \\boxed {2}", "2"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{\\left\\{ 1 \\right.}", "\\left\\{ 1 \\right."),
        ("\\boxed 5", "5"),
        ("**Answer:** 5", "5"),
        ("**Answer**: 5", "5"),
        ("# Answer\n\n5", "5"),
        ("Final answer\n5", "5"),
        ("The answers are 2 and 3", "2 and 3"),
        ("The answer to the question is 5", "5"),
        ("#### 1. Think\n#### Answer: 5", "5"),
        ("#### 5", "5"),
        ("##### 5", None),
        ("an answered letter: 5", None),
    ],
)
def test_where_an_answer_is_marked(text, answer):
    assert answers.marked(text) == answer


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The correct option is D", "D"),
        ("Option C is right.", "C"),
        ("The best choice is: (B).", "B"),
        ("The correct option is **D**.", "D"),
        ("Options A and B are wrong, so option C", "C"),
        ("The choice is I think fine", None),
        ("Which option is A matter of taste", None),
    ],
)
def test_a_letter_without_the_word_answer(text, letter):
    assert answers.last_option(text) == letter


def test_multiplication_keeps_its_star_and_bold_loses_it():
    assert notation.fold("4 * 6") == notation.fold("4*6") == "4*6"
    assert notation.fold("**4** *apples*") == "4apples"


UNITS = (" ", "\n", "!", "!)", "a ", "9", "9,", "9 ", "-", "*", "$", "(", "{", "\\", "#", "=", "/", "^", "1/", "1,234", "answer", "answer ")
UNITS += (
    "answer is",
    "answer to ",
    "answer: ",
    "answer (",
    "####",
    "\\boxed{",
    "\\frac{",
    "\\frac1",
    "\\text{",
    "\\[",
    "**",
    "½",
    "−",
    "² ",
    "√",
)
UNITS += ("</think>",)


@pytest.mark.parametrize("start", ["", "answer is", "\\boxed{", "#### "])
def test_16000_hostile_characters_take_less_than_a_tenth_of_a_second(start):
    slow = {}
    for unit in UNITS:
        text = start + (unit * 16_000)[: 16_000 - len(start)]
        best = float("inf")
        for _ in range(3):
            begin = time.process_time()
            grade(Example(prompt="?", answer="5"), text, tolerance=1e-6)
            answers.final_formula(text)
            list(SENTENCE.finditer(text))
            best = min(best, time.process_time() - begin)
            if best < 0.1:
                break
        if best >= 0.1:
            slow[unit] = best
    assert not slow

"""Answers that were written against their checker: time in proportion to the text, bounded for all of a draw, and nothing of them run."""

import math
import os
import random
import time
from dataclasses import replace

import pytest
from helpers.context import FakeContext

from advalign import bounded, plugins
from advalign.functional import answers
from advalign.judges import ExactAnswerJudge, PrefixJudge, RefusalJudge, Rule
from advalign.rewards import ExactAnswer, Format, Math, _symbolic
from advalign.types import Example, Rollout, RolloutGroup

symbolic = pytest.mark.skipif(not _symbolic.installed(), reason="the optional package math-verify is not installed")
LENGTH = 16_000
ALL = os.environ.get("ADVALIGN_HOSTILE") == "all"  # `make test-faults`; else a selection
UNITS = (
    *" !\n\t([{<#*_`~$9aA=-+/^.,;:%√½π٣５|", "\\", "\\boxed{", "\\boxed{5}", "\\frac{1}{2}", "\\frac{", "\\frac 1", "\\text{a", "{a}",
    "$x$", "$ x", "$$", "\\(", "\\[", "####", "#### 5\n", "answer is ", "answer is 5\n", "answer", "the answer to (", "answer to is ",
    "answer: ", "**", "**a", "```\n", "9,999", "1/2/", "9^", "9**", "9e9", "1 000 ", "√(", "option A ", "option is ", "A.\n",
    "## Answer\n", "so the final ", "<answer>", "</answer>", "<answer>5</answer>", "</think>", "<think>",
    "<think></think><answer></answer>", ", and so", "because ", "wait 5 ", "5 or ", "x = 5,", "a=", "\\left(", "\\,", "\\circ", "^{2}",
    "{1\\over 2", "\\sqrt 2", "f(x)", "3 1/2 ", "1:2:", "$1,", "\u2009000", "\u00a0", "\u200b", "1.234,", "million ", "USD ", "n't ",
    "i can't ", "\\operatorname{a}", "a*", "*\\", "is ", "-> ", "will  be ", "to for in of ", "\ud800", "\x00",
)  # fmt: skip
EXAMPLE = Example(prompt="?", answer="5", meta={"response": "sure, here"})
HARD = (
    "9^{9^{9^{9}}}", "2^{2^{2^{2^{2^{2}}}}}", "99999999!", "(9999999!)!", "\\binom{10^9}{5\\cdot 10^8}",
    "\\sum_{k=1}^{10^{12}} \\sin(k^k)", "\\prod_{k=1}^{10^9} k", "\\int_0^\\infty \\frac{\\sin(x^x)}{x^x+1} dx", "(x+y+z+w)^{4000}",
    "\\sqrt{" * 60 + "2" + "}" * 60, "\\frac{1}{1+" * 60 + "1" + "}" * 60, "(" * 200 + "1" + ")" * 200,
    "\\lim_{x\\to 0} \\frac{\\sin(\\tan(x))-\\tan(\\sin(x))}{x^{70}}", "\\begin{pmatrix}" + "1&2\\\\" * 80 + "\\end{pmatrix}",
    "10^{999999999}", "1e999999", "9" * 450, "0." + "9" * 450, "x^{x^{x^{x^{x}}}}" * 20, "\\log_{2}(3^{3^{3^{3}}})",
    "\\{" + "1," * 200 + "1\\}", "\\cos(10^{10^{10}})",
)  # fmt: skip


def group(*texts, answer="1"):
    rollout = Rollout(response_ids=[1], sampler_logprobs=[0.0], text="", finished=True)
    return [
        RolloutGroup(prompt_ids=[0], example=Example(prompt="?", answer=answer), rollouts=[replace(rollout, text=text) for text in texts])
    ]


@pytest.mark.parametrize("before", ["", "answer is ", "\\boxed{", "5"])
def test_checking_takes_time_in_proportion_to_the_text(before):
    """16,000 characters of every kind in a fraction of a second (quadratic patterns took 4.2 and 7.3 CPU-seconds)."""
    matches = Format().start(FakeContext())
    judges = [judge.start() for judge in (ExactAnswerJudge(), RefusalJudge(), PrefixJudge(), Rule(must=("a b",), must_not=("c",)))]
    for unit in UNITS if ALL else UNITS[len(before) % 3 :: 3]:
        text = before + unit * (LENGTH // len(unit)) + " x"
        start = time.process_time()
        answers.final_formula(text)
        answers.final_answer(text, "C")
        answers.same(text, "5", 1e-6)
        answers.decided("5", text)
        for judge in judges:
            judge([EXAMPLE], [text])
        matches(group(text))
        assert time.process_time() - start < 1, unit


@pytest.mark.parametrize("task", ["arithmetic", "constraints", "general_points"])
def test_the_verifiers_of_tasks_take_time_in_proportion_too(task):
    (example,) = plugins.resolve("tasks", task, "task")().examples("train", 1, random.Random(0))
    for unit in (*UNITS, "1+", "(1", "Cat ", "a.", "= 24"):
        start = time.process_time()
        assert example.verify(unit * (LENGTH // len(unit)) + " x") == 0.0
        assert time.process_time() - start < 0.5, unit


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("\\boxed{" * 100_000, 0.0),
        ("\\boxed{" * 100_000 + "5" + "}" * 100_000, 1.0),  # the last box is the innermost one
        ("9" * 100_000, 0.0),
        ("#### " + "9" * 5_000, 0.0),
        ("5e999999", 0.0),
    ],
)
def test_nesting_and_numbers_of_any_size_are_answers_like_others(text, score):
    assert ExactAnswerJudge().start()([EXAMPLE], [text]) == [score]
    assert ExactAnswer(engine="numeric").start(FakeContext())(group(text, answer="5")) == [score]


@symbolic
def test_512_hostile_answers_are_bounded_together(monkeypatch):
    """Each comparison ends; when the time of the draw is used up, what is left abstains; the next draw is judged as ever."""
    monkeypatch.setattr(_symbolic, "TOGETHER", 20.0 if ALL else 1.5)
    texts = [f"\\boxed{{{HARD[i % len(HARD)]} + {i // len(HARD)}}}" for i in range(510)]
    score = Math(seconds=0.4).start(FakeContext())
    spent = os.times()
    scores = score(group("\\boxed{\\cos(0)}", *texts, "\\boxed{\\cos(0)}"))
    own = os.times()
    assert scores[0] == 1.0
    assert all(s == 0.0 or math.isnan(s) for s in scores[1:-1])
    assert any(map(math.isnan, scores))
    assert own.user + own.system - spent.user - spent.system < 20  # of this process: reading the answers
    assert score(group("\\boxed{\\cos(0)}", "\\boxed{2}")) == [1.0, 0.0]


@symbolic
@pytest.mark.parametrize("hard", HARD if ALL else HARD[::7])
def test_each_of_them_ends_and_is_wrong(hard):
    comparisons = _symbolic.Comparisons(0.4)
    assert comparisons.equal(hard, "x+17") is False
    assert comparisons._allowance.left > _symbolic.TOGETHER - 1.5


def test_512_texts_against_a_bad_pattern_are_bounded_together(monkeypatch):
    """`rule` cannot tell and `format` is not met; after the time of one call, nothing more is matched."""
    monkeypatch.setattr(bounded, "PATTERN_SECONDS", 0.2)
    for module in ("advalign.judges.rule", "advalign.rewards.format"):
        monkeypatch.setattr(f"{module}.PATTERNS_SECONDS", 0.5)
    texts = ["a" * 60 + "b"] * 512
    for must in ({"must": ("(a+)+$",)}, {"must_not": ("(a+)+$",)}):
        scores = Rule(regex=True, **must).start()([EXAMPLE] * 512, texts)
        assert all(map(math.isnan, scores))
    # What is certain without the pattern stays certain.
    assert Rule(regex=True, must=("(a+)+$", "zebra")).start()([EXAMPLE], texts[:1]) == [0.0]
    assert Rule(regex=True, must_not=("(a+)+$", "b")).start()([EXAMPLE], texts[:1]) == [0.0]
    scores = Format(pattern="(a+)+").start(FakeContext())(group(*texts))
    assert scores[0] == 0.0
    assert math.isnan(scores[-1])
    assert Format(pattern="(a+)+").start(FakeContext())(group("aaa", "aab")) == [1.0, 0.0]


def test_an_attack_that_a_game_s_rule_cannot_be_matched_with_is_not_allowed(monkeypatch):
    from advalign.sources._game import Injection

    monkeypatch.setattr(bounded, "PATTERN_SECONDS", 0.2)
    rule = Injection(allowed="(a+)+")
    assert [rule.valid(attack, "p") for attack in ("aaa", "aab", "a" * 60 + "b")] == [True, False, False]

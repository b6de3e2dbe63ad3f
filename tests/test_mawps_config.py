"""The word problems: which problems are kept, how they are split, that the reward reads what the demonstrations say."""

import json
import random
import sys
from pathlib import Path

import pytest

from advalign import config, data
from advalign.rewards.exact_answer import grade

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from prepare_mawps import LIMIT, Problem, calculate, prepare, problem, redrawn, side, solutions, sums  # noqa: E402

ROWS = [
    ("Joan found 70 seashells . She has 27 seashell . How many did she give to Sam ?", 43.0),
    ("Joan found 70 seashells . She has 27 seashell . How many in all ?", 97.0),
    ("Ann has 3 boxes of 12 eggs and 5 cats . How many eggs ?", 36.0),
    ("Ann shares 36 eggs among 3 friends . How many each ?", 12.0),
]


def test_solutions_by_hand():
    assert solutions([70, 27], 43) == [(0, "-", 1)]
    assert solutions([3, 36], 12) == [(1, "/", 0)]
    assert solutions([2, 2], 4) == [(0, "+", 1), (0, "*", 1)]  # 2 + 2 = 2 * 2: nobody can say which was meant
    assert solutions([5, 0], 9) == []  # and a zero is never divided by


@pytest.mark.parametrize(
    ("question", "answer", "why"),
    [
        ("He paid 2.50 and 3 dollars .", 5.5, "decimals"),
        ("70 and 50 .", 120.0, "too large"),
        ("A dozen and 3 .", 15.0, "fewer than two numbers"),
        ("2 and 2 .", 4.0, "several operations fit"),
        ("2 and 5 and 9 .", 16.0, "no single operation fits"),
    ],
)
def test_reasons(question, answer, why):
    assert problem(question, answer) == why


def test_a_problem_is_told_again_with_other_numbers():
    told = problem("Joan's mother found 70 shells, gave some; 27 are left.", 43.0)
    assert isinstance(told, Problem)
    assert told.question == "joan ' s mother found 70 shells , gave some ; 27 are left ."
    assert told.response == "70 - 27 = 43"
    rng = random.Random(0)
    for again in (redrawn(told, rng) for _ in range(300)):
        a, b = again.numbers
        assert again.question == f"joan ' s mother found {a} shells , gave some ; {b} are left ."
        assert 1 <= again.answer == a - b <= LIMIT


def test_sums_are_right():
    for row in sums(400, random.Random(0)):
        a, operation, b, _ = str(row["question"]).split()
        assert 1 <= int(row["response"]) == row["answer"] == calculate(int(a), operation, int(b)) <= LIMIT
        assert operation != "/" or int(a) % int(b) == 0


def test_problems_that_differ_in_numbers_and_names_only_stay_together():
    texts = [f"{name} had {n} cards and lost {n // 2}. How many cards are left?" for name in ("Ann", "Bob") for n in range(2, 60)]
    assert len({side(t) for t in texts}) == 1
    assert {side(f"A story about {word} and 3") for word in "abcdefghijklmnopqrstuvwxyz"} == {"test", "problems", "demos"}


@pytest.fixture
def folder(tmp_path):
    source = tmp_path / "math_mawps"
    source.mkdir()
    for number, name in enumerate(("singleop", "addsub")):
        rows = [{"question": q, "answer": a} for q, a in ROWS[number::2]]
        (source / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return source


def test_prepare_keeps_every_problem_once_and_the_reward_agrees(folder, tmp_path):
    counts = prepare(folder, tmp_path / "out", copies=5, drills=50)
    assert counts["test"] + counts["problems"] + counts["demos"] == len(ROWS)
    assert counts["demonstrations"] == 6 * counts["demos"]
    files = [tmp_path / "out" / f"{name}.jsonl" for name in ("test", "demos", "drill")]
    for example in (e for file in files if file.stat().st_size for e in data.examples(str(file))):
        assert grade(example, example.meta["response"], tolerance=1e-6) == 1
        assert grade(example, example.meta["response"] + "1", tolerance=1e-6) == 0
    problems = data.examples(str(tmp_path / "out" / "problems.jsonl"))
    assert not any("response" in e.meta for e in problems)


def test_the_configuration_is_the_sum_it_says():
    described = config.read(ROOT / "configs/mix_mawps.yaml")
    stages = config.trainer(described).formula().split("[mix")
    assert "1 dapo(problems) + 0.5 sft(demos | pgd) + 0.02 kl(problems to reference)" in stages[1]
    # The checkpoint of the benchmark is the end of the SFT stage, and the rate has come down by then.
    warm_up = sum(stage["steps"] for stage in described["stages"][:-1])
    assert described["schedules"]["learners.policy.learning_rate"]["steps"] == warm_up == described["args"]["save_steps"]

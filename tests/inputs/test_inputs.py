"""Bad input is answered in one sentence that names its path, what was given and what is allowed, with exit code 2.

`make test-inputs` prints the whole table; `make test` takes some rows of every area.
"""

from __future__ import annotations

from collections import Counter

import pytest
from helpers.processes import ran
from inputs import table
from inputs.row import LONGEST, Row, command


def test_rows_of_every_area_are_answered_in_a_sentence() -> None:
    """In a process of its own, since the tests' run-time checks of types answer before the library does."""
    code, printed = ran("inputs.table", "--every", "70", "--wrong")
    assert code == 0, printed


def test_no_row_stands_twice_and_there_are_enough() -> None:
    rows = Counter((area, row.given) for area, rows in table.TABLES.items() for row in rows())
    assert rows.total() >= 700
    assert [row for row, times in rows.items() if times > 1] == []


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (Row(given="", says=("a",), run=lambda: None), "accepted in silence"),
        (Row(given="", says=("a",), run=lambda: 1 / 0), "ZeroDivisionError"),
        (Row(given="", says=("a",), run=lambda: exec("raise SystemExit(1)")), "exit code 1"),
        (command("list", "objectives", says="x"), "accepted in silence"),
        (command("list", "objectivs", says="sources of water"), "does not say sources of water"),
    ],
)
def test_the_judge_of_rows_says_what_is_wrong(row: Row, problem: str) -> None:
    assert problem in row.answer().problem


def test_long_and_broken_answers_are_wrong() -> None:
    row = Row(given="", says=("a",), run=lambda: None)
    assert row.problem(2, "a" * (LONGEST + 1)) == f"{LONGEST + 1} characters"
    assert row.problem(2, "a\nb") == "2 lines"
    assert row.problem(2, "Traceback (most recent call last):\n  x") == "a traceback:   x"
    assert row.problem(2, "a") == ""

"""Whether two expressions are equal as mathematics, decided by the package math-verify in a process of its own (`advalign/bounded.py`).

Evaluates no text: expressions are read as LaTeX by a grammar, never by Python.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from collections.abc import Iterator
from typing import Any

from advalign.bounded import Allowance, worker

TOGETHER = 60.0
"""Seconds of processor time for all comparisons of one draw."""
REMEMBERED = 16_384


def installed() -> bool:
    return importlib.util.find_spec("math_verify") is not None


class Comparisons:
    """The comparisons of one draw, each in at most `seconds`; equal questions are asked once."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self._allowance, self._asked = seconds, Allowance(TOGETHER), set[tuple[str, str]]()

    @property
    def used_up(self) -> bool:
        """Whether the time of the draw is used up: what is not compared by then is not known."""
        return self._allowance.used_up

    def equal(self, answer: str, reference: str) -> bool | None:
        """Is `answer` equal to `reference`? None where the reference is not an expression; False where the comparison took too long."""
        outcome, spent = _compare(answer, reference, self.seconds, os.getpid())
        # What a draw asks for the first time costs it what it cost, also where an earlier draw asked: a resumed run counts alike.
        self._allowance.left -= 0.0 if (answer, reference) in self._asked else spent
        self._asked.add((answer, reference))
        return outcome


@functools.lru_cache(REMEMBERED)
def _compare(answer: str, reference: str, seconds: float, process: int) -> tuple[bool | None, float]:
    replies = worker("advalign.rewards._symbolic.replies", seconds, process).ask(answer, reference)
    # Two replies, so that it is known which of the two took too long: is the reference an expression, and are they equal?
    readable, equal = [*replies.values, False, False][:2]
    return (equal if readable else None), replies.seconds


def prepare() -> None:
    """In the process, before any limit: the first comparison loads most of the algebra."""
    logging.disable(logging.WARNING)
    list(replies("(x-1)(x+1)", "x^2-1"))


def replies(answer: str, reference: str) -> Iterator[bool]:
    """In the process: is the reference an expression? If so: are they equal?"""
    from math_verify import LatexExtractionConfig, parse, verify

    def read(text: str) -> list[Any]:
        # Not the package's own timeouts: they need the main thread, count waiting time, and do not reach into long products.
        return parse(f"${text}$", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None)

    expected = read(reference)
    yield bool(expected)
    if expected:
        yield bool(verify(expected, read(answer), timeout_seconds=None))

"""Whether two expressions are equal as mathematics, decided by the package math-verify in a process of its own.

Symbolic algebra has no bound on time: 9^{9^{9^9}} stays for hours inside one product of integers, where no signal handler of
Python runs, and handlers are for the main thread alone. So the algebra runs in a worker, which the operating system ends when one
comparison has used `seconds` of its PROCESSOR time (a busy machine changes no score). Works from any thread; evaluates no text:
expressions are read as LaTeX by a grammar, never by Python.
"""

import contextlib
import functools
import importlib.util
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

from advalign.errors import RewardError

COMMAND = "from advalign.rewards import _symbolic; _symbolic.serve({seconds!r})"


def installed() -> bool:
    return importlib.util.find_spec("math_verify") is not None


def equal(answer: str, reference: str, seconds: float) -> bool | None:
    """Is `answer` equal to `reference`? None where the reference is not an expression; False where the comparison took too long."""
    return _worker(seconds, os.getpid()).ask(answer, reference)


@functools.cache
def _worker(seconds: float, process: int) -> "_Worker":
    """One per limit; a process that was forked off starts its own."""
    return _Worker(seconds)


class _Worker:
    def __init__(self, seconds: float) -> None:
        self.seconds, self.lock = seconds, threading.Lock()
        self.process: subprocess.Popen[str] | None = None

    def ask(self, answer: str, reference: str) -> bool | None:
        with self.lock:
            process = self._started()
            try:
                print(json.dumps([answer, reference]), file=process.stdin, flush=True)
                # Two replies, so that it is known which of the two took too long: is the reference an expression, and are they equal?
                return None if self._read(process) is not True else self._read(process) is True
            except BaseException:
                # An interrupt must not leave a reply behind, to be taken for that of the next question.
                process.kill()
                self._close(process)
                raise

    def _started(self) -> subprocess.Popen[str]:
        if self.process is None or self.process.poll() is not None:
            environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
            # In a session of its own: an interrupt from the keyboard is for the parent. It ends when its input does, so it never outlives
            # the parent.
            self.process = subprocess.Popen(
                [sys.executable, "-c", COMMAND.format(seconds=self.seconds)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True,
            )  # fmt: skip
            if self._read(self.process) != "ready":
                raise RewardError("rewards: the process that compares mathematics did not start; see its output above.")
        return self.process

    def _read(self, process: subprocess.Popen[str]) -> Any:
        """One reply; None where the process was ended."""
        assert process.stdout is not None
        line = process.stdout.readline()
        if line:
            return json.loads(line)
        self._close(process)
        return None

    def _close(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        process.wait()
        process.stdout.close()
        with contextlib.suppress(BrokenPipeError):  # a question that was never read
            process.stdin.close()


def serve(seconds: float) -> None:
    """The worker: reads pairs and writes replies, one JSON value per line."""
    out, sys.stdout = sys.stdout, sys.stderr
    logging.disable(logging.WARNING)
    # The first comparison loads most of the algebra, before any limit applies.
    list(_replies("(x-1)(x+1)", "x^2-1"))
    print(json.dumps("ready"), file=out, flush=True)
    for line in sys.stdin:
        replies = _replies(*json.loads(line))
        for _ in range(2):
            _limit(seconds)
            reply = next(replies, None)
            _limit(0)
            if reply is not None:
                print(json.dumps(reply), file=out, flush=True)


def _replies(answer: str, reference: str) -> Iterator[bool]:
    """Is the reference an expression? If so: are they equal?"""
    from math_verify import LatexExtractionConfig, parse, verify

    def read(text: str) -> list[Any]:
        # Not the package's own timeouts: they need the main thread, count waiting time, and do not reach into long products.
        return parse(f"${text}$", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None)

    expected = read(reference)
    yield bool(expected)
    if expected:
        yield bool(verify(expected, read(answer), timeout_seconds=None))


def _limit(seconds: float) -> None:
    """The system ends this process after so much processor time; 0 calls it off. (Windows has no such timer.)"""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)

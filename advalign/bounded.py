"""A function of ours on a text of others, in a process of its own, which the system ends after a limit of processor time.

Symbolic algebra and regular expressions have no bound on time, and neither a signal handler nor a thread ends them: 9^{9^{9^9}} stays for
hours inside one product of integers, `(a+)+$` inside one match. Processor time is counted, so a busy machine changes no outcome. The
process may write no file, open no connection and start no program, has 4 GiB of memory, and works from any thread.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from advalign.errors import AdvalignError

COMMAND = "import {module}; from advalign import bounded; bounded.serve({module}.{name}, {seconds!r})"
MEMORY = 4 << 30
"""Bytes of address space of the process."""
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.remove", "os.rename", "os.mkdir", "subprocess.", "socket.", "shutil.")
"""Audit events, by how they begin, that end the process."""


@dataclass(frozen=True, kw_only=True)
class Replies:
    """What a function said about one question."""

    values: list[Any]
    """What it yielded, in order."""
    ended: bool
    """Whether it was ended, or failed, before it had yielded all."""
    seconds: float
    """Its processor time."""


class Allowance:
    """Processor time for many questions together; a question that was begun is finished."""

    def __init__(self, seconds: float) -> None:
        self.left = seconds

    @property
    def used_up(self) -> bool:
        return self.left <= 0


class Worker:
    """Asks `function` (a dotted name; it yields what JSON can hold), each reply in at most `seconds` of processor time."""

    def __init__(self, function: str, seconds: float) -> None:
        self.function, self.seconds, self._lock = function, seconds, threading.Lock()
        self.process: subprocess.Popen[str] | None = None

    def ask(self, *question: Any) -> Replies:
        """The replies to one question."""
        with self._lock:
            process = self._started()
            try:
                print(json.dumps(question), file=process.stdin, flush=True)
                return self._replies(process)
            except BaseException:
                # An interrupt must not leave a reply behind, to be taken for that of the next question.
                process.kill()
                self._close(process)
                raise

    def _replies(self, process: subprocess.Popen[str]) -> Replies:
        values, seconds = [], 0.0
        while (line := self._read(process)) is not None and "reply" in line:
            values.append(line["reply"])
            seconds += line["seconds"]
        ended = line is None or "done" not in line
        return Replies(values=values, ended=ended, seconds=seconds + (self.seconds if ended else 0.0))

    def _started(self) -> subprocess.Popen[str]:
        if self.process is None or self.process.poll() is not None:
            environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
            # In a session of its own: an interrupt from the keyboard is for the parent. It ends when its input does, so it never outlives
            # the parent.
            self.process = subprocess.Popen(
                [sys.executable, "-c", command(self.function, self.seconds)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True,
            )  # fmt: skip
            if self._read(self.process) != {"ready": True}:
                raise AdvalignError(f"the process of {self.function} did not start; see its output above.")
        return self.process

    def _read(self, process: subprocess.Popen[str]) -> Any:
        """One line; None where the process was ended."""
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


def command(function: str, seconds: float) -> str:
    """The program of the process."""
    module, _, name = function.rpartition(".")
    return COMMAND.format(module=module, name=name, seconds=seconds)


@functools.cache
def worker(function: str, seconds: float, process: int) -> Worker:
    """One per function and limit; `process`: the asking one, so that one that was forked off starts its own."""
    return Worker(function, seconds)


# ------------------------------------------------------------------------------------------------------- in the process


def serve(replies: Callable[..., Iterable[Any]], seconds: float) -> None:
    """Reads questions and writes replies, one JSON value per line. A copy of the process answers, and another one where it was ended, so
    that what the function loads is loaded once."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the function prints is not a reply
    prepare = vars(sys.modules[replies.__module__]).get("prepare")
    if prepare is not None:
        prepare()
    _say(out, {"ready": True})
    if not hasattr(os, "fork"):  # Windows, which has no timers of processor time either
        _answer(out, replies, seconds)
        return
    while True:
        child = os.fork()
        if child == 0:
            _confine()
            _answer(out, replies, seconds)
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            return
        _say(out, {"ended": True})


def _answer(out: Any, replies: Callable[..., Iterable[Any]], seconds: float) -> None:
    with open(0, "rb", buffering=0, closefd=False) as questions:  # unbuffered: the next copy reads on where this one was ended
        for line in iter(questions.readline, b""):
            try:
                for reply, spent in _timed(replies(*json.loads(line)), seconds):
                    _say(out, {"reply": reply, "seconds": spent})
            except (Exception, RecursionError):
                _say(out, {"ended": True})
            else:
                _say(out, {"done": True})


def _timed(replies: Iterable[Any], seconds: float) -> Iterator[tuple[Any, float]]:
    """Each reply and its processor time."""
    iterator, missing = iter(replies), object()
    while True:
        start = time.process_time()
        _limit(seconds)
        reply = next(iterator, missing)
        _limit(0)
        if reply is missing:
            return
        yield reply, time.process_time() - start


def _limit(seconds: float) -> None:
    """The system ends this process after so much processor time; 0 calls it off."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _confine() -> None:
    """Memory, files, programs and connections of a copy."""
    import resource

    for limit, most in ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        with contextlib.suppress(ValueError, OSError):  # a system that does not know it, or allows less
            resource.setrlimit(limit, (most, resource.getrlimit(limit)[1]))
    sys.addaudithook(_forbid)


def _forbid(event: str, arguments: tuple[Any, ...]) -> None:
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if writes or event.startswith(FORBIDDEN):
        os._exit(3)


def _say(out: Any, value: Any) -> None:
    print(json.dumps(value), file=out, flush=True)


# ------------------------------------------------------------------------------------------------------ regular expressions

PATTERN_SECONDS = 1.0
"""Processor time of one match of a pattern that a configuration gives."""
PATTERNS_SECONDS = 30.0
"""Of all matches of one call."""


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """A regular expression of a configuration, which may take exponential time on a text that was written for it."""

    pattern: str
    """In Python's syntax."""
    flags: int = 0
    """Of the package `re`."""

    def search(self, text: str, allowance: Allowance) -> bool | None:
        """Does it match somewhere? None where that took too long, or the allowance is used up."""
        return self._ask("search", text, allowance)

    def fullmatch(self, text: str, allowance: Allowance) -> bool | None:
        """Does it match the whole text?"""
        return self._ask("fullmatch", text, allowance)

    def _ask(self, how: str, text: str, allowance: Allowance) -> bool | None:
        if allowance.used_up:
            return None
        replies = worker("advalign.bounded.matches", PATTERN_SECONDS, os.getpid()).ask(self.pattern, int(self.flags), how, text)
        allowance.left -= replies.seconds
        return None if replies.ended else replies.values[0]


def matches(pattern: str, flags: int, how: str, text: str) -> Iterator[bool]:
    """In the process: does it match?"""
    compiled = re.compile(pattern, flags)
    yield (compiled.search if how == "search" else compiled.fullmatch)(text) is not None


__all__ = ["Allowance", "Pattern", "Replies", "Worker", "matches", "serve", "worker"]

"""One bad input: what is run, and what the answer must be."""

from __future__ import annotations

import contextlib
import io
import re
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

from advalign import cli
from advalign.errors import AdvalignError, ConfigError

LONGEST = 420
"""Characters of an answer."""
SECONDS = 20
"""After which an answer is too late."""
USER = 2
"""The exit code of a mistake of the user."""


PROGRESS = re.compile(r"\d+/\d+ -?\d+:\d\d:\d\d|━|\d+ examples/s")
"""Lines of a progress bar."""


class TooLateError(BaseException):
    """The time of an answer is over. Nothing that is tested here catches it."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came back."""

    code: int
    """The exit code; 2 for an exception of the package in Python, 1 for another one, 0 for none."""
    text: str
    """The sentence."""
    problem: str = ""
    """Why it is wrong; empty: it is right."""
    seconds: float = 0.0
    """How long it took."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A bad input and the sentence that answers it."""

    given: str
    """The input, as the table shows it."""
    says: tuple[str, ...]
    """What the sentence must hold: the path, what was given, what is allowed. A part that begins with `~` is a regular expression."""
    run: Callable[[], Any]
    """What is run, in a folder of its own."""
    files: Mapping[str, str | bytes] = field(default_factory=dict)
    """Files written before, by name."""
    error: type[BaseException] = SystemExit
    """What it raises; SystemExit for a command."""
    code: int = USER
    """The exit code of a command."""
    before: Callable[[], Any] | None = None
    """Done before, after the files are written."""

    def answer(self) -> Answer:
        """Runs it and judges what comes back."""
        for name, content in self.files.items():
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
        if self.before is not None:
            self.before()
        printed, errors, start = io.StringIO(), io.StringIO(), time.monotonic()
        code, text, crash = 0, "", ""
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors), _limit(SECONDS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                self.run()
            except SystemExit as left:
                code, text = (left.code if isinstance(left.code, int) else int(left.code is not None)), errors.getvalue()
            except AdvalignError as error:
                code, text = USER, f"{type(error).__name__}: {error}"
                crash = "" if isinstance(error, self.error) else f"{type(error).__name__}, not {self.error.__name__}"
            except TooLateError:
                crash = f"no answer in {SECONDS} s"
            except BaseException as error:
                code, text = 1, f"{type(error).__name__}: {error}"
                place = traceback.extract_tb(error.__traceback__)[-1]
                crash = f"{type(error).__name__} at {'/'.join(Path(place.filename).parts[-2:])}:{place.lineno}"
        text = "\n".join(line for line in text.splitlines() if not PROGRESS.search(line)).strip()
        return Answer(code=code, text=text, problem=crash or self.problem(code, text), seconds=time.monotonic() - start)

    def problem(self, code: int, text: str) -> str:
        """Why an answer is wrong; empty: it is right."""
        if "Traceback (most recent call last)" in text:
            return f"a traceback: {text.splitlines()[-1][:120]}"
        if code != self.code:
            return "accepted in silence" if code == 0 else f"exit code {code}, not {self.code}"
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) != 1:
            return f"{len(lines)} lines"
        if len(text) > LONGEST:
            return f"{len(text)} characters"
        missing = [part for part in self.says if not _holds(text, part)]
        return f"does not say {', '.join(missing)}" if missing else ""


def command(*arguments: str, says: Sequence[str] | str = (), files: Mapping[str, str | bytes] | None = None, **fields: Any) -> Row:
    """A row of the command line: `command("train", "run.yaml", says="...")`."""
    shown = fields.pop("shown", None)
    line = " ".join(argument if argument and " " not in argument else repr(argument) for argument in arguments)
    texts = [f"{name}: {_excerpt(content)}" for name, content in (files or {}).items()]
    given = shown or f"{line}" + (f" ({'; '.join(texts)})" if texts else "")
    return Row(given=given, says=_parts(says), run=lambda: _main(arguments), files=files or {}, **fields)


def call(function: Callable[..., Any], *, says: Sequence[str] | str, shown: str, **options: Any) -> Row:
    """A row of Python: `call(PGD, radius=nan, says="radius", shown="PGD(radius=nan)")`."""
    return Row(given=shown, says=_parts(says), run=lambda: function(**options), error=ConfigError)


def prepared(row: Row, prepare: Callable[[], Any]) -> Row:
    """The row with something to do before its command, which the answer is not about."""
    return replace(row, before=prepare)


def _main(arguments: Sequence[str]) -> None:
    with mock.patch.object(sys, "argv", ["advalign", *map(str, arguments)]):
        cli.main()


def _parts(says: Sequence[str] | str) -> tuple[str, ...]:
    return (says,) if isinstance(says, str) else tuple(says)


def _holds(text: str, part: str) -> bool:
    return re.search(part[1:], text) is not None if part.startswith("~") else part in text


def _excerpt(value: Any, longest: int = 110) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


@contextlib.contextmanager
def _limit(seconds: int) -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise TooLateError

    previous = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)

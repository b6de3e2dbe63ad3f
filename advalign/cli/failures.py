"""The one place where a command ends: what went wrong as one sentence, and the exit code.

    0     done                                  1     a gate that failed (--fail-below), or a fault of ours
    2     a mistake in what was given           128+n  ended by signal n: 130 Ctrl-C, 143 SIGTERM, 141 a closed pipe

`--debug` adds the traceback, with the errors that led to it.
"""

from __future__ import annotations

import difflib
import io
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import typer

from advalign import errors
from advalign.cli.console import complain
from advalign.errors import AdvalignError, Interrupted
from advalign.functional.escaping import terminal

MISTAKE, FAULT = 2, 1
DEBUG = "--debug"
PACKAGE = Path(__file__).parents[1]
LENGTH = 500  # characters of the text of an error that is not ours
UsageError: Any = typer.BadParameter.__base__  # typer names it itself only in some versions
OUT_OF_MEMORY = ("OutOfMemoryError", "can't allocate memory", "CUDA out of memory")


def run(app: Callable[..., Any], arguments: Sequence[str]) -> int:
    """Runs a command line; returns its exit code, after the sentence about what went wrong."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    debug = DEBUG in arguments[:end]
    rest = [argument for argument in arguments[:end] if argument != DEBUG] + list(arguments[end:])
    try:
        with sigterm_raises(), streams_take_text():
            code = app(args=rest, prog_name="advalign", standalone_mode=False)
            return _interrupted() if code == 128 + signal.SIGINT else int(code or 0)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 0 if error.code is None else FAULT
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except BaseException as error:
        if debug:
            sys.stderr.write(terminal("".join(traceback.format_exception(error))))
        sentence, code = explain(error)
        complain(sentence)
        return code


@contextmanager
def streams_take_text() -> Iterator[None]:
    """What a terminal's encoding lacks is printed as its code, and what a warning says of data or a model is shown, not obeyed."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    before = warnings.formatwarning

    def shown(*arguments: Any, **options: Any) -> str:
        return terminal(before(*arguments, **options))

    warnings.formatwarning = shown
    try:
        yield
    finally:
        warnings.formatwarning = before


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """SIGTERM ends what is running like an error, so that files are closed and temporary ones removed."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Interrupted("ended by SIGTERM.", number)

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread, which alone receives signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def explain(error: BaseException) -> tuple[str, int]:
    """(one sentence, exit code) of an error that ended a command."""
    if isinstance(error, AdvalignError):
        name = next(cls.__name__ for cls in type(error).__mro__ if cls.__module__ == errors.__name__)
        return f"{name}: {_one_line(error)}", error.exit_code
    if isinstance(error, UsageError):
        return _usage(error), MISTAKE
    if isinstance(error, MemoryError) or any(name in f"{type(error).__name__}: {error}" for name in OUT_OF_MEMORY):
        hint = "smaller rows per pass (args.token_budget, --workers 1), a smaller model, or options: {gradient_checkpointing: true}"
        return f"out of memory ({_one_line(error)}) {_place(error)}; try {hint}.", MISTAKE
    if isinstance(error, OSError) and error.strerror:
        file = errors.excerpt(error.filename2 or error.filename or "")
        return f"{file or 'a file'}: {error.strerror[0].lower()}{error.strerror[1:]} {_place(error)}.", MISTAKE
    kind = type(error).__name__
    return f"a fault in the library or in a plugin: {kind}: {_one_line(error)} {_place(error)}; {DEBUG} shows the traceback.", FAULT


def _usage(error: Any) -> str:
    """A mistake of the command line itself, with the nearest option."""
    command = error.ctx.command_path if error.ctx is not None else "advalign"
    if type(error).__name__ == "NoArgsIsHelpError":
        return f"{command}: no command given; see {command} --help."
    text = _one_line(error.format_message()).rstrip(".")
    name = error.option_name if type(error).__name__ == "NoSuchOption" else None
    if name is not None and error.ctx is not None:
        options = [option for parameter in error.ctx.command.params for option in parameter.opts if option.startswith("--")]
        nearest = difflib.get_close_matches(name, options, n=1)
        text = f"no option '{name}'" + (f"; did you mean {nearest[0]}?" if nearest else "")
    return f"{command}: {text[0].lower()}{text[1:]}{' S' if text.endswith('?') else '; s'}ee {command} --help."


def _place(error: BaseException) -> str:
    """The deepest place within the package, and the file that raised where that is another: `in training/step.py, line 12 (train)`."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if Path(frame.filename).is_relative_to(PACKAGE) and Path(frame.filename) != Path(__file__)]
    if not frames:
        return ""
    frame = inside[-1] if inside else frames[-1]
    name = str(Path(frame.filename).relative_to(PACKAGE.parent)) if inside else frame.filename
    last = frames[-1]
    called = f", raised in {last.filename}, line {last.lineno}" if inside and last is not frame and not _is_installed(last.filename) else ""
    return f"in {name}, line {frame.lineno} ({frame.name}){called}"


def _is_installed(file: str) -> bool:
    return file.startswith((sys.prefix, sys.base_prefix, "<")) or "site-packages" in file


def _one_line(error: object) -> str:
    """The text of an error without line breaks, at most LENGTH characters of it where it is not ours."""
    text = " ".join(str(error).split())
    return text if isinstance(error, AdvalignError) or len(text) <= LENGTH else f"{text[: LENGTH - 1]}…"


def _interrupted() -> int:
    complain("interrupted (Ctrl-C).")
    return 128 + int(signal.SIGINT)


def leave(code: int) -> None:
    """Ends the process; what is still in the buffers of a closed pipe is dropped without a word."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + int(signal.SIGPIPE)
    sys.exit(code)

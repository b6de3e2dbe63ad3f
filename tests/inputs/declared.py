"""The rows that are written down as texts: `rows/*.txt`, one bad input and the parts of its answer per line, `input  =>  part · part`."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from inputs import calls
from inputs.base import DROPPED, RUN, yaml_key
from inputs.fields import run_row, suite_row
from inputs.row import Row, command

FOLDER = Path(__file__).with_name("rows")
STANDS_FOR = {"<300 x>": "x" * 300, "<esc>": "\x1b", "<nul>": "\x00"}
"""What cannot be written, or read, in a line."""
OBJECTS = {"<left out>": DROPPED, "<policy>": RUN["learners"]["policy"]}


def lines(file: str) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """(area, input, parts of the answer) of the rows of a file, whose areas begin with `##`."""
    area = ""
    for line in (FOLDER / f"{file}.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            area = line.removeprefix("## ")
        elif line.strip() and not line.startswith("# "):
            written, _, said = line.partition("  =>")
            for name, text in STANDS_FOR.items():
                written = written.replace(name, text)
            yield area, written, tuple(part for part in said.strip().split(" · ") if part)


def changes(written: str) -> dict[Any, Any]:
    """`path: value` or `{path: value, path: value}` as changes of a tree."""
    values = yaml.safe_load(written)
    return {yaml_key(path): OBJECTS.get(value, value) if isinstance(value, str) else value for path, value in values.items()}


def _run(written: str, says: tuple[str, ...]) -> Row:
    return run_row(changes(written), *says, shown=written)


def _section(written: str, says: tuple[str, ...]) -> Row:
    return run_row({**changes(written), "args": {"max_steps": 1, "output_dir": "out"}}, *says, shown=written)


def _suite(written: str, says: tuple[str, ...]) -> Row:
    return suite_row(changes(written), *says, shown=written)


def _override(written: str, says: tuple[str, ...]) -> Row:
    verb = "show" if len(written) % 3 == 0 else "train"
    first = () if written.startswith("args.max") else ("args.max_steps=1",)
    return command(verb, "run.yaml", *first, written, says=says, shown=f"{verb} run.yaml {written}")


def _command(written: str, says: tuple[str, ...]) -> Row:
    return command(*shlex.split(written), says=says)


ROWS: dict[str, Callable[[str, tuple[str, ...]], Row]] = {
    "names in a run": _run,
    "sections of a run": _section,
    "parts of a suite": _suite,
    "overrides": _override,
}
"""{area: what makes a row of its lines}; other areas are commands, or calls."""


def tables() -> dict[str, Callable[[], Iterator[Row]]]:
    """{area: its rows} of every file."""
    areas: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
    for file in ("commands", "changes", "overrides", "python"):
        for area, written, says in lines(file):
            areas.setdefault(area, []).append((written, says))

    def rows(area: str) -> Callable[[], Iterator[Row]]:
        make = ROWS.get(area, calls.row if area.startswith("Python") else _command)
        return lambda: (make(written, says) for written, says in areas[area])

    return {area: rows(area) for area in areas}


TABLES = tables()

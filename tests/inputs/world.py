"""The folder in which bad inputs are run: data, models and runs that work, made once."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from helpers import victims
from inputs.base import GENERATOR, ROWS, RUN, SUITE, SUMS, text


@contextlib.contextmanager
def folder(path: Path) -> Iterator[None]:
    """`path` as the current folder."""
    before = Path.cwd()
    os.chdir(path)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def world(path: Path) -> Iterator[None]:
    """`path` as the current folder, with what rows name: rows.jsonl, run.yaml, suite.yaml, models/."""
    with folder(path):
        Path("models").mkdir(exist_ok=True)
        fill()
        yield


def fill() -> None:
    """Writes what works; a row may have written over it."""
    Path("rows.jsonl").write_text(ROWS)
    Path("run.yaml").write_text(text(RUN))
    Path("suite.yaml").write_text(text(SUITE))
    Path("generator.yaml").write_text(text(GENERATOR))
    Path("sums.jsonl").write_text(SUMS)
    Path("folder").mkdir(exist_ok=True)
    if not Path("models/classifier").exists():
        victims.classifier(steps=0).save_pretrained(Path("models/classifier"))
        victims.generator_model(steps=0).save_pretrained(Path("models/policy"))


def clear() -> None:
    """Removes what a row may have written."""
    for path in Path().iterdir():
        if path.name != "models":
            shutil.rmtree(path) if path.is_dir() else path.unlink()

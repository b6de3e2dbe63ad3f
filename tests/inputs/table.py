"""The table of bad inputs: what is answered, with which exit code.

PYTHONPATH=.:tests python -m inputs.table [--only AREA ...] [--wrong] [--every N]    prints it; fails when a row is wrong
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from inputs import commands, data_files, declared, fields, model_folders, texts
from inputs.row import Answer, Row
from inputs.world import clear, fill, world

TABLES: dict[str, Callable[[], Iterable[Row]]] = {
    **fields.TABLES,
    **texts.TABLES,
    **commands.TABLES,
    **data_files.TABLES,
    **model_folders.TABLES,
    **declared.TABLES,
}
"""{area: its rows}"""


def answers(tables: dict[str, Callable[[], Iterable[Row]]], every: int = 1) -> Iterator[tuple[str, Row, Answer]]:
    """(area, row, answer) of the first and then one of so many rows of every area."""
    with tempfile.TemporaryDirectory() as name, world(Path(name)):
        for area, rows in tables.items():
            for row in itertools.islice(rows(), 0, None, every):
                clear()
                fill()
                yield area, row, row.answer()


def line(area: str, row: Row, answer: Answer) -> str:
    """A row of the Markdown table."""
    text = " ".join(answer.text.split())
    cells = (area, row.given, text if len(text) < 500 else f"{text[:497]}...", answer.code, answer.problem or "right")
    return f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in cells)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=list(TABLES), help="Areas of the table.")
    parser.add_argument("--wrong", action="store_true", help="Only rows that are wrong.")
    parser.add_argument("--every", type=int, default=1, help="One of so many rows of an area.")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| area | input | answer | exit code | judged |\n| --- | --- | --- | --- | --- |")
    total = wrong = 0
    for area, row, answer in answers({name: TABLES[name] for name in given.only}, given.every):
        total, wrong = total + 1, wrong + bool(answer.problem)
        if answer.problem or not given.wrong:
            print(line(area, row, answer), flush=True)
    print(f"\n{total} bad inputs, {wrong} wrong.")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())

"""What the commands print."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from advalign.functional.escaping import terminal


class _Output(Console):
    """A console whose reader may leave: `advalign list | head -1`."""

    def on_broken_pipe(self) -> None:
        """Ends the process as SIGPIPE would."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + int(signal.SIGPIPE))


out = _Output()


def say(text: str) -> None:
    """Prints a text as it is: no wrapping to the width of a terminal, no markup, nothing that a terminal obeys."""
    out.print(terminal(text), soft_wrap=True, highlight=False, markup=False)


def complain(text: str) -> None:
    """Prints a sentence on stderr, in one line; a terminal obeys nothing in it."""
    Console(stderr=True).print(terminal(" ".join(text.splitlines())), style="red", soft_wrap=True, markup=False, highlight=False)


def say_numbers(numbers: Mapping[str, float], title: str) -> None:
    """Prints a table of metrics."""
    table = Table(title=Text(terminal(title)), box=None)
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name in sorted(numbers):
        table.add_row(Text(terminal(name)), f"{numbers[name]:.4g}")
    out.print(table)

"""What the commands print."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from advalign.functional.escaping import terminal

out = Console()


def say(text: str) -> None:
    """Prints a text as it is: no wrapping to the width of a terminal, no markup, nothing that a terminal obeys."""
    out.print(terminal(text), soft_wrap=True, highlight=False, markup=False)


def say_numbers(numbers: Mapping[str, float], title: str) -> None:
    """Prints a table of metrics."""
    table = Table(title=Text(terminal(title)), box=None)
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name in sorted(numbers):
        table.add_row(Text(terminal(name)), f"{numbers[name]:.4g}")
    out.print(table)

"""`advalign train | show | list | eval | attack | compare`.

A command imports what it runs when it runs it, so that `--help` and `list` answer at once.
"""

from __future__ import annotations

import sys

import typer
from rich.console import Console

from advalign.cli.console import out
from advalign.cli.evaluation import attack, compare, evaluate
from advalign.cli.training import list_, show, train
from advalign.errors import AdvalignError
from advalign.functional.escaping import terminal

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Adversarial and GAN-style alignment, beside SFT and RL.")
app.command()(train)
app.command()(show)
app.command(name="list")(list_)
app.command(name="eval")(evaluate)
app.command()(attack)
app.command()(compare)


def main() -> None:
    """The console script: a mistake of the user is one sentence, not a traceback."""
    try:
        app(standalone_mode=True)
    except AdvalignError as error:
        Console(stderr=True).print(terminal(f"{type(error).__name__}: {error}"), style="red", soft_wrap=True, markup=False, highlight=False)
        sys.exit(2)


__all__ = ["app", "main", "out"]

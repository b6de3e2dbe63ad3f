"""`advalign train | show | list | eval | attack | compare`.

A command imports what it runs when it runs it, so that `--help` and `list` answer at once.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from advalign.cli import failures
from advalign.cli.console import out
from advalign.cli.evaluation import attack, compare, evaluate
from advalign.cli.training import list_, show, train

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Adversarial and GAN-style alignment, beside SFT and RL.")
app.command()(train)
app.command()(show)
app.command(name="list")(list_)
app.command(name="eval")(evaluate)
app.command()(attack)
app.command()(compare)


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; before or after the command.")] = False,
) -> None:
    """Adversarial and GAN-style alignment, beside SFT and RL."""


def main() -> None:
    """The console script: whatever goes wrong is one sentence and an exit code (`failures`)."""
    failures.leave(failures.run(app, sys.argv[1:]))


__all__ = ["app", "main", "out"]

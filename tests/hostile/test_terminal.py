"""A terminal obeys nothing that a model, data or an exception says, whichever way it is printed."""

import os
import re
import subprocess
import sys

import pytest
import typer
from helpers import payloads

from advalign.cli import console, failures
from advalign.errors import ConfigError
from advalign.functional.escaping import visible
from advalign.training.logs import ProgressBar

OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
ESC = "\x1b]0;title\x07\x1b[2J\u202e"


def program(act):
    app = typer.Typer()

    @app.command()
    def one() -> None:
        act()

    return app


def raises():
    raise ConfigError(f"data.jsonl: line 3: {ESC}")


@pytest.mark.parametrize("arguments", [[], ["--debug"]])
def test_errors_and_their_tracebacks_are_text(capsys, arguments):
    assert failures.run(program(raises), arguments) == 2
    printed = capsys.readouterr().err
    assert visible(ESC) in printed
    assert not OBEYED.search(printed)


@pytest.mark.parametrize("payload", payloads.ALL)
def test_lines_and_tables_of_numbers_are_text(capsys, payload):
    console.say(payload)
    assert capsys.readouterr().out == visible(payload).expandtabs(8) + "\n"
    console.say_numbers({f"a/{payload}": 1.0, "b": float("nan")}, payload)
    assert not OBEYED.search(capsys.readouterr().out)
    console.complain(payload)
    assert not OBEYED.search(re.sub("\x1b\\[[0-9;]*m", "", capsys.readouterr().err))


def test_names_in_a_progress_bar_are_text(capsys):
    names = {f"{payload}/reward": 0.5 for payload in ("[red]", "[/]", ESC)}
    with ProgressBar(10, 0, f"[bold{ESC}") as bar:
        bar.step(1, f"[/]{ESC}", names)
    assert "\x07" not in capsys.readouterr().err


def test_a_terminal_without_unicode_gets_codes_and_warnings_are_text():
    code = (
        "import typer, warnings; from advalign.cli import console, failures; app = typer.Typer()\n"
        "@app.command()\ndef one():\n console.say('é → 漢'); warnings.warn('row \\x1b]0;title\\x07')\n"
        "raise SystemExit(failures.run(app, []))"
    )
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, b"\\xe9 \\u2192 \\u6f22\n")
    assert b"UserWarning: row \\x1b]0;title\\x07" in done.stderr
    assert b"\x1b" not in done.stderr

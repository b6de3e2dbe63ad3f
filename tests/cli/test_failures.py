"""How commands end: one sentence and an exit code, whatever went wrong; the traceback with --debug alone."""

import errno
import os
import signal
import subprocess
import sys
import threading

import pytest
import typer

from advalign import cli, errors
from advalign.cli import failures
from advalign.errors import AdvalignError, ConfigError, Interrupted


def app(error):
    """A program with one command, which ends with this error."""
    program = typer.Typer()

    @program.command()
    def one() -> None:
        raise error

    return program


def caused(error, cause):
    error.__cause__ = cause
    return error


TORCH_OOM = type("OutOfMemoryError", (RuntimeError,), {})
ENDS = {
    "mistake": (ConfigError("a.b: 3 given."), 2, "ConfigError: a.b: 3 given."),
    "interrupted": (Interrupted("saved; go on with --resume.", signal.SIGTERM), 143, "Interrupted: saved; go on with --resume."),
    "lines": (ConfigError("a\nb\x1b[31m"), 2, "ConfigError: a b\\x1b[31m"),
    "exit": (typer.Exit(1), 1, ""),
    "fault": (KeyError("x"), 1, "a fault in the library or in a plugin: KeyError: 'x' in "),
    "long": (ValueError("y" * 9000), 1, "yyy… in "),
    "file": (OSError(errno.ENOENT, "No such file or directory", "a.json"), 2, "a.json: no such file or directory in "),
    "full disk": (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 2, "a file: no space left on device in "),
    "read only": (PermissionError(errno.EACCES, "Permission denied", "out/log.jsonl"), 2, "out/log.jsonl: permission denied in "),
    "memory": (
        TORCH_OOM("CUDA out of memory. Tried to allocate 2 GiB"),
        2,
        "out of memory (CUDA out of memory. Tried to allocate 2 GiB) in ",
    ),
    "host memory": (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 2, "out of memory (Default"),
    "ctrl-c": (KeyboardInterrupt(), 130, "interrupted (Ctrl-C)."),
}


@pytest.mark.parametrize("name", ENDS)
@pytest.mark.parametrize("debug", [False, True])
def test_every_end_is_one_sentence_and_a_code(capsys, name, debug):
    error, code, sentence = ENDS[name]
    assert failures.run(app(error), ["--debug"] if debug else []) == code
    printed = capsys.readouterr().err
    assert sentence in printed
    shows = debug and not isinstance(error, typer.Exit | KeyboardInterrupt)
    assert ("Traceback" in printed) == shows
    if not debug:
        assert len(printed.splitlines()) == bool(sentence)


def test_debug_shows_what_led_to_it(capsys):
    assert failures.run(app(caused(ConfigError("a: wrong."), KeyError("inner"))), ["--debug"]) == 2
    assert "KeyError: 'inner'" in capsys.readouterr().err


def test_a_fault_says_where(capsys, monkeypatch):
    monkeypatch.setattr("advalign.plugins.summaries", lambda group: {}[group])
    assert failures.run(cli.app, ["list", "objectives"]) == 1
    printed = capsys.readouterr().err
    assert "a fault in the library or in a plugin: KeyError: 'objectives' in advalign/cli/training.py, line " in printed
    assert printed.rstrip().endswith("--debug shows the traceback.")


def test_every_error_of_the_package_has_an_exit_code_and_says_what_it_is():
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, AdvalignError)]
    assert len(classes) >= 6
    assert all(cls("text").exit_code in (2, 130) and cls.__doc__ for cls in classes)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "advalign: no command given; see advalign --help."),
        (["trian", "x"], "advalign: no such command 'trian'. Did you mean 'train'? See advalign --help."),
        (["train"], "advalign train: missing argument "),
        (["train", "a.yaml", "--resum"], "advalign train: no option '--resum'; did you mean --resume? See advalign train --help."),
        (["show", "a.yaml", "--smoke"], "advalign show: no option '--smoke'"),
        (["list", "objectives", "b"], "advalign list: got unexpected extra argument"),
        (["list", "objective"], "Did you mean 'objectives'?"),
        (["eval", "m"], "advalign eval: missing option '--suite'"),
        (["eval", "m", "--suite"], "option '--suite' requires an argument"),
        (["eval", "m", "--suite", "s.yaml", "--workers", "many"], "advalign eval: invalid value for '--workers'"),
        (["eval", "m", "--suite", "s.yaml", "--fail-below", "low"], "advalign eval: invalid value for '--fail-below'"),
        (["eval", "m", "--suite", "s.yaml", "--export", "garak"], "--export was given without --output"),
        (["eval", "m", "--suite", "s.yaml"], "s.yaml: no such file."),
        (["eval", "m", "--suite", "s.yaml", "--workers", "0"], "advalign eval: invalid value for '--workers'"),
        (["eval", "m", "--suite", "s.yaml", "--temperatures", "x"], "temperatures: 'x' is not a list of numbers; write it as 0.3,0.7,1."),
        (["eval", "m", "--suite", "s.yaml", "--temperatures", "1,nan"], "temperatures: nan given; finite numbers of at least 0"),
        (["eval", "", "--suite", "s.yaml"], "advalign eval: invalid value for 'model': an empty text given"),
        (["eval", "m", "--suite", "s.yaml", "--device", ""], "advalign eval: invalid value for '--device': an empty text given"),
        (["attack", "m", ""], "advalign attack: invalid value for 'text': an empty text given"),
        (["compare", "", "b"], "advalign compare: invalid value for 'first': an empty text given"),
        (["attack", "m"], "advalign attack: missing argument"),
        (["attack", "m", "text", "--kind", "embeding"], "Did you mean 'embedding'?"),
        (["attack", "m", "text", "--labell", "1"], "no option '--labell'; did you mean --label?"),
        (["compare", "a"], "advalign compare: missing argument"),
        (["compare", "a", "b", "--suite", "s.yaml"], "s.yaml: no such file."),
    ],
)
def test_nonsense_on_the_command_line_is_one_sentence(advalign, tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    code, _, printed = advalign(*arguments)
    assert code == 2
    assert sentence in printed
    assert len(printed.splitlines()) == 1


def test_debug_may_come_before_or_after_the_command_and_behind_two_dashes_it_is_a_text(capsys):
    for arguments in (["--debug", "list", "nope"], ["list", "nope", "--debug"]):
        assert failures.run(cli.app, arguments) == 2
        assert "Traceback" in capsys.readouterr().err
    assert failures.run(cli.app, ["list", "--", "--debug"]) == 2
    assert "no plugin group '--debug'" in capsys.readouterr().err


def test_sigterm_ends_a_command_with_143_and_leaves_the_handler_as_it_was(capsys):
    before = signal.getsignal(signal.SIGTERM)
    program = typer.Typer()

    @program.command()
    def one() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(5)

    assert failures.run(program, []) == 143
    assert capsys.readouterr().err == "Interrupted: ended by SIGTERM.\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_interruption_passes_between_processes():
    import pickle

    for error in (Interrupted("saved.", signal.SIGTERM), ConfigError("a.")):
        again = pickle.loads(pickle.dumps(error))
        assert (str(again), again.exit_code) == (str(error), error.exit_code)


def test_a_reader_that_leaves_gets_no_traceback():
    """`advalign list | head -1`: the reader has gone before anything is written."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "advalign", "list", "objectives"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")

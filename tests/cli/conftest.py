"""What tests of the command line share."""

import sys

import pytest
from helpers.victims import classifier

from advalign import cli


@pytest.fixture
def advalign(monkeypatch, capsys):
    """`advalign("show", path)` -> (exit code, what was printed, what was printed as errors)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["advalign", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        printed = capsys.readouterr()
        return left.value.code or 0, printed.out, printed.err

    return run


@pytest.fixture(scope="module")
def victim(tmp_path_factory):
    folder = tmp_path_factory.mktemp("victim") / "sentiment"
    classifier().save_pretrained(folder)
    return folder

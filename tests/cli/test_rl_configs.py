"""configs/rl: every file builds without loading anything and prints the sum its header states; every paper's runs, made small."""

import copy
import re
from pathlib import Path

import pytest
import torch
import yaml

from advalign import config, plugins

ROOT = Path(plugins.__file__).parents[1]
FILES = sorted((ROOT / "configs" / "rl").glob("*.yaml"))
PAPERS = (
    "ppo grpo dr_grpo dapo high_entropy gspo sapo cispo gmpo clip_cov kl_cov reinforce_pp rloo remax max_rl pass_at_k psr nsr w_reinforce "
    "gdpo luffy hpt raft"
).split()
# About a third of what an untrained model writes holds one of these digits: rewards differ inside groups, so there is something to learn.
SOMETIMES = {"kind": "format", "pattern": ".*[01].*"}
NEVER = {"kind": "format", "pattern": "not a character of the alphabet"}
ALWAYS = {"kind": "format", "pattern": "(?s).*"}


def described(name):
    return config.read(ROOT / "configs" / "rl" / f"{name}.yaml")


def small(name, reward=SOMETIMES):
    """The configuration with an untrained model, sums for problems and few rows; objectives, estimators and options as they are."""
    run = copy.deepcopy(described(name))
    task = {"task": {"kind": "arithmetic", "digits": 1}}
    for learner in run["learners"].values():
        learner |= {"model": "scratch:tiny?hidden_size=32", "tokenizer": {"kind": "characters", "data": task}, "max_length": 16}
        # The first step of a warm-up has a learning rate of 0.
        learner |= {"minibatches": min(learner.get("minibatches", 1), 2), "options": {}, "warmup_steps": 0}
    for source in run["sources"].values():
        source |= {"data": task, "batch_size": 4, "group_size": min(source["group_size"], 4), "rewards": [reward]}
        source["sampling"] = source["sampling"] | {"max_new_tokens": 4}
        source |= {"collect": 8} if "collect" in source else {}
    run["evaluations"] = {}
    run["args"] = {"max_steps": 1, "token_budget": 1024}
    return run


def ran(described):
    """(trainer, log of its step, how far each learner's weights went)."""
    trainer = config.trainer(described)
    trainer.start()
    before = {n: [p.detach().clone() for p in r.network.parameters()] for n, r in trainer.learners.items()}
    (log,) = trainer.train(progress=False)
    moved = {
        n: sum(float((p.detach() - q).abs().sum()) for p, q in zip(r.network.parameters(), before[n], strict=True))
        for n, r in trainer.learners.items()
    }
    return trainer, log, moved


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_builds_and_loads_nothing(path, monkeypatch):
    monkeypatch.setattr("advalign.training.build.load", lambda *a, **k: pytest.fail("a model was loaded"))
    monkeypatch.setattr("advalign.data.examples", lambda *a, **k: pytest.fail("data were read"))
    trainer = config.trainer(config.read(path))
    assert trainer.args.output_dir == f"out/{path.stem}"  # no two of them write to one folder
    assert " loss = 1 " in trainer.formula()


@pytest.mark.parametrize("name", PAPERS)
def test_header_states_the_loss_the_sources_and_commands_that_hold(name):
    path = ROOT / "configs" / "rl" / f"{name}.yaml"
    header = path.read_text(encoding="utf-8").split("learners:")[0]
    printed = config.trainer(described(name)).formula().splitlines()
    assert re.findall(r"^#   (\w+ loss = .*)$", header, re.MULTILINE) == [line for line in printed if " loss = " in line]
    assert re.match(r"# [^\n]*\(arXiv:\d{4}\.\d{5}\)", header)
    commands = re.findall(r"^#   advalign train configs/rl/(\w+)\.yaml(.*)$", header, re.MULTILINE)
    assert commands[0] == (name, "")
    for file, rest in commands:
        overrides = [word for word in rest.partition("   ")[0].split() if "=" in word]
        assert file == name
        assert config.trainer(config.read(path, overrides)).formula()


@pytest.mark.parametrize("name", PAPERS)
def test_one_step_of_every_paper(name):
    run = small(name)
    trainer, log, moved = ran(run)
    for term in run["objectives"]:
        assert torch.isfinite(torch.tensor(log[f"{term}/loss"])), term
    for learner, runtime in trainer.learners.items():
        assert runtime.version == run["learners"][learner].get("minibatches", 1)
        assert moved[learner] > 0
        assert 0 < log[f"{learner}/grad_norm"] < 1e4


def test_hpt_imitates_what_is_never_solved_and_reinforces_what_is():
    """The two ends of the gate. A draw in which every prompt is solved holds no demonstration at all, and is a draw like any other."""
    _, log, moved = ran(small("hpt", NEVER))
    assert (log["math/gate/demonstrated"], log["policy/loss"]) == (1.0, 0.0)
    assert log["imitate/nll"] > 1.0  # an untrained model: about log 19
    assert moved["policy"] > 0
    _, log, _ = ran(small("hpt", ALWAYS))
    assert (log["math/gate/demonstrated"], log["imitate/loss"]) == (0.0, 0.0)
    assert log["policy/loss"] == 0.0  # all rewards are equal


def test_what_a_sign_leaves_out_does_not_move():
    """PSR learns nothing from what is wrong, NSR nothing from what is right; W-REINFORCE learns from both."""
    for name, blind in (("psr", {"never"}), ("nsr", {"always"}), ("w_reinforce", set())):
        still = {word for word, reward in (("never", NEVER), ("always", ALWAYS)) if ran(small(name, reward))[2]["policy"] == 0}
        assert still == blind, name


def test_dapo_refills_and_luffy_has_one_demonstration_per_group():
    _, log, _ = ran(small("dapo"))
    assert log["math/dynamic/informative"] == 1.0
    _, log, _ = ran(small("dapo", ALWAYS))
    assert (log["math/dynamic/informative"], log["math/dynamic/batches"]) == (0.0, 10.0)  # it gives up after max_batches
    trainer, log, _ = ran(small("luffy"))
    rows = trainer.context.sources["math"].rows(trainer.context.items["math"], trainer.learners["policy"].network.encoder)
    assert rows.offpolicy.tolist() == ([False] * 4 + [True]) * 4
    assert 0 < log["policy/offpolicy_ratio"] < 1


def test_the_page_of_the_unified_estimator_shows_what_the_configurations_say():
    page = (ROOT / "docs" / "algorithms" / "unified.md").read_text(encoding="utf-8")
    blocks = [yaml.safe_load(b) for b in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)]
    formulas = [config.trainer({"learners": {"policy": {"model": "scratch:tiny"}}} | block).formula() for block in blocks]
    assert [line for f in formulas for line in f.splitlines() if " loss = " in line] == [
        "policy loss = 1 sft(chat)",
        "policy loss = 1 reinforce(math)",
        "policy loss = 1 ppo(math)",
        "policy loss = 1 luffy(math)",
        "policy loss = 1 dr_grpo(math) + 1 sft(math)",
    ]
    gate = blocks[-1]["sources"]["math"]["demonstrations"]
    assert gate == described("hpt")["sources"]["math"]["demonstrations"]
    for name, block in (("luffy", blocks[-2]), ("hpt", blocks[-1])):
        terms = described(name)["objectives"]
        for term, fields in block["objectives"].items():
            shown = {k: v for k, v in fields.items() if k != "length"}  # the budget of a response is another one there
            assert shown == {k: terms[term][k] for k in shown}, (name, term)

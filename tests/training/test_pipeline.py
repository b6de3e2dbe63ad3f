"""examples/r1_pipeline.yaml, small: interrupted in each of its stages and resumed, it ends with the bits of a run nobody touched."""

import copy
import json
from pathlib import Path

import pytest
import torch

from advalign import Callback, config
from advalign.metrics.run_log import read
from advalign.training import checkpoint

ROOT = Path(__file__).parents[2]
SHOWN = config.read(ROOT / "examples" / "r1_pipeline.yaml")
STEPS = 4  # per stage


class Killed(BaseException):
    """Like the signal it stands for, it is no error that anything could handle."""


class Kill(Callback):
    """Ends the run after the updates of a step, before they are saved."""

    def __init__(self, at):
        self.at = at

    def on_step(self, trainer, logs):
        if trainer.step == self.at:
            raise Killed


def small():
    """The pipeline as it is shown, with little of everything, and past rollouts in its last stage."""
    described = copy.deepcopy(SHOWN)
    described["learners"]["policy"]["model"] = "scratch:tiny?hidden_size=32"
    sources, objectives = described["sources"], described["objectives"]
    for name in ("cold", "write", "best"):
        sources[name]["batch_size"] = 4
    sources["write"]["group_size"] = 3
    # An untrained policy reaches no threshold. Two pools in four draws: the second is not that of the checkpoint.
    sources["best"] |= {"collect": 6, "group_size": 3, "threshold": None, "refresh": 3}
    sources["past"] = {"kind": "replay", "source": "write", "batch_size": 3, "steps": 3, "advantage": {"kind": "group"}}
    objectives["again"] = {"kind": "grpo", "source": "past"}
    for stage in described["stages"]:
        stage["steps"] = STEPS
        if "policy" in stage["objectives"]:
            stage["objectives"] = [*stage["objectives"], "again"]
    for evaluation in described["evaluations"].values():
        evaluation["number"] = 2
    described["args"] = {"save_steps": 2, "eval_steps": 3}
    return described


def run(folder, killed_at=None, **more):
    described = small()
    described["args"]["output_dir"] = str(folder)
    trainer = config.trainer(described, callbacks=[] if killed_at is None else [Kill(killed_at)])
    trainer.train(progress=False, **more)
    return trainer


def test_the_recipe_is_that_of_r1():
    order = [(stage["name"], stage["objectives"]) for stage in SHOWN["stages"]]
    assert order == [("cold_start", ["imitate"]), ("reason", ["policy"]), ("reject", ["distil"]), ("align", ["policy"])]
    kinds = {name: (o["kind"], SHOWN["sources"][o["source"]]["kind"]) for name, o in SHOWN["objectives"].items()}
    assert kinds == {"imitate": ("sft", "demos"), "policy": ("grpo", "prompts"), "distil": ("sft", "rejection")}
    splits = {name: e["split"] for name, e in SHOWN["evaluations"].items()}
    assert splits == {"test": "test", "ood": "ood"}
    reject = SHOWN["stages"][2]["steps"]
    assert SHOWN["sources"]["best"]["refresh"] >= reject  # collected once, from the policy that the second stage left


def test_the_recipe_runs_with_smoke(tmp_path):
    described = {**SHOWN, "args": {**SHOWN["args"], "output_dir": str(tmp_path / "run")}}
    history = config.trainer(described, smoke=True).train(progress=False)
    assert [entry["stage"] for entry in history] == [s["name"] for s in SHOWN["stages"] for _ in range(2)]
    assert (tmp_path / "run-smoke" / "policy" / "config.json").is_file()


def test_a_run_killed_in_every_stage_continues_bit_for_bit(tmp_path):
    uninterrupted = run(tmp_path / "whole")
    broken = tmp_path / "broken"
    # The second step of the first stage, and the last, the first and the third of the others: before, at and after a checkpoint.
    for number, step in enumerate((2, 2 * STEPS, 2 * STEPS + 1, 3 * STEPS + 3)):
        with pytest.raises(Killed):
            run(broken, killed_at=step, resume=number > 0)
        newest = checkpoint.latest(broken)
        assert (newest is None) if step == 2 else (newest.name == f"checkpoint-{(step - 1) // 2 * 2}")
    resumed = run(broken, resume=True)

    log = read(tmp_path / "whole")
    assert [entry["stage"] for entry in log] == [s["name"] for s in SHOWN["stages"] for _ in range(STEPS)]
    assert (tmp_path / "whole" / "log.jsonl").read_bytes() == (broken / "log.jsonl").read_bytes()
    for (name, a), b in zip(uninterrupted.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b), name
    a, b = (checkpoint.read_state(folder / f"checkpoint-{4 * STEPS}") for folder in (tmp_path / "whole", broken))
    assert json.dumps(a["sources"]) == json.dumps(b["sources"])
    # Both pools were in use: rows of the past were older than the present, and the second collection replaced the first.
    assert [len(groups) for _, groups in a["sources"]["past"]["pool"]] == [4, 4, 4]
    assert max(entry.get("past/staleness", 0) for entry in log) > 1
    assert a["sources"]["best"]["collected"] == 2
    assert ["best/kept_fraction" in entry for entry in log[2 * STEPS : 3 * STEPS]] == [True, False, False, True]

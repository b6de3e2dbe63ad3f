"""kill -9 in the middle of a game, --resume, and every bit is that of a run nobody touched."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.equal import assert_equal

from advalign import Frozen, Gate, Learner, Ramp, Stage, Trainer, TrainingArguments, Until
from advalign import config as configuration
from advalign.adversaries.pgd import PGD
from advalign.errors import ConfigError
from advalign.metrics.run_log import read
from advalign.objectives.consistency import Consistency
from advalign.objectives.sft import SFT
from advalign.rollout.hf import HF
from advalign.sources.demos import Demos
from advalign.training import checkpoint
from advalign.training.evaluate import Evaluation
from advalign.types import Sampling

# The game of the whole machine: a reward that is a learner, several updates per draw, an attack, a reference, dropout and
# replay in the discriminator, an average of the policy, a ramp, and a stage that a metric ends (always after step 3).
GAME = """
learners:
  policy: {model: "scratch:tiny?hidden_size=32", tokenizer: &words {kind: words, data: "task:constraints"}, max_length: 32,
           learning_rate: 1.0e-3, minibatches: 2, epochs: 2, lr_scheduler_type: linear}
  discriminator:  {model: "scratch:encoder-tiny?hidden_size=32", head: score, tokenizer: *words, max_length: 32, learning_rate: 1.0e-3,
           updates: 2, options: {dropout: 0.1}}
sources:
  chat:     {kind: demos, data: "task:constraints", limit: 20, batch_size: 4}
  write:    {kind: prompts, data: "task:constraints", batch_size: 4, group_size: 3, sampling: {max_new_tokens: 6},
             rewards: [{kind: discriminator, learner: discriminator}, {kind: function, fn: hold.nothing}],
             advantage: {kind: group, scale: none}}
  contrast: {kind: contrast, real: chat, sampled: write, perturb: constraints, batch_size: 6, replay: 0.5}
adversaries:
  pgd: {kind: pgd, radius: 0.1, steps: 2}
objectives:
  imitate: {kind: sft, source: chat}
  policy:  {kind: grpo, source: write}
  near:    {kind: kl, source: write, coef: 0.1}
  robust:  {kind: sft, source: chat, view: pgd, coef: 0.5}
  discriminator:   {kind: discriminate, source: contrast}
frozen:
  reference: {learner: policy}
  mean:      {learner: policy, ema: 0.9}
schedules:
  objectives.robust.coef: {start: 0.1, end: 0.5, steps: 10}
stages:
  - {name: warm, steps: 6, objectives: [imitate, discriminator], until: {metric: discriminator/accuracy, above: 0.0, after: 3}}
  - {name: mix, steps: 9, objectives: [policy, near, robust, discriminator]}
evaluations:
  heldout: {data: "task:constraints", number: 4, sampling: {max_new_tokens: 6}}
args: {save_steps: 4, eval_steps: 4, seed: 3}
"""

# A reward that says nothing, from a module that stops the process where the test kills it: when the weights of checkpoint 8
# are on the disk and its state is not.
HOLD = """
import os, time, torch

def nothing(completions):
    return [0.0] * len(completions)

if "HOLD" in os.environ:
    write = torch.save

    def save(state, path):
        while state["step"] == 8:
            time.sleep(0.01)
        write(state, path)

    torch.save = save
"""
ALL = 12  # 3 steps until the first stage ends, then 9


def start(folder, *more, **environment):
    command = [sys.executable, "-m", "advalign", "train", str(folder / "game.yaml"), f"args.output_dir={folder / 'broken'}", *more]
    inherited = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path]), "OMP_NUM_THREADS": "1"}
    errors = (folder / "errors.txt").open("a")
    return subprocess.Popen(command, env={**inherited, **environment}, cwd=folder, stdout=subprocess.DEVNULL, stderr=errors)


def wait_for(condition, process, seconds=900):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
def test_a_killed_run_continues_bit_for_bit(tmp_path, monkeypatch):
    (tmp_path / "game.yaml").write_text(GAME)
    (tmp_path / "hold.py").write_text(HOLD)
    uninterrupted, broken = tmp_path / "whole", tmp_path / "broken"

    first = start(tmp_path, HOLD="1")
    monkeypatch.syspath_prepend(tmp_path)
    # Meanwhile, in this process and with another hash seed: the run that nobody touches.
    configuration.trainer(configuration.read(tmp_path / "game.yaml", [f"args.output_dir={uninterrupted}"])).train(progress=False)
    # Four steps beyond the last complete checkpoint, sources have moved, and checkpoint 8 is half on the disk.
    wait_for(lambda: (broken / ".partial-checkpoint-8" / "learner.policy.safetensors").exists(), first)
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    assert checkpoint.latest(broken).name == "checkpoint-4"
    assert [e["step"] for e in read(broken)] == [1, 2, 3, 4, 5, 6, 7, 8]

    assert start(tmp_path, "--resume").wait(timeout=900) == 0, (tmp_path / "errors.txt").read_text()

    log = read(uninterrupted)
    assert [e["stage"] for e in log] == ["warm"] * 3 + ["mix"] * (ALL - 3)
    assert {e["policy/ratio"] for e in log[3:]} != {1.0}  # several updates per draw: clipping is at work
    assert (uninterrupted / "log.jsonl").read_bytes() == (broken / "log.jsonl").read_bytes()
    a, b = uninterrupted / f"checkpoint-{ALL}", broken / f"checkpoint-{ALL}"
    weights = ["frozen.mean", "frozen.reference", "learner.discriminator", "learner.policy"]
    assert sorted(p.stem for p in a.glob("*.safetensors")) == weights
    for name in weights:
        assert (a / f"{name}.safetensors").read_bytes() == (b / f"{name}.safetensors").read_bytes(), name
    # Optimizer moments, schedulers, versions, positions of the streams, the replay pool, the generator.
    assert_equal(checkpoint.read_state(a), checkpoint.read_state(b))
    assert not (broken / ".partial-checkpoint-8").exists()
    assert (uninterrupted / "policy/model.safetensors").read_bytes() == (broken / "policy/model.safetensors").read_bytes()
    # And the copies are what they are called: the reference stood still, the average and the policy did not.
    frozen = [(a / f"{name}.safetensors").read_bytes() for name in ("frozen.reference", "frozen.mean", "learner.policy")]
    assert len(set(frozen)) == 3


# ------------------------------------------------------------------------------------------------ in one process

WORDS = {"kind": "words", "data": "task:constraints"}
POLICY = Learner(model="scratch:tiny?hidden_size=32", tokenizer=WORDS, max_length=32, learning_rate=1e-3)


def small(folder, steps=2, learner=POLICY, name="policy", radius=0.1, more=None, **arguments):
    chat = Demos(data="task:constraints", limit=8, batch_size=2)
    return Trainer(
        learners={name: learner},
        sources={"chat": chat, **(more or {})},
        adversaries={"pgd": PGD(radius=radius, steps=1)},
        objectives={"robust": SFT(source="chat", view="pgd", learner=name), **arguments.pop("terms", {})},
        args=TrainingArguments(output_dir=str(folder), max_steps=steps, save_steps=1, **arguments.pop("args", {})),
        **arguments,
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    small(folder).train(progress=False)
    return folder


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"name": "writer"}, r"learners\.policy is gone since checkpoint-2 was written"),
        (
            {"learner": replace(POLICY, model="scratch:tiny?hidden_size=64")},
            r"learners\.policy\.model was 'scratch:tiny\?hidden_size=32' when checkpoint-2 was written, and is '[^']*=64' now",
        ),
        ({"learner": replace(POLICY, learning_rate=2e-3)}, r"learners\.policy\.learning_rate was 0\.001 [^\n]* is 0\.002 now"),
        ({"learner": replace(POLICY, options={"dropout": 0.1})}, r"learners\.policy\.options\.dropout is new \(0\.1\)"),
        ({"radius": 0.2}, r"adversaries\.pgd\.radius was 0\.1 [^\n]* is 0\.2 now"),
        ({"more": {"other": Demos(data="task:constraints", limit=4)}}, r"sources\.other is new \(Demos\)"),
        ({"args": {"seed": 1}}, r"args\.seed was 0 [^\n]* is 1 now"),
        ({"args": {"token_budget": 100}}, r"args\.token_budget was 8192 [^\n]* is 100 now"),
        ({"frozen": {"mean": Frozen(ema=0.5)}}, r"frozen\.mean is new \(Frozen\)"),
        ({"schedules": {"objectives.robust.coef": Ramp(end=1.0)}}, r"schedules\.objectives\.robust\.coef is new \(Ramp\)"),
        ({"gates": {"policy": Gate(metric="robust/loss", above=9.0)}}, r"gates\.policy is new \(Gate\)"),
        ({"rollout": HF(max_rows=3)}, r"rollout\.max_rows was 512 [^\n]* is 3 now"),
        ({"stages": [Stage(steps=3)]}, r"stages\.0\.name was 'train' [^\n]* is '' now"),
        ({"stages": [Stage(steps=2, name="train"), Stage(steps=1)]}, r"stages\.1 is new \(Stage\)"),
        (
            {"stages": [Stage(steps=3, name="train", set={"learners.policy.learning_rate": 0.0})]},
            r"stages\.0\.set\.learners[^\n]* is new \(0\.0\)",
        ),
    ],
)
def test_a_resume_with_another_configuration_is_a_sentence(saved, tmp_path, change, sentence):
    folder = tmp_path / "run"
    shutil.copytree(saved, folder)
    with pytest.raises(ConfigError, match=rf"^resume: [^\n]*{sentence}[^\n]*\.$"):
        small(folder, steps=3, **change).train(resume=True, progress=False)
    assert checkpoint.latest(folder).name == "checkpoint-2"  # nothing of the old run is lost


def test_more_steps_are_no_other_configuration(saved, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(saved, folder)
    history = small(folder, steps=4).train(resume=True, progress=False)
    assert [entry["step"] for entry in history] == [3, 4]
    straight = small(tmp_path / "straight", steps=4).train(progress=False)
    assert history == straight[2:]
    assert [p.name for p in sorted(checkpoint.list_checkpoints(folder))] == ["checkpoint-3", "checkpoint-4"]  # save_total_limit: 2


def test_what_may_change_is_no_other_configuration(saved, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(saved, folder)
    heldout = Evaluation(data="task:constraints", number=2, sampling=Sampling(max_new_tokens=2))
    args = {"eval_steps": 1, "save_steps": 2, "save_total_limit": None, "measure_every": 2, "max_skipped": 3}
    trainer = small(folder, steps=4, evaluations={"heldout": heldout})
    trainer.args = replace(trainer.args, **args)
    assert [entry["step"] for entry in trainer.train(resume=True, progress=False)] == [3, 4]
    assert [p.name for p in checkpoint.list_checkpoints(folder)] == ["checkpoint-1", "checkpoint-2", "checkpoint-4"]


def test_an_evaluation_that_something_follows_is_part_of_the_run(tmp_path):
    """Whether a stage ends depends on when it is evaluated."""
    heldout = Evaluation(data="task:constraints", number=2, sampling=Sampling(max_new_tokens=2))
    stage = Stage(steps=3, until=Until(metric="heldout/accuracy", above=2.0))
    small(tmp_path, evaluations={"heldout": heldout}, stages=[stage], args={"eval_steps": 2}).train(progress=False)
    for change, sentence in (
        ({"args": {"eval_steps": 1}}, r"args\.eval_steps was 2 "),
        ({"evaluations": {"heldout": replace(heldout, number=3)}, "args": {"eval_steps": 2}}, r"evaluations\.heldout\.number was 2 "),
    ):
        with pytest.raises(ConfigError, match=sentence):
            small(tmp_path, **{"evaluations": {"heldout": heldout}, "stages": [stage], **change}).train(resume=True, progress=False)


def test_resume_starts_where_there_is_nothing_and_an_overwriting_run_starts_over(tmp_path):
    assert [e["step"] for e in small(tmp_path).train(resume=True, progress=False)] == [1, 2]
    assert [e["step"] for e in small(tmp_path, steps=1).train(progress=False, overwrite=True)] == [1]
    assert [p.name for p in checkpoint.list_checkpoints(tmp_path)] == ["checkpoint-1"]
    assert [e["step"] for e in read(tmp_path)] == [1]


def test_resume_without_a_folder_is_refused():
    trainer = Trainer(model=POLICY, sources={"chat": Demos(data="task:constraints", limit=4)}, objectives={"a": SFT(source="chat")})
    with pytest.raises(ConfigError, match=r"args.output_dir"):
        trainer.train(resume=True, progress=False)


def test_a_half_written_line_of_the_log_is_dropped(saved, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(saved, folder)
    with (folder / "log.jsonl").open("a") as file:
        file.write(json.dumps({"step": 3, "robust/loss": 9.0}) + "\n" + '{"step": 4, "rob')
    small(folder, steps=3).train(resume=True, progress=False)
    assert [e["step"] for e in read(folder)] == [1, 2, 3]
    assert read(folder)[-1]["robust/loss"] != 9.0


def test_a_frozen_copy_is_read_back_as_it_was(tmp_path):
    terms = {"near": Consistency(source="chat", against="start", output="tokens")}
    options = {"terms": terms, "frozen": {"start": Frozen()}}
    trainer = small(tmp_path, **options)
    trainer.train(progress=False)
    again = small(tmp_path, **options)
    again.load_checkpoint(checkpoint.latest(Path(tmp_path)))
    for (name, a), b in zip(trainer.frozen["start"].named_parameters(), again.frozen["start"].parameters(), strict=True):
        assert torch.equal(a, b), name
    assert not any(p.requires_grad for p in again.frozen["start"].parameters())
    moved = [not torch.equal(a, b) for a, b in zip(again.frozen["start"].parameters(), again.model.parameters(), strict=True)]
    assert any(moved)

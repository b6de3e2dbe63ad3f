"""The folder of a run: one run at a time, and none is given up unless it was said."""

import json
import os
import shutil

import pytest
from helpers.equal import assert_equal
from helpers.runs import policy

from advalign import Frozen, Trainer, TrainingArguments
from advalign.errors import AdvalignError, ConfigError
from advalign.interfaces import Callback
from advalign.metrics.run_log import read
from advalign.objectives.sft import SFT
from advalign.run_folder import LOCK, locked
from advalign.sources.demos import Demos
from advalign.training import checkpoint


def run(folder, steps=2, names=("policy",), save_steps=1, callbacks=(), frozen=None, **arguments):
    chat = Demos(data="task:constraints", limit=8, batch_size=2)
    return Trainer(
        learners=dict.fromkeys(names, policy()),
        sources={"chat": chat},
        objectives={f"imitate_{number}": SFT(source="chat", learner=name) for number, name in enumerate(names)},
        frozen=frozen,
        callbacks=callbacks,
        args=TrainingArguments(output_dir=str(folder), max_steps=steps, save_steps=save_steps, **arguments),
    )


def snapshot(folder):
    """Every file but the lock, which blocks nobody."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and p.name != LOCK}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "finished"
    run(folder, names=("policy", "other")).train(progress=False)
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


class Fails(Callback):
    """Ends the run in its first step."""

    def on_step(self, trainer, logs):
        raise AdvalignError("as any first step may")


@pytest.mark.parametrize("left", ["all", "log.jsonl", "speed.jsonl", "run.json", "tensorboard", "checkpoint-1", "policy"])
def test_a_folder_that_holds_a_run_is_refused_as_it_is(folder, left):
    """Whatever of a run is in it; nothing is loaded, and nothing changes."""
    for path in folder.iterdir():
        if left not in ("all", path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = snapshot(folder)
    trainer = run(folder)
    with pytest.raises(ConfigError) as refused:
        trainer.train(progress=False)
    assert str(refused.value).startswith(f"args.output_dir: {folder} holds a run (")
    assert str(refused.value).endswith(
        "; continue it with --resume, give it up with --overwrite (args.overwrite_output_dir), or give another folder."
    )
    assert not trainer._started
    assert snapshot(folder) == before


def test_overwriting_leaves_nothing_of_the_run_before(folder):
    """Not its checkpoints, nor a learner that the new run does not have; what is no run's stays."""
    (folder / "notes").mkdir()
    (folder / "notes" / "mine.txt").write_text("mine")
    run(folder, steps=1, save_steps=0).train(progress=False, overwrite=True)
    visible = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    assert visible == ["log.jsonl", "notes", "policy", "run.json", "speed.jsonl", "tensorboard"]
    assert [entry["step"] for entry in read(folder)] == [1]
    assert len(os.listdir(folder / "tensorboard")) == 1


def test_the_argument_overwrites_too(folder):
    run(folder, steps=1, overwrite_output_dir=True).train(progress=False)
    assert [p.name for p in checkpoint.list_checkpoints(folder)] == ["checkpoint-1"]


@pytest.mark.parametrize("when", ["checks", "loading", "start", "first step"])
def test_a_run_that_fails_before_it_has_made_a_step_takes_nothing(folder, when, monkeypatch):
    before = snapshot(folder)
    trainer = run(folder, callbacks=[Fails()] if when == "first step" else [])
    if when == "loading":
        monkeypatch.setattr("advalign.training.build.networks", lambda *_, **__: (_ for _ in ()).throw(ConfigError("no such model")))
    if when == "start":
        monkeypatch.setattr(Demos, "start", lambda *_: (_ for _ in ()).throw(ConfigError("no such data")))
    if when == "checks":
        monkeypatch.setattr("advalign.training.distributed.check", lambda *_: (_ for _ in ()).throw(ConfigError("not so")))
    if when == "first step":
        monkeypatch.setattr(trainer, "training_step", lambda: (_ for _ in ()).throw(ConfigError("not finite")))
    with pytest.raises(AdvalignError):
        trainer.train(progress=False, overwrite=True)
    assert snapshot(folder) == before
    with locked(folder, "test"):  # and it has let go
        pass


def test_a_second_run_in_one_folder_is_refused_before_it_loads(folder):
    before = snapshot(folder)
    with locked(folder, "args.output_dir"):
        for options in ({}, {"resume": True}, {"overwrite": True}):
            trainer = run(folder, names=("policy", "other"))
            with pytest.raises(ConfigError, match=rf"^args.output_dir: {folder} is being written to by process {os.getpid()} on "):
                trainer.train(progress=False, **options)
            assert not trainer._started
    assert snapshot(folder) == before


def test_a_run_holds_its_folder_while_it_trains_and_lets_go_after(tmp_path):
    class Looks(Callback):
        refused = 0

        def on_step(self, trainer, logs):
            with pytest.raises(ConfigError, match="is being written to"), locked(tmp_path, "test"):
                pass
            Looks.refused += 1

    run(tmp_path, callbacks=[Looks()]).train(progress=False)
    assert Looks.refused == 2
    with locked(tmp_path, "test"):
        pass


def test_an_adapter_names_the_base_beside_it_where_it_ends_up(tmp_path):
    """It is written under another name, and peft reads the base from the path that its configuration holds."""
    trainer = run(tmp_path / "run", steps=1)
    lora = {"r": 2, "target_modules": ["c_attn"]}
    trainer = Trainer(
        learners={"policy": policy(options={"lora": lora})},
        sources=trainer.config["sources"],
        objectives=trainer.config["objectives"],
        args=trainer.args,
    )
    trainer.train(progress=False)
    folder = tmp_path / "run" / "policy"
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(folder / "base")
    assert (folder / "base" / "model.safetensors").is_file()


def test_a_run_goes_on_from_the_checkpoint_that_is_named(folder, tmp_path):
    """Here, and into a folder of its own; both end where the run that nobody touched ended."""
    two = run(tmp_path / "whole", steps=3, names=("policy", "other"))
    expected = two.train(progress=False)[1:]
    state = checkpoint.read_state(tmp_path / "whole" / "checkpoint-3")
    for target in (tmp_path / "branch", folder):
        history = run(target, steps=3, names=("policy", "other")).train(resume=folder / "checkpoint-1", progress=False)
        assert history == expected
        assert_equal(checkpoint.read_state(target / "checkpoint-3"), state)
        assert [p.name for p in checkpoint.list_checkpoints(target)] == ["checkpoint-2", "checkpoint-3"]


def test_a_run_that_branches_off_does_not_take_another_runs_folder(folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    with pytest.raises(ConfigError, match="holds a run"):
        run(other, names=("policy", "other")).train(resume=folder / "checkpoint-1", progress=False)


def test_a_damaged_checkpoint_is_refused_before_anything_is_loaded_and_the_offer_holds(folder):
    (folder / "checkpoint-2" / "state.pt").write_bytes(b"")
    trainer = run(folder, steps=3, names=("policy", "other"))
    with pytest.raises(ConfigError) as refused:
        trainer.train(resume=True, progress=False)
    assert not trainer._started
    offered = str(refused.value).rpartition("--resume-from ")[2].removesuffix(".")
    history = run(folder, steps=3, names=("policy", "other")).train(resume=offered, progress=False)
    assert [entry["step"] for entry in history] == [2, 3]
    assert [entry["step"] for entry in read(folder)] == [1, 2, 3]
    checkpoint.check_whole(folder / "checkpoint-2")


def test_resume_and_overwrite_exclude_each_other(folder):
    with pytest.raises(ConfigError, match="resume and overwrite were both given"):
        run(folder).train(resume=True, overwrite=True, progress=False)
    with pytest.raises(ConfigError, match="resume and overwrite were both given"):
        run(folder, overwrite_output_dir=True).train(resume=True, progress=False)


def test_resuming_a_run_without_checkpoints(tmp_path):
    """It begins again where it was killed before the first one, but not over models that it has finished, nor as another run."""
    killed = run(tmp_path, save_steps=0)
    killed.callbacks.append(Fails())
    with pytest.raises(AdvalignError, match="as any first step may"):
        killed.train(progress=False)
    with pytest.raises(ConfigError, match=r"args\.seed was 0 when run\.json was written, and is 1 now"):
        run(tmp_path, save_steps=0, seed=1).train(resume=True, progress=False)
    assert [e["step"] for e in run(tmp_path, save_steps=0).train(resume=True, progress=False)] == [1, 2]
    before = snapshot(tmp_path)
    with pytest.raises(ConfigError, match=r"holds a run that has ended \(policy\) and no checkpoint"):
        run(tmp_path, save_steps=0).train(resume=True, progress=False)
    assert snapshot(tmp_path) == before


def test_what_is_no_model_is_not_replaced_by_one(tmp_path):
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "results.csv").write_text("mine")
    (tmp_path / "other").write_text("a file")
    for name in ("policy", "other"):
        trainer = run(tmp_path, names=(name,))
        with pytest.raises(ConfigError, match=f"learner '{name}' is saved in {tmp_path / name}, which holds something else than a model"):
            trainer.train(progress=False, overwrite=True)
        assert not trainer._started
        trainer.start()
        with pytest.raises(ConfigError, match="which holds something else than a model"):
            trainer.save_pretrained(tmp_path)
    assert (tmp_path / "policy" / "results.csv").read_text() == "mine"


NAMES = ("../x", "/abs", "a/b", "a\0b", ".", "..", "CON", "x" * 300, "pоlicy", "a\n", "\x1b[2J")


@pytest.mark.parametrize("name", [*NAMES, "checkpoint-3", "Tensorboard", "run.json", "log.jsonl"])
def test_names_of_learners_and_copies_stay_in_the_folder(tmp_path, name):
    sentence = "given as a name" if name in NAMES else "the run itself writes"
    with pytest.raises(ConfigError, match=rf"^learners[^\n]*{sentence}"):
        run(tmp_path / "run", names=(name,))
    with pytest.raises(ConfigError, match=rf"^frozen[^\n]*{sentence}"):
        run(tmp_path / "run", frozen={name: Frozen()})
    assert os.listdir(tmp_path) == []


def test_names_that_are_one_file_on_some_systems(tmp_path):
    with pytest.raises(ConfigError, match=r"^learners\.Policy: 'policy' differs from it in capitals alone"):
        run(tmp_path / "run", names=("policy", "Policy"))

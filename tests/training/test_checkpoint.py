"""What a checkpoint is on the disk: whole and finite, or not there; what is damaged is named, and the one before is offered."""

import errno
import os
import shutil
from pathlib import Path

import pytest
import torch
from helpers.faults import raise_at
from torch import nn

from advalign import durable
from advalign.engine.process_group import ProcessGroup
from advalign.errors import ConfigError, NonFiniteError, StorageError
from advalign.training import checkpoint

SETTINGS = {"args.seed": "0"}
DESCRIPTION = {"settings": SETTINGS, "stages": 1}


def network(value=0.5):
    linear = nn.Linear(3, 2)
    nn.init.constant_(linear.weight, value)
    return linear


def save(folder, step, limit=2, value=0.5):
    networks = {"learner.policy": network(value), "frozen.mean": network()}
    return checkpoint.save(folder, step, networks, {"step": step}, DESCRIPTION, processes=ProcessGroup(), limit=limit)


def names(folder):
    return sorted(os.listdir(folder), key=lambda name: (len(name), name))


@pytest.fixture
def folder(tmp_path):
    for step in (4, 8):
        save(tmp_path, step)
    return tmp_path


def test_a_checkpoint_is_read_back(folder):
    path = checkpoint.latest(folder)
    checkpoint.check(path, SETTINGS)
    assert sorted(p.name for p in path.iterdir()) == [
        "description.json", "frozen.mean.safetensors", "learner.policy.safetensors", "manifest.json", "state.pt",
    ]  # fmt: skip
    assert checkpoint.read_state(path) == {"step": 8}
    empty = network(0.0)
    checkpoint.read_network(path, "learner.policy", empty)
    assert torch.equal(empty.weight, network().weight)


@pytest.mark.parametrize("file", ["description.json", "frozen.mean.safetensors", "learner.policy.safetensors", "manifest.json", "state.pt"])
@pytest.mark.parametrize("damage", ["flip", "empty", "cut", "missing", "folder"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_offered(folder, file, damage):
    path = folder / "checkpoint-8" / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        path.write_bytes({"flip": content, "empty": b"", "cut": content[:-1]}[damage])
    with pytest.raises(ConfigError) as refused:
        checkpoint.check(folder / "checkpoint-8", SETTINGS)
    text = str(refused.value)
    assert text.startswith(f"resume: {folder / 'checkpoint-8'} is damaged: ")
    assert file in text or (file, damage) == ("manifest.json", "flip")  # then it is another file that seems to be wrong
    assert text.endswith(f"; checkpoint-4 is whole, continue with --resume-from {folder / 'checkpoint-4'}.")
    checkpoint.check(folder / "checkpoint-4", SETTINGS)


def test_what_is_offered_is_whole_and_earlier(folder):
    save(folder, 12, limit=None)
    (folder / "checkpoint-8" / "state.pt").write_bytes(b"")
    for step, sentence in ((12, "checkpoint-4 is whole"), (4, "there is no whole checkpoint before it.")):
        (folder / f"checkpoint-{step}" / "state.pt").write_bytes(b"")
        with pytest.raises(ConfigError, match=sentence):
            checkpoint.check(folder / f"checkpoint-{step}", SETTINGS)


def test_a_path_that_is_no_checkpoint(folder, tmp_path):
    for path, sentence in (
        (folder / "checkpoint-5", "no folder of a checkpoint; checkpoint-8 is whole"),
        (folder / "checkpoint-4" / "state.pt", "no folder of a checkpoint; there is no whole checkpoint"),
        (Path("/nowhere/at/all"), "no folder of a checkpoint; there is no whole checkpoint"),
        (folder, "is damaged: manifest.json is missing"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            checkpoint.check(path, SETTINGS)


def test_the_newest_is_that_of_the_highest_step_and_other_folders_are_none(folder):
    for name in ("checkpoint-", "checkpoint-x", "checkpoint-9x", "checkpoint--9", "my-checkpoint-99", ".partial-checkpoint-12"):
        (folder / name).mkdir()
    save(folder, 10, limit=None)
    assert checkpoint.latest(folder).name == "checkpoint-10"
    assert [p.name for p in checkpoint.list_checkpoints(folder)] == ["checkpoint-4", "checkpoint-8", "checkpoint-10"]


def test_so_many_are_kept_as_the_limit_says(tmp_path):
    for limit, kept in ((1, [5]), (2, [4, 5]), (3, [3, 4, 5]), (None, [1, 2, 3, 4, 5])):
        folder = tmp_path / str(limit)
        for step in range(1, 6):
            save(folder, step, limit)
        assert names(folder) == [f"checkpoint-{step}" for step in kept]


def test_a_run_that_went_back_gives_up_what_came_after(folder):
    """Step 6 follows from checkpoint-4; checkpoint-8 is of another course of the run, and the next --resume must not take it."""
    save(folder, 6)
    assert names(folder) == ["checkpoint-4", "checkpoint-6"]


def test_a_checkpoint_may_be_written_again(folder):
    save(folder, 8, value=0.25)
    again = network(0.0)
    checkpoint.read_network(folder / "checkpoint-8", "learner.policy", again)
    assert float(again.weight.detach()[0, 0]) == 0.25
    assert names(folder) == ["checkpoint-4", "checkpoint-8"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_not_written_and_nothing_goes(folder, value):
    with pytest.raises(NonFiniteError) as refused:
        save(folder, 12, limit=1, value=value)
    assert str(refused.value).startswith("learners.policy: its weights 'weight' are not finite, so checkpoint-12 was not written; ")
    assert names(folder) == ["checkpoint-4", "checkpoint-8"]
    checkpoint.check(folder / "checkpoint-8", SETTINGS)


def test_a_full_disk_at_any_call_leaves_what_was_whole(folder, monkeypatch):
    """Every fsync and rename fails in turn; there are 7: five files, the folder and its name."""
    full = lambda: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # noqa: E731
    for number in range(7):
        with monkeypatch.context() as patch:
            failed = raise_at(patch, number, full, ("fsync", "replace"))
            with pytest.raises(StorageError) as stopped:
                save(folder, 12)
        assert failed
        assert str(stopped.value) == (
            f"args.output_dir: {folder / 'checkpoint-12'} could not be written (No space left on device); checkpoint-8 is whole, continue "
            f"with --resume-from {folder / 'checkpoint-8'}."
        )
        assert names(folder) == ["checkpoint-4", "checkpoint-8"]


def test_a_folder_that_went_away(tmp_path):
    folder = tmp_path / "run"
    save(folder, 4)
    shutil.rmtree(folder)
    folder.write_text("a file now")
    with pytest.raises(StorageError, match=r"could not be written \((File exists|Not a directory)\); there is no whole checkpoint"):
        save(folder, 8)


def test_weights_that_do_not_fit_are_a_sentence(folder):
    for other in (nn.Linear(3, 3), nn.Bilinear(2, 2, 2)):
        with pytest.raises(ConfigError, match=r"^resume: the weights of 'learner.policy' in checkpoint-8 do not fit the network \("):
            checkpoint.read_network(folder / "checkpoint-8", "learner.policy", other)
    with pytest.raises(ConfigError, match=r"holds no weights of 'learner\.other'"):
        checkpoint.read_network(folder / "checkpoint-8", "learner.other", network())


def test_a_kill_while_older_ones_go_leaves_no_half_checkpoint(folder, monkeypatch):
    """The oldest is under another name before its first file goes, and the next run removes what is left."""
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda path, **_: None)
        save(folder, 12)
    assert [p.name for p in checkpoint.list_checkpoints(folder)] == ["checkpoint-8", "checkpoint-12"]
    assert (folder / ".partial-removed-checkpoint-4").is_dir()
    durable.recover(folder)
    assert names(folder) == ["checkpoint-8", "checkpoint-12"]
    save(folder, 16, limit=None)
    checkpoint.remove_older(folder, 16, 1)
    assert names(folder) == ["checkpoint-16"]

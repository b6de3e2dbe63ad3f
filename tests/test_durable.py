"""Folders that are whole or absent, and manifests that see every changed byte."""

import contextlib
import errno
import json
import os
import shutil

import pytest
import torch
from helpers.faults import raise_at
from safetensors.torch import save_file

from advalign import durable
from advalign.durable import MANIFEST, first_damage, recover, replacing, write_manifest
from advalign.errors import StorageError

FILES = {"model.safetensors": b"\x00\x01weights", "inside/config.json": b"{}", "empty.txt": b""}


def fill(folder, files=FILES):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def content(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def folder(tmp_path):
    fill(tmp_path / "saved")
    write_manifest(tmp_path / "saved")
    return tmp_path / "saved"


def test_a_whole_folder_has_no_damage(folder):
    assert first_damage(folder) is None
    assert json.loads((folder / MANIFEST).read_text())["files"]["empty.txt"] == {
        "size": 0,
        "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",  # of nothing
    }


def test_every_flipped_bit_of_every_file_is_seen(folder):
    for name, before in content(folder).items():
        for position in range(len(before)):
            changed = bytearray(before)
            changed[position] ^= 1 << (position % 8)
            (folder / name).write_bytes(changed)
            assert first_damage(folder) is not None, (name, position)
        (folder / name).write_bytes(before)
    assert first_damage(folder) is None


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_missing_a_cut_and_a_grown_file_are_named(folder, name):
    before = (folder / name).read_bytes()
    for change in (before[:-1], before + b"\n", b""):
        if change != before:
            (folder / name).write_bytes(change)
            assert name in first_damage(folder)
            assert name in first_damage(folder, content=False)
    (folder / name).unlink()
    assert first_damage(folder) == f"{name} is missing"


def test_a_manifest_of_something_else_is_damaged(folder):
    for text in ("[]", "{}", '{"files": 3}', '{"files": []}', '{"files": {"a": 3}}', "\xff", "null"):
        (folder / MANIFEST).write_text(text, encoding="latin-1")
        assert MANIFEST in first_damage(folder), text


def test_a_folder_takes_the_place_of_another_whole(tmp_path):
    final = tmp_path / "policy"
    for files in (FILES, {"other.txt": b"1"}):
        with replacing(final, "args.output_dir") as partial:
            fill(partial, files)
            assert not list(partial.parent.glob(durable.REPLACED + "*"))
        assert content(final) == files
        assert os.listdir(tmp_path) == ["policy"]


def test_whatever_ends_the_writing_leaves_the_folder_before(tmp_path):
    final = tmp_path / "policy"
    with replacing(final, "args.output_dir") as partial:
        fill(partial)
    for error in (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt(), ValueError("x")):
        with pytest.raises((StorageError, KeyboardInterrupt, ValueError)) as raised:
            _interrupted(final, error)
        assert content(final) == FILES
        assert os.listdir(tmp_path) == ["policy"]
        if isinstance(error, OSError):
            assert str(raised.value) == f"args.output_dir: {final} could not be written (No space left on device)."


def _interrupted(final, error):
    with replacing(final, "args.output_dir") as partial:
        fill(partial, {"new": b"1"})
        raise error


@pytest.mark.parametrize("old", [False, True])
def test_a_kill_between_any_two_calls_leaves_the_old_or_the_new(tmp_path, monkeypatch, old):
    """At every call of fsync and rename in turn the process is as good as gone: nothing after it runs."""
    new, number = {"new.txt": b"1"}, 0
    while True:
        folder = tmp_path / str(number)
        folder.mkdir()
        if old:
            fill(folder / "policy")
        with monkeypatch.context() as patch, contextlib.suppress(SystemExit):
            killed = raise_at(patch, number, SystemExit, ("fsync", "replace"))
            partial = durable.begin(folder / "policy")
            fill(partial, new)
            durable.complete(folder / "policy")
        recover(folder)
        after = content(folder / "policy") if (folder / "policy").exists() else None
        assert after in ([FILES, new] if old else [None, new])
        assert os.listdir(folder) == (["policy"] if after is not None else [])
        if not killed:
            assert after == new
            break
        number += 1
    assert number == (5 if old else 4)  # a file, the folder, (aside,) the name, the folder above


def test_errors_of_every_writer_are_the_words_of_the_system(tmp_path):
    """safetensors and torch have errors of their own, under which the system's lies."""
    full = tmp_path / "full"
    writers = {
        "safetensors": lambda: save_file({"x": torch.ones(3)}, tmp_path / "missing" / "x.safetensors"),
        "torch": lambda: torch.save({"x": torch.ones(3)}, _Full()),
        "text": lambda: (tmp_path / "missing" / "x.json").write_text("{}"),
    }
    reasons = {"safetensors": "No such file or directory", "torch": "No space left on device", "text": "No such file or directory"}
    for name, write in writers.items():
        with pytest.raises(StorageError) as raised, durable.writing(full, "args.output_dir"):
            write()
        assert str(raised.value) == f"args.output_dir: {full} could not be written ({reasons[name]})."
    with pytest.raises(RuntimeError, match="of the graph"), durable.writing(full, "args.output_dir"):
        raise RuntimeError("of the graph")


class _Full:
    """A file on a disk that is full."""

    def write(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def flush(self):
        pass


def test_recover_leaves_what_is_whole(tmp_path):
    fill(tmp_path / "checkpoint-4")
    fill(tmp_path / ".partial-checkpoint-8")
    fill(tmp_path / ".replaced-policy")
    fill(tmp_path / ".replaced-other", {"old": b""})
    fill(tmp_path / "other")
    recover(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-4", "other", "policy"]
    assert content(tmp_path / "policy") == content(tmp_path / "other") == FILES
    shutil.rmtree(tmp_path / "policy")

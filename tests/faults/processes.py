"""Processes of `faults.runs`, and whether two runs have ended with the same bytes."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faults import runs
from helpers.equal import assert_equal

from advalign.training import checkpoint

MOMENTS = int(os.environ.get("ADVALIGN_MOMENTS", "0"))
"""Kills per kind of run; 0: the few that `make test` has time for."""

ALL = MOMENTS > 0
only_all = pytest.mark.skipif(not ALL, reason="make test-faults")


def start(kind, folder, world=1, **options):
    """The processes of a run, started. `options` of `runs.train`; those of a kill go to the process that `rank` names."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        pytest.skip("this system has no fork server")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["faults.runs", "helpers.two_process_runs"])
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # where the server finds what it is to import
    meeting = None if world == 1 else f"{folder}.meeting-{time.monotonic_ns()}"
    rank, moment = options.pop("rank", 0), options.pop("moment", None)
    processes = []
    for number in range(world):
        own = options | {"rank": number, "meeting": meeting, "moment": moment if number == rank else None}
        processes.append(context.Process(target=runs.train, args=(kind, str(folder)), kwargs=own, daemon=True))
        processes[-1].start()
    return processes


def wait(processes, seconds=300):
    """Exit codes; once one process was killed, the others, which wait for it, are too, as their launcher would."""
    end = time.monotonic() + seconds
    while any(process.is_alive() for process in processes):
        assert time.monotonic() < end, "a process hangs"
        if any(process.exitcode for process in processes):
            processes[0].join(0.5)
            for process in processes:
                process.kill()
        next(p for p in processes if p.is_alive() or p is processes[-1]).join(0.02)
    return [process.exitcode for process in processes]


def run(kind, folder, world=1, **options):
    """Exit code of the first process that did not end well, or 0."""
    return next((code for code in wait(start(kind, folder, world, **options)) if code), 0)


def assert_same_run(first: Path, second: Path) -> None:
    """Every file of two output folders but times, TensorBoard's and locks: byte for byte; states of checkpoints value for value."""
    files = [_files(folder) for folder in (first, second)]
    assert sorted(files[0]) == sorted(files[1])
    assert any(name.endswith("tokenizer.json") for name in files[0])
    for name, file in files[0].items():
        # But for the folder, which the configuration of an adapter names.
        before, after = (path.read_bytes().replace(str(folder).encode(), b"") for path, folder in ((file, first), (files[1][name], second)))
        assert before == after, name
    for path in checkpoint.list_checkpoints(first):
        checkpoint.check_whole(second / path.name)
        assert_equal(checkpoint.read_state(path), checkpoint.read_state(second / path.name))


def _files(folder: Path) -> dict[str, Path]:
    leave = ("tensorboard", "speed.jsonl", "state.pt", "manifest.json")
    files = {str(file.relative_to(folder)): file for file in folder.rglob("*") if file.is_file()}
    return {name: file for name, file in files.items() if not name.startswith(".") and not set(leave) & set(Path(name).parts)}


def small_disk(folder: Path, size: int):
    """A disk of `size` bytes for the length of a test; skipped where none can be mounted."""
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False)
    if mount.returncode:
        pytest.skip("no disk can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def free(folder: Path) -> int:
    return shutil.disk_usage(folder).free

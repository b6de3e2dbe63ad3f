"""kill -9 at any moment, --resume, and every byte is that of a run nobody touched."""

import random
import shutil
import time

import pytest
from faults.processes import ALL, MOMENTS, assert_same_run, only_all, run, start, wait
from faults.runs import RUNS, SEVERAL

KINDS = [name for name in RUNS if name != "plain"] if ALL else ["games"]
PER_KIND = -(-MOMENTS // (len(RUNS) - 1 + len(SEVERAL))) if ALL else 1


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(folder, calls on files, seconds) of the uninterrupted run of a kind, made once."""
    runs = {}

    def uninterrupted(kind):
        if kind not in runs:
            folder, began = tmp_path_factory.mktemp(kind) / "whole", time.monotonic()
            world = 2 if kind in SEVERAL else 1
            assert run(kind, folder, world) == 0
            calls = [int(folder.with_name(f"whole.calls-{rank}").read_text()) for rank in range(world)]
            runs[kind] = folder, calls, time.monotonic() - began
        return runs[kind]

    return uninterrupted


def killed(kind, folder, rng, calls, seconds, **options):
    """Whether kill -9 came in time: as the main process touches a file, or at any moment, to any process."""
    if rng.random() < 0.7:
        return run(kind, folder, len(calls), moment=rng.randint(1, calls[0]), **options) == -9
    processes = start(kind, folder, len(calls), **options)
    time.sleep(rng.uniform(0.2, 1.0) * seconds)
    rng.choice(processes).kill()
    codes = wait(processes)
    assert set(codes) <= ({0, -9} if len(calls) == 1 else {0, -9, 1})  # 1: of a process that has lost the other one
    return -9 in codes


def survives(kind, folder, whole, seed):
    """The number of kills after which a run has ended with the bytes of the whole one; half of those that go on are killed again."""
    reference, calls, seconds = whole(kind)
    rng = random.Random(f"{kind}/{seed}")
    kills = int(killed(kind, folder, rng, calls, seconds))
    while rng.random() < 0.5:
        kills += killed(kind, folder, rng, calls, seconds, resume=True)
    assert run(kind, folder, len(calls), resume=True) == 0
    assert_same_run(reference, folder)
    return kills


@pytest.mark.parametrize("kind", [*KINDS, *(pytest.param(kind, marks=only_all) for kind in SEVERAL)])
def test_a_killed_run_ends_with_the_same_bytes(kind, whole, tmp_path):
    kills = seed = 0
    while kills < PER_KIND:
        kills += survives(kind, tmp_path / f"killed-{seed}", whole, seed)
        shutil.rmtree(tmp_path / f"killed-{seed}")
        seed += 1


@only_all
def test_every_call_on_a_file_is_a_moment(whole, tmp_path):
    """Not some of them: the smallest run, killed at each of the calls of its last third, where checkpoints go and models are written."""
    reference, (calls,), _ = whole("plain")
    for moment in range(calls - calls // 3, calls + 1):
        folder = tmp_path / f"moment-{moment}"
        assert run("plain", folder, moment=moment) in (0, -9)
        assert run("plain", folder, resume=True) == 0
        assert_same_run(reference, folder)
        shutil.rmtree(folder)

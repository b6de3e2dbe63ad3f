"""SIGTERM and Ctrl-C: the step is finished, a checkpoint is saved, and the run goes on from there."""

import os
import signal
import time

import pytest
from faults.processes import assert_same_run, only_all, run, start, wait

from advalign.training import checkpoint


def until(path, seconds=120):
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.01)


def stopped(folder, numbers, kind="plain", world=1, **arguments):
    """(exit codes, what was said) of a run that gets signals while it is in its third step."""
    errors = folder.with_name("errors.txt")
    processes = start(kind, folder, world, fault="Waits", errors=str(errors), arguments=arguments)
    until(folder.with_name(f"{folder.name}.waits"))
    for number in numbers:
        os.kill(processes[0].pid, number)
        time.sleep(0.1)
    folder.with_name(f"{folder.name}.go").touch()
    return wait(processes), errors.read_text()


@pytest.mark.parametrize(
    ("number", "code", "name"),
    [(signal.SIGTERM, 143, "SIGTERM"), pytest.param(signal.SIGINT, 130, "Ctrl-C", marks=only_all)],
)
def test_a_signal_saves_and_says_where_to_go_on(tmp_path, number, code, name):
    """Also where no checkpoint was asked for; what goes on ends as if nothing had been."""
    folder = tmp_path / "run"
    codes, said = stopped(folder, [number], save_steps=0)
    assert codes == [code]
    assert "Traceback" not in said
    assert said.endswith(f"Interrupted: stopped by {name}: {folder}/checkpoint-3 is complete, continue with --resume (3 steps to go).\n")
    checkpoint.check_whole(folder / "checkpoint-3")
    assert not (folder / "policy").exists()
    if number == signal.SIGINT:
        for path, resume in ((folder, True), (tmp_path / "whole", False)):
            assert run("plain", path, resume=resume, arguments={"save_steps": 6, "save_total_limit": 1}) == 0
        assert_same_run(tmp_path / "whole", folder)


@only_all
def test_a_second_ctrl_c_leaves_at_once(tmp_path):
    """It does not wait for the end of the step."""
    folder = tmp_path / "run"
    codes, said = stopped(folder, [signal.SIGINT, signal.SIGINT])
    assert codes == [130]
    assert [p.name for p in checkpoint.list_checkpoints(folder)] == ["checkpoint-2"]
    assert "Ctrl-C again leaves at once" in said
    assert run("plain", folder, resume=True) == 0


@only_all
def test_of_two_processes_one_signal_stops_both(tmp_path):
    folder = tmp_path / "run"
    codes, said = stopped(folder, [signal.SIGTERM], kind="ddp", world=2)
    assert codes == [143, 143]
    assert said.count("stopped by SIGTERM") == 1
    checkpoint.check_whole(folder / "checkpoint-3")


@only_all
def test_a_signal_in_the_last_step_lets_the_run_end(tmp_path):
    folder = tmp_path / "run"
    codes, said = stopped(folder, [signal.SIGTERM], max_steps=3)
    assert codes == [143]
    assert said.endswith(f"Interrupted: stopped by SIGTERM: the run had ended, and its models are in {folder}.\n")
    assert (folder / "policy" / "model.safetensors").exists()

"""A disk that is full, on a small one that is mounted for the test: one sentence, and nothing that was whole is lost."""

import os
import re

import pytest
from faults.processes import assert_same_run, free, only_all, run, small_disk
from faults.runs import FillsDisk

from advalign.errors import StorageError
from advalign.metrics.run_log import read
from advalign.training import checkpoint
from advalign.training.logs import RunLog

pytestmark = only_all


@pytest.fixture(name="disk")
def _disk(tmp_path):
    yield from small_disk(tmp_path / "disk", 2**25)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Uninterrupted runs, with checkpoints and without."""
    folder = tmp_path_factory.mktemp("whole")
    for save_steps in (2, 0):
        assert run("plain", folder / str(save_steps), arguments={"save_steps": save_steps}) == 0
    return folder


def failed(folder, errors, fault, **arguments):
    """(exit code, the sentence) of a run with a fault."""
    code = run("plain", folder, fault=fault, errors=str(errors), arguments=arguments)
    text = errors.read_text()
    assert "Traceback" not in text
    return code, text.splitlines()[-1] if text else ""


def test_a_checkpoint_that_does_not_fit(disk, tmp_path, whole):
    """The disk is full after step 3, so checkpoint 4 cannot be written: it leaves nothing, and checkpoint 2 is where to go on."""
    code, sentence = failed(disk / "run", tmp_path / "errors", "FillsDisk")
    assert code == 2
    assert sentence == (
        f"StorageError: args.output_dir: {disk}/run/checkpoint-4 could not be written (No space left on device); checkpoint-2 is whole, "
        f"continue with --resume-from {disk}/run/checkpoint-2."
    )
    assert [p.name for p in checkpoint.list_checkpoints(disk / "run")] == ["checkpoint-2"]
    assert not list((disk / "run").glob(".partial-*"))
    (disk / "filler").unlink()
    assert run("plain", disk / "run", resume=True) == 0
    assert_same_run(whole / "2", disk / "run")


def test_without_checkpoints_the_space_for_the_models_was_reserved(disk, tmp_path, whole):
    """Full from step 3 to the end, and nothing is lost: models, and lines of the log."""
    code, sentence = failed(disk / "run", tmp_path / "errors", "FillsDisk", save_steps=0)
    assert (code, sentence) in ((0, sentence), (2, sentence))
    assert (disk / "run" / "policy" / "model.safetensors").read_bytes() == (whole / "0" / "policy" / "model.safetensors").read_bytes()
    if code:  # what was reserved is for the models; lines of the log go in what they leave
        assert "lacks its last" in sentence
    else:
        assert_same_run(whole / "0", disk / "run")


def test_without_the_reserve_the_models_go_elsewhere(disk, tmp_path, whole):
    code, sentence = failed(disk / "run", tmp_path / "errors", "FillsReserve", save_steps=0)
    assert code == 2
    place = re.fullmatch(
        rf"StorageError: args\.output_dir: {disk}/run/policy could not be written \(No space left on device\); the models were saved to "
        r"(\S+) instead, move them from there\.",
        sentence,
    )
    assert place is not None, sentence
    saved, expected = (sorted(os.listdir(path)) for path in (f"{place[1]}/policy", whole / "0" / "policy"))
    assert saved == expected
    for name in expected:
        assert (whole / "0" / "policy" / name).read_bytes() == open(f"{place[1]}/policy/{name}", "rb").read(), name  # noqa: SIM115


@pytest.mark.parametrize("freed", [True, False])
def test_lines_of_the_log_wait_for_room(disk, capsys, freed):
    """They are whole, in order, and told of once; at the end those that still wait are an error."""
    log, texts = RunLog(disk, 0), ["x" * 3000, "y" * 6000, "z" * 9000, "short"]
    log.write(1, {"text": texts[0]}, {"seconds": 1.0})
    FillsDisk(disk / "run").fill()
    log.write(2, {"text": texts[1]}, {"seconds": 1.0})
    log.write(3, {"text": texts[2]}, {"seconds": 1.0})
    assert (disk / "log.jsonl").read_text().count("\n") == 1
    assert capsys.readouterr().err == (
        f"note: {disk}/log.jsonl cannot be written (No space left on device); the run goes on, and its lines wait for room\n"
    )
    if freed:
        (disk / "filler").unlink()
        log.write(4, {"text": texts[3]}, {"seconds": 1.0})
        log.close()
        assert [line["text"] for line in read(disk)] == texts
    else:
        with pytest.raises(
            StorageError, match=r"log\.jsonl lacks its last 2 lines \(No space left on device\); all else of the run is saved"
        ):
            log.close()


def test_a_run_whose_models_will_not_fit_is_refused_before_its_first_step(disk, tmp_path):
    with (disk / "filler").open("wb") as file:
        file.write(b"x" * (free(disk) - 2**17))
    code, sentence = failed(disk / "run", tmp_path / "errors", None, save_steps=0)
    assert code == 2
    assert re.fullmatch(
        rf"StorageError: args\.output_dir: {disk}/run lacks the [\d,]+ bytes that will be written at the end \(No space left on device\); "
        r"make room, or give another folder\.",
        sentence,
    )
    assert [name for name in os.listdir(disk / "run") if not name.startswith(".lock")] == []

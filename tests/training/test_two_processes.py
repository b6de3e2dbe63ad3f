"""Whole runs on two gloo processes, with whole weights (ddp) and with sharded ones (fsdp), are the run of one process."""

import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from helpers import gloo
from helpers.runs import write
from helpers.two_process_runs import KINDS, ROWS, RUNS, UPDATES, WORLD, run, trained, updated, weights
from safetensors.torch import load_file

from advalign import TrainingArguments
from advalign.errors import ConfigError
from advalign.models import load
from advalign.objectives.gradient_penalty import GradientPenalty
from advalign.training import distributed

pytestmark = pytest.mark.slow

TOLERANCE = 1e-10  # float64; AdamW divides by the root of a second moment, which magnifies the last bits of a small gradient


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The folder into which both processes wrote."""
    return gloo.start(run, tmp_path_factory.mktemp("processes"), ["advalign.training.trainer"])


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict:
    """{run: (trainer, log, texts)} of this process."""
    folder = tmp_path_factory.mktemp("alone")
    return {name: trained(name, folder / name) for name in RUNS}


def assert_close(tensors: dict, want: dict, tolerance: float = TOLERANCE) -> None:
    assert tensors.keys() == want.keys()
    for name, x in want.items():
        assert float((tensors[name] - x).abs().max()) <= tolerance, name


def read_notes(folder: Path, kind: str, name: str, run_name: str) -> tuple[dict, dict]:
    """(weights, log and texts) of one process."""
    at = folder / kind / name / "found"
    return load_file(at / f"{run_name}.safetensors"), json.loads((at / f"{run_name}.json").read_text())


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_end_where_one_does(folder, alone, kind, name):
    trainer, history, texts = alone[name]
    for rank in range(WORLD):
        ended, notes = read_notes(folder, kind, name, f"whole-{rank}")
        assert_close(ended, weights(trainer))
        assert notes["texts"] == texts  # sampled by both, each prompt by one
        for single, logged in zip(history, notes["log"], strict=True):
            assert logged.pop("stage") == single["stage"]
            assert logged == pytest.approx({k: v for k, v in single.items() if k != "stage"}, rel=1e-6, abs=1e-9)
    start = dict(trained_start(name))
    moved = max(float((x - start[k]).abs().max()) for k, x in weights(trainer).items())
    assert moved > 1e-3  # it was a run


def trained_start(name):
    trainer = RUNS[name](args=TrainingArguments(max_steps=1))
    trainer.start()
    return weights(trainer)


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_ends_with_the_same_bits(folder, kind, name):
    for rank in range(WORLD):
        uninterrupted, again = (read_notes(folder, kind, name, f"{run_name}-{rank}")[0] for run_name in ("whole", "again"))
        assert all(torch.equal(uninterrupted[k], again[k]) for k in uninterrupted)
    log, resumed = ((folder / kind / name / run_name / "log.jsonl").read_text().splitlines() for run_name in ("whole", "again"))
    assert [json.loads(line)["step"] for line in log] == [1, 2, 3]  # one process writes
    assert resumed == log[2:]


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("kind", KINDS)
def test_one_process_goes_on_from_what_two_have_saved(folder, alone, kind, name):
    trainer, _, _ = trained(name, folder / kind / name / "alone", resume=True)
    assert trainer.step == 3
    assert_close(weights(trainer), weights(alone[name][0]))


@pytest.mark.parametrize("kind", KINDS)
def test_the_saved_model_is_whole(folder, alone, kind):
    network = load(str(folder / kind / "mixed" / "whole" / "policy"), dtype="float64")
    single = {f"policy.{k}": p.detach() for k, p in network.named_parameters()}
    assert_close(single, {k: x for k, x in weights(alone["mixed"][0]).items() if k.startswith("policy.")})


def test_a_sharded_checkpoint_holds_every_row_once(folder, alone):
    saved = folder / "fsdp" / "mixed" / "whole" / "checkpoint-3"
    parts = [load_file(saved / f"learner.policy.{rank:05d}-of-00002.safetensors") for rank in range(WORLD)]
    want = alone["mixed"][0].learners["policy"]
    for name, p in want.network.named_parameters():
        for key, x in {"weight": p.detach(), **want.optimizer.optimizer.state[p]}.items():
            if x.ndim:
                torch.testing.assert_close(torch.cat([part[f"{key}/{name}"] for part in parts]), x, rtol=0, atol=TOLERANCE)
    assert not list(saved.glob("*.metadata"))
    assert not (saved / "learner.policy.safetensors").exists()


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", UPDATES)
@pytest.mark.parametrize("kind", KINDS)
def test_inner_loops_do_not_know_how_many_they_are(folder, tmp_path, kind, name, rows):
    want, logs = updated(name, tmp_path, ROWS[rows])
    for rank in range(WORLD):
        at = folder / "inner" / f"{kind}-{rank}-{rows}"
        assert_close(load_file(at / f"{name}.safetensors"), want)
        assert json.loads((at / f"{name}.json").read_text()) == pytest.approx(logs, rel=1e-7, abs=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_low_precision_runs(folder, kind):
    ended, notes = read_notes(folder, kind, "mixed", "low-0")
    assert all(bool(x.isfinite().all()) for x in ended.values())
    assert len(notes["log"]) == 2
    other, _ = read_notes(folder, kind, "mixed", "low-1")
    assert all(torch.equal(ended[k], other[k]) for k in ended)


def test_what_cannot_be_spread_is_refused():
    with pytest.raises(ConfigError, match=r"args\.distributed: .*'fdsp'.*Did you mean 'fsdp'"):
        TrainingArguments(distributed="fdsp")
    with pytest.raises(ConfigError, match=r"objectives\.slope: GradientPenalty differentiates twice"):
        distributed.check(2, True, {}, {"slope": GradientPenalty(source="contrast")})
    distributed.check(2, False, {}, {"slope": GradientPenalty(source="contrast")})
    with pytest.raises(ConfigError, match=r"sources\.write\.ahead: 1 given, and 2 processes"):
        distributed.check(2, False, {"write": write(ahead=1)}, {})
    assert distributed.sharding(Accelerator(), TrainingArguments(distributed="fsdp")) is None  # one process holds everything

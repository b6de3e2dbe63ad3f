"""Two gloo processes on CPU that share the rows of an update: the summed gradient and the logs are those of one process."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import gloo
from helpers.shared_update import CASES, WORLD, num_micros, run, skipped, update
from safetensors.torch import load_file

pytestmark = pytest.mark.slow  # both ranks wait until one fresh interpreter has imported everything


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The folder into which both ranks wrote."""
    return gloo.start(run, tmp_path_factory.mktemp("ranks"), ["advalign.engine.learner"])


def test_the_cases_are_what_their_names_say():
    counts = {name: num_micros(case) for name, case in CASES.items()}
    assert counts["one micro-batch each"] == (1, 1)
    assert counts["two each"] == (2, 2)
    assert counts["one and none"] == (1, 0)
    assert counts["two and one"] == (2, 1)
    assert counts["views on some micro-batches"] == (4, 4)


def test_a_mean_of_local_means_would_be_wrong():
    # Counts differ between the halves: each alone, averaged, is far from the update. So the next test says something.
    case = replace(CASES["one micro-batch each"], measure=False)
    gradient = update(case)[0]
    local = sum(update(case, rank)[0] for rank in range(WORLD)) / WORLD
    assert float((local - gradient).abs().max() / gradient.abs().max()) > 1e-2


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_have_the_gradient_of_one(folder, name):
    want, _ = update(replace(CASES[name], budget=10_000))
    for rank in range(WORLD):
        gradient = load_file(folder / f"{name}-{rank}.safetensors")["gradient"]
        torch.testing.assert_close(gradient, want, rtol=0, atol=1e-12)
    assert float(want.abs().max()) > 0.1


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_log_what_one_does(folder, name):
    _, want = update(replace(CASES[name], budget=10_000))
    for rank in range(WORLD):
        logs = json.loads((folder / f"{name}-{rank}.json").read_text())
        assert logs == pytest.approx(want, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_both_ranks_skip_an_update_that_is_not_finite_on_one(folder, bad):
    found = [json.loads((folder / f"skipped-{bad}-{rank}.json").read_text()) for rank in range(WORLD)]
    assert found[0] == found[1]
    reason = "objectives.imitate has loss nan (sources.chat: row 1)" if bad == "loss" else "the gradient of objectives.imitate has norm nan"
    counts = {"policy/nonfinite": reason, "policy/num_nonfinite_updates": 1.0}
    counts |= {"imitate/num_nonfinite_losses": 1.0} if bad == "loss" else {}
    assert found[0]["decisions"] == [[0, 1, False, counts], [1, 0, True, {}]]
    assert found[0]["weights"] == pytest.approx(skipped(bad)["weights"], abs=1e-9)

"""Everything on a device that is not the CPU: no tensor stays on the wrong device, and all results equal those of the CPU.

No GPU is needed: the device is `helpers/second_device.py`, whose tensors refuse operations with those of the CPU. In its own process,
because the device cannot be removed from a process.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.utils.backend_registration as registration

HERE = Path(__file__).parent
GROUPS = {"run": 1e-10, "adversary": 1e-10, "objective": 1e-12, "attack": 1e-3, "other": 1e-8, "refusals": 0.0}  # attacks in float32
pytestmark = pytest.mark.skipif(
    not hasattr(registration, "_setup_privateuseone_for_python_backend"), reason="this torch has no devices written in Python"
)


@pytest.fixture(scope="module")
def distances(tmp_path_factory):
    folder = tmp_path_factory.mktemp("second_device")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])}
    command = [sys.executable, "-m", "helpers.second_device_runs", str(folder)]
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-2000:]
    return json.loads((folder / "distances.json").read_text())


@pytest.mark.parametrize("group", GROUPS)
def test_results_equal_those_of_the_cpu(distances, group):
    of_group = {name: distance for name, distance in distances.items() if name.split()[0] == group}
    assert of_group
    assert {n: d for n, d in of_group.items() if not isinstance(d, float) or d > GROUPS[group]} == {}


def test_every_plugin_is_covered(distances):
    """A new objective, adversary or attack adds itself to the table."""
    assert set(GROUPS) == {name.split()[0] for name in distances}
    assert sum(name.startswith("objective") for name in distances) > 70
    assert sum(name.startswith("attack") for name in distances) > 15

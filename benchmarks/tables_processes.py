"""The table of benchmarks/processes.py, for benchmarks/tables.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NAMES = {"ddp": "two processes, `ddp`", "fsdp": "two processes, `fsdp`"}


def processes(found: Mapping[str, Any]) -> str:
    rows = ["| | greatest difference of gradients | of weights after 3 updates | s per update |", "|---|---:|---:|---:|"]
    rows.append(f"| one process | | | {found['one']['seconds_per_update']['median']:.2f} |")
    for kind, name in NAMES.items():
        apart = [f"{found[kind][what]['greatest_difference']:.1e}" for what in ("gradient", "weight")]
        rows.append(f"| {name} | {apart[0]} | {apart[1]} | {found[kind]['seconds_per_update']['median']:.2f} |")
    return "\n".join(
        [
            f"**Two processes beside one** (`{found['command']}`; {found['what']}; differences in float64, of gradients up to "
            f"{found['ddp']['gradient']['greatest_value']:.2g}; times in float32, medians, one after the other on a busy machine, load "
            f"{found['load_average']}: {found['note']}).",
            "",
            *rows,
        ]
    )

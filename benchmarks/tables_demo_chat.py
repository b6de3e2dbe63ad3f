"""The table of benchmarks/demo_chat.py, for benchmarks/tables.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def demo_chat(found: Mapping[str, Any]) -> str:
    """Rates before and after, with their intervals."""
    rows = ["| held-out prompts | number | before | after |", "|---|---:|---:|---:|"]
    for row in found["summary"]:
        cells = (f"{row[side]:.2f} [{row[f'{side} low']:.2f}, {row[f'{side} high']:.2f}]" for side in ("before", "after"))
        rows.append(f"| {row['measure']} | {row['prompts']} | {' | '.join(cells)} |")
    data = found["data"]
    return "\n".join(
        [
            f"**A chat model before and after one mixed step** (`{found['command']}`; SmolLM2-135M-Instruct with LoRA adapters, one run of "
            f"{found['steps']} steps, {found['cpu_seconds'] / 60:.0f} CPU-minutes with both measurements; problems: {data['problems']}; "
            f"requests: {data['requests']}; greedy answers, 95 % Wilson intervals).",
            "",
            *rows,
        ]
    )

"""The table of benchmarks/async_rollouts.py, for benchmarks/tables.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def async_rollouts(found: Mapping[str, Any]) -> str:
    model = found["model"]
    rows = [
        "| engine | sampling, s | step, s | step with `ahead: 1`, s | ratio (least to most) | bound |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, row in found["engines"].items():
        waits, beside = row["ahead 0"], row["ahead 1"]
        times = f"{waits['sampling_seconds']:.2f} | {waits['step_seconds']:.2f} | {beside['step_seconds']:.2f}"
        rows.append(
            f"| {name} | {times} | {row['ratio']:.2f} ({min(row['ratios']):.2f} to {max(row['ratios']):.2f}) | {row['bound']:.2f} |"
        )
    return "\n".join(
        [
            f"**Sampling beside the update** (`{found['command']}`; a causal LM of {model['parameters'] / 1e6:.1f} million parameters, "
            f"{model['prompts']} prompts with {model['responses']} responses of {model['new_tokens']} tokens; "
            f"{found['machine']['cpu_count']} hardware threads on which {found['load']:.1f} processes wanted to run, these included; "
            f"medians over {found['repeats']} alternated runs of each kind, a ratio is of two runs that follow each other; bound: the "
            "longer of sampling and the rest, over both).",
            "",
            *rows,
        ]
    )

"""The tables and plots of benchmarks/speed.py, for benchmarks/tables.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def grpo(found: Mapping[str, Any]) -> str:
    parts = {name.removeprefix("grpo "): part for name, part in found["parts"].items() if name.startswith("grpo ")}
    rows = [
        "| setting | advalign, s | plain loop, s | TRL, s | to the plain loop | to TRL | asked for |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, part in parts.items():
        times = " | ".join(f"{part[side]['seconds']:.2f}" for side in ("advalign", "plain", "trl"))
        rows.append(f"| {name} | {times} | {part['ratio_to_plain']:.2f} | {part['ratio_to_trl']:.2f} | {part['goal_to_trl']:.1f} |")
    return "\n".join(
        [
            f"**A GRPO step, rollouts included** (`{found['command']}`; TRL {found['versions'].get('trl')}, a causal LM of 10 million "
            f"parameters, 8 prompts with 8 responses, one update, AdamW, float32, one thread, medians of {found['repeats']} alternated "
            "steps; prompts of 40 tokens and 128 new ones; the same with ends after a quarter on average; 200 tokens and 64 new ones. All "
            "sides sample the same number of tokens).",
            "",
            *rows,
        ]
    )  # fmt: skip


def memory(found: Mapping[str, Any]) -> str:
    part = found["parts"]["memory"]
    body = part["body"][0]["peak_mb"]
    rows = ["| vocabulary | blocks alone, MB | fused, MB | to the blocks | naive, MB | to the blocks |", "|---:|---:|---:|---:|---:|---:|"]
    for i, size in enumerate(part["vocabularies"]):
        fused, naive = part["fused"][i]["peak_mb"], part["naive"][i]["peak_mb"]
        rows.append(f"| {size:,} | {body:.0f} | {fused:.0f} | {fused / body:.2f} | {naive:.0f} | {naive / body:.2f} |")
    return "\n".join(
        [
            f"**Peak memory of a forward and backward with log-probabilities and entropy** (`{found['command']}`; {part['tokens']:,} "
            f"tokens through {part['blocks']} blocks of {part['width']} features, float32, a process per case; weights, and the gradients "
            "that any method needs, taken off).",
            "",
            *rows,
        ]
    )


def mixed(found: Mapping[str, Any]) -> str:
    part = found["parts"]["mixed"]
    rows = ["| trainer | s per step | peak, MB |", "|---|---:|---:|"]
    for name, row in part["seconds"].items():
        rows.append(f"| {name} | {row['seconds']:.2f} | {part['peak_mb'][name]:.0f} |")
    return "\n".join(
        [
            f"**The mixed step against the same terms in trainers of their own** (`{found['command']}`; GRPO on 64 responses, SFT under "
            f"PGD-2 on 32 demonstrations, a discriminator; medians of {found['repeats']} alternated steps; peaks of a process each, "
            "what is imported taken off).",
            "",
            *rows,
            "",
            f"Three trainers take {part['separate_over_mixed']:.2f} times as long as the mixed step, and "
            f"{part['separate_peaks_over_mixed']:.2f} times its memory if they run side by side.",
        ]
    )


def share(found: Mapping[str, Any]) -> str:
    limits, part = found["parts"]["floor"], found["parts"]["share"]
    rows = [
        "| setting | s | compute-bound at best, s | bandwidth-bound at best, s | share of the larger bound |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, row in part.items():
        if isinstance(row, dict):
            rows.append(f"| {name} | {row['seconds']:.2f} | {row['compute']:.2f} | {row['bandwidth']:.2f} | {row['share']:.0%} |")
    return "\n".join(
        [
            f"**Sampling beside the machine's own limits** (`{found['command']}`; a product of matrices reaches "
            f"{limits['flops_per_second'] / 1e9:.0f} GFLOP/s and a copy {limits['bytes_per_second'] / 1e9:.1f} GB/s here, one thread; "
            "measured again before every run).",
            "",
            *rows,
        ]
    )  # fmt: skip


def compiled(found: Mapping[str, Any]) -> str:
    part = {name: row for name, row in found["parts"]["compiled"].items() if isinstance(row, dict)}
    rows = ["| step | plain, s | compiled, s | ratio | extra in the first two steps, s |", "|---|---:|---:|---:|---:|"]
    for name, row in part.items():
        plain, fast = (row["seconds"][side]["seconds"] for side in ("plain", "compiled"))
        rows.append(f"| {name} | {plain:.2f} | {fast:.2f} | {row['ratio']:.2f} | {row['extra']:.0f} |")
    repeats = len(next(iter(part.values()))["seconds"]["plain"]["all"])
    return "\n".join(
        [
            f"**Compiled blocks** (`{found['command']}`; the policy of the mixed step with `options: {{compile: true}}` and without, one "
            f"thread, medians of {repeats} alternated steps; sampling is never compiled).",
            "",
            *rows,
        ]
    )


def smollm(found: Mapping[str, Any]) -> str:
    """The table of benchmarks/smollm_speed.py."""
    names = ("transformers and peft", "advalign")
    rows = ["| task | tokens | as transformers and peft, s | advalign, s | ratio |", "|---|---:|---:|---:|---:|"]
    for task, row in found["tasks"].items():
        seconds = " | ".join(f"{row[name]:.2f}" for name in names)
        rows.append(f"| {task} | {row['tokens']:,} | {seconds} | {row['ratio']:.2f} |")
    return "\n".join(
        [
            f"**SmolLM2-135M-Instruct on a processor** (`{found['command']}`; {found['dtype']} with LoRA of rank 16, one thread, medians "
            f"of {found['repeats']} alternated runs, processor time; first side: attention of transformers, adapters multiplied by peft in "
            "float32, all rows of probabilities drawn at once, every row of the responses whole).",
            "",
            *rows,
        ]
    )


SECTIONS = {
    "speed_grpo": (grpo, "grpo fixed length"),
    "speed_memory": (memory, "memory"),
    "speed_mixed": (mixed, "mixed"),
    "speed_share": (share, "share"),
    "speed_compiled": (compiled, "compiled"),
}


def plots(found: Mapping[str, Any], drawing: Any) -> dict[str, str]:
    """{name of the file: plot} of what a step costs as it grows."""
    part = found["parts"].get("growth")
    if part is None:
        return {}
    curves = {name: ([v for v, _ in rows], [s for _, s in rows]) for name, rows in part.items() if isinstance(rows, list)}
    names = list(curves)
    pairs = {"speed_rollouts": names[:2], "speed_terms": names[2:]}
    return {
        file: drawing.lines({n: curves[n] for n in chosen}, x_label="how many", y_label="seconds per step", key=file)
        for file, chosen in pairs.items()
    }

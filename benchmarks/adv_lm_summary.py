"""What benchmarks/adv_lm.py says of its runs: shares with intervals, differences to plain SFT, a line for the log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from common import paired

from advalign.functional.intervals import wilson


def rate(values: Sequence[int]) -> dict[str, Any]:
    """A share with its Wilson interval."""
    low, high = wilson(sum(values), len(values))
    return {"rate": sum(values) / len(values), "low": low, "high": high, "n": len(values)}


def rates(found: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, Any]:
    """{name: pooled over seeds, and by seed}."""
    return {name: rate([v for f in found for v in f[name]]) | {"seeds": [rate(f[name]) for f in found]} for name in found[0]}


def summary(found: Sequence[Mapping[str, Any]], plain: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One arm, over seeds; `minus_sft` is paired over requests, each averaged over seeds, and stands seed by seed beside."""
    return {
        **{name: rates([f[name] for f in found]) for name in ("violated", "fluent", "kept", "refused", "helped")},
        "minus_sft": {name: minus(found, plain, name) for name in found[0]["violated"]},
        "any_attack": rate([int(any(values)) for f in found for values in _by_prompt(f["violated"])]),
        "perplexity": {name: [f["perplexity"][name] for f in found] for name in found[0]["perplexity"]},
        "cpu_seconds_per_step": sum(f["cpu_seconds_per_step"] for f in found) / len(found),
        "said": {name: texts[:2] for name, texts in found[0]["said"].items()},
    }


def minus(found: Sequence[Mapping[str, Any]], plain: Sequence[Mapping[str, Any]], attack: str) -> dict[str, Any]:
    """Violations of one arm less those of another under one attack."""
    first, second = ([f["violated"][attack] for f in side] for side in (found, plain))
    by_seed = [(sum(a) - sum(b)) / len(a) for a, b in zip(first, second, strict=True)]
    return paired(_over_seeds(first), _over_seeds(second)) | {"by_seed": by_seed}


def _over_seeds(values: Sequence[Sequence[int]]) -> list[float]:
    return [sum(scores) / len(scores) for scores in zip(*values, strict=True)]


def _by_prompt(violated: Mapping[str, Sequence[int]]) -> list[tuple[int, ...]]:
    """Over the prompts that every attack was run on."""
    number = min(len(values) for values in violated.values())
    return list(zip(*(values[:number] for values in violated.values()), strict=True))


def show(name: str, found: Mapping[str, Any]) -> None:
    """One line per run, for the log."""
    parts = [f"{k} {sum(v) / len(v):.2f}({sum(found['fluent'][k]) / len(v):.2f})" for k, v in found["violated"].items()]
    parts += [f"{what}_{k} {sum(v) / len(v):.2f}" for what in ("refused", "helped") for k, v in found[what].items()]
    parts += [f"ppl_{k} {v:.2f}" for k, v in found["perplexity"].items()]
    print(f"{name}: {', '.join(parts)}, {found['cpu_seconds_per_step']:.2f} s/step", flush=True)

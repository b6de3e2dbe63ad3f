"""What benchmarks/stories.py found, arm by arm, for benchmarks/results/stories.json."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import about, mean_sd, paired, save
from stories_arms import ARMS, DISTILLED
from stories_models import MODELS, Run

RATES = ("compliance", "words", "length", "sentence", "unique", "self_bleu", "num_words")
LABELS = {"gapo": {name: arm.label for name, arm in ARMS.items()}, "gad": {name: label for name, (label, _) in DISTILLED.items()}}


def collect(seeds: int) -> None:
    """Differences are paired over prompts, each averaged over the seeds that both arms have. A family without a run file stays as the
    results file has it: the two share nothing but the models that they start from."""
    where = Run.out() / "result.json" if Run.smoke else Path("benchmarks/results/stories.json")
    before = json.loads(where.read_text(encoding="utf-8")) if where.exists() else {}
    result: dict[str, Any] = about("make bench-stories") | {"seeds": list(range(seeds))}
    for family, labels in LABELS.items():  # others are compared with the arm that has the name of the family
        runs = {name: found for name in labels if (found := finished(family, name, seeds))}
        if not runs and family in before:
            result[family] = before[family]
        if runs:
            result[family] = {
                name: {"label": labels[name]} | row(found) | gap(runs.get(family), found, name != family) for name, found in runs.items()
            }
    alone = {"teacher": finished("gad", "teacher", 1), "real": lone("real")}
    result |= {name: row(found) if found else before[name] for name, found in alone.items() if found or name in before}
    models = {name: found[0] for name in (*MODELS, *(f"{name}-asked" for name in MODELS)) if (found := lone(name))}
    kept = ("parameters", "train_nll", "cpu_seconds")
    result["models"] = before.get("models", {}) | {name: {k: found[k] for k in kept} for name, found in models.items()}
    arms = [arm for family in LABELS for arm in result.get(family, {}).values()] + [result[name] for name in alone if name in result]
    spent = [seconds for arm in arms for seconds in arm["cpu_seconds"]] + [m.get("cpu_seconds", 0.0) for m in result["models"].values()]
    result["cpu_hours"] = round(sum(spent) / 3600, 3)
    save(where, result)


def finished(family: str, name: str, seeds: int) -> dict[int, dict[str, Any]]:
    files = {seed: Run.out() / f"{family}-{name}-{seed}.json" for seed in range(seeds)}
    return {seed: json.loads(file.read_text(encoding="utf-8")) for seed, file in files.items() if file.exists()}


def lone(name: str) -> dict[int, dict[str, Any]]:
    file = Run.out() / f"{name}.json"
    return {0: json.loads(file.read_text(encoding="utf-8"))} if file.exists() else {}


def row(found: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Every measure over seeds; a prompt without a value leaves its mean."""
    runs = [run["by_prompt"] for run in found.values()]
    values: dict[str, Any] = {"seeds": list(found), "cpu_seconds": [run.get("cpu_seconds") for run in found.values()]}
    values |= {name: mean_sd([mean(run[name]) for run in runs]) for name in RATES if any(v is not None for v in runs[0][name])}
    for name in ("nll", "teacher_nll"):
        if name in runs[0]:
            values[name.replace("nll", "perplexity")] = mean_sd([perplexity(run[name]) for run in runs])
    discriminator = [run.get("discriminator", {}) for run in found.values()]
    values["discriminator"] = {key: mean_sd([j[key] for j in discriminator]) for key in sorted(set.intersection(*map(set, discriminator)))}
    return values | {"said": next(iter(found.values()))["said"]}


def gap(first: Mapping[int, Any] | None, other: Mapping[int, Any], compared: bool) -> dict[str, Any]:
    """The first arm minus this one."""
    both = sorted(set(first or {}) & set(other))
    if not compared or first is None or not both:
        return {}
    found = {}
    for name in RATES:
        sides = [[run[s]["by_prompt"][name] for s in both] for run in (first, other)]
        found[name] = paired(*(averaged(side) for side in sides))
    sides = [[[a / b if b else math.nan for a, b in run[s]["by_prompt"]["nll"]] for s in both] for run in (first, other)]
    found["nll"] = paired(*(averaged(side) for side in sides))
    return {"minus_this": found}


def averaged(runs: Sequence[Sequence[float | None]]) -> list[float]:
    """Prompt by prompt, over seeds; nothing said counts as 0."""
    return [sum(v or 0.0 for v in values) / len(values) for values in zip(*runs, strict=True)]


def perplexity(pairs: Sequence[Sequence[float]]) -> float:
    """exp of the mean of -log p over all tokens."""
    return math.exp(sum(a for a, _ in pairs) / max(sum(b for _, b in pairs), 1))


def mean(values: Sequence[float | None]) -> float:
    known = [v for v in values if v is not None]
    return sum(known) / len(known)

"""The summary of benchmarks/smollm_gapo.py: rates by arm and number of demonstrations, paired differences, and the target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from common import mean_sd, paired

PARTS = ("all", "held-out pairs", "seen pairs")
"""Of the test prompts, by the pair of families of their constraints."""
BASELINE = "frozen_sft"
Cells = Mapping[str, Mapping[str, Any]]


def by_arm(cells: Cells) -> dict[int, dict[str, list[Mapping[str, Any]]]]:
    """{number of demonstrations: {arm: its cells, one per seed}}."""
    arms: dict[int, dict[str, list[Mapping[str, Any]]]] = {}
    for name, cell in cells.items():
        arm, *size, _ = name.split("-")
        arms.setdefault(int(size[0]) if size else 0, {}).setdefault(arm, []).append(cell)
    return arms


def per_prompt(cells: Sequence[Mapping[str, Any]], measure: str = "passed") -> list[float]:
    """A measure by test prompt, the mean over seeds."""
    return [sum(values) / len(values) for values in zip(*(cell["test"][measure] for cell in cells), strict=True)]


def part_of(values: Sequence[float], cell: Mapping[str, Any], part: str) -> list[float]:
    """The values of the test prompts of a part."""
    flags = cell["test"]["held_out"]
    return [value for value, flag in zip(values, flags, strict=True) if part == "all" or bool(flag) == (part == "held-out pairs")]


def rates(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """An arm's numbers, mean and deviation over seeds."""
    row: dict[str, Any] = {"seeds": len(cells), "dev": mean_sd([_mean(cell["dev"]) for cell in cells])}
    for part in PARTS:
        row[part] = mean_sd([_mean(part_of(cell["test"]["passed"], cell, part)) for cell in cells])
    for measure in ("constraints", "unique", "self_bleu", "words", "finished", "nll"):
        row[measure] = mean_sd([_mean(cell["test"][measure]) for cell in cells])
    for measure in ("score", "auc", "text_nll", "answer_nll", "cpu_seconds"):
        if all(cell.get(measure) is not None for cell in cells):
            row[measure] = mean_sd([cell[measure] for cell in cells])
    return row


def differences(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """First minus second, paired over test prompts, seeds averaged."""
    a, b = per_prompt(first), per_prompt(second)
    passed = {part: paired(part_of(a, first[0], part), part_of(b, first[0], part)) for part in PARTS}
    more = {name: paired(per_prompt(first, name), per_prompt(second, name)) for name in ("unique", "self_bleu", "nll")}
    return passed | more


def hacking(cell: Mapping[str, Any], steps: int = 5) -> dict[str, float] | None:
    """How much the discriminator's reward and the rate of verified answers rise from the first to the last steps of the training."""
    curve = cell.get("curve")
    if curve is None:
        return None
    ends = {name: [v for v in curve[name] if v is not None] for name in ("reward", "verified")}
    return {name: _mean(values[-steps:]) - _mean(values[:steps]) for name, values in ends.items() if values}


def summarise(cells: Cells) -> dict[str, Any]:
    """Everything that the tables show. Arms with a seed missing take part with the seeds at hand, where the other arm has the same."""
    arms = by_arm(cells)
    result: dict[str, Any] = {"rates": {}, "differences": {}, "best": {}, "hacking": {}}
    for size, by_name in arms.items():
        rows = result["rates"][str(size)] = {name: rates(group) for name, group in by_name.items()}
        trained = {name: group for name, group in by_name.items() if name not in ("base", "start")}
        rises = {name: [rise for cell in group if (rise := hacking(cell)) is not None] for name, group in trained.items()}
        result["hacking"][str(size)] = {name: values for name, values in rises.items() if values}
        if not trained:
            continue
        best = max(trained, key=lambda name: rows[name]["dev"]["mean"])
        result["best"][str(size)] = {"arm": best, "dev": rows[best]["dev"]["mean"], "test": rows[best]["all"]["mean"]}
        result["differences"][str(size)] = {
            f"{name} - {other}": differences(trained[name], trained[other])
            for name in trained
            for other in ("sft", BASELINE)
            if name != other and other in trained and len(trained[name]) == len(trained[other]) and name != "sft"
        }
    result["target"] = target(result["differences"])
    return result


def target(by_size: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Is GAPO ahead of the frozen discriminator with imitation in one regime, the interval above zero?"""
    pair = f"gapo - {BASELINE}"
    intervals = {size: rows[pair]["all"] for size, rows in by_size.items() if pair in rows}
    return {"reached": any(row["low"] > 0 for row in intervals.values()), "regimes": intervals}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)

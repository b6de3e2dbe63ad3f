"""The summary of benchmarks/smollm_headline.py: rates, differences to every arm, and what mixing bought over the best sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from common import paired
from smollm_headline_measure import ATTACKS, UNSEEN

SEQUENCES = ("adv_then_rl", "rl_then_adv", "alternating")
KINDS = ("right", "form", "solved", *ATTACKS)
COST = ("training_seconds", "sampled_tokens", "trained_tokens", "steps")


def summary(cells: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Of the finished cells; the comparison with the best sequence once all of its arms have the same seeds."""
    arms: dict[str, list[Mapping[str, Any]]] = {}
    for name, cell in cells.items():
        arms.setdefault(name.rpartition("-")[0] or name, []).append(cell)
    content: dict[str, Any] = {"arms": {arm: one_arm(runs) for arm, runs in arms.items()}}
    compared = ("mixed", *SEQUENCES)
    if all(arm in arms and len(arms[arm]) == len(arms["mixed"]) for arm in compared):
        best = best_sequence(arms)
        content |= {"best_sequence": best, "mixed_minus": {arm: minus(arms["mixed"], runs) for arm, runs in arms.items() if arm != "mixed"}}
        gap = content["mixed_minus"][best]["solved + robust"]
        content |= {"target": {"reached": gap["low"] > 0, **gap}, "unseen alone": content["mixed_minus"][best]["solved + robust (unseen)"]}
    return content


def one_arm(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over seeds: rates per split, held-out losses, cost, and the first and last third of the cosines."""
    content: dict[str, Any] = {split: rates([run[split] for run in runs]) for split in ("valid", "test")}
    content |= {name: fmean(run[name] for run in runs) for name in ("answer_nll", "text_nll")}
    content |= {name: fmean(run[name] for run in runs) for name in COST if name in runs[0]}
    cosines = [run["curves"]["cosine"] for run in runs if "cosine" in run.get("curves", {})]
    if cosines:
        content["cosine"] = {"first third": fmean(map(_first, cosines)), "last third": fmean(map(_last, cosines)), "all": cosines}
    return content | {"seeds": len(runs)}


def rates(runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Over problems and seeds; `robust` over attacks, and the sums of solved and robust."""
    values = {kind: fmean(fmean(run[kind]) for run in runs) for kind in KINDS}
    values |= {name: fmean(score) for name, score in scores(runs).items()}
    return {name: round(value, 4) for name, value in values.items()}


def scores(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Per problem, each averaged over seeds."""
    rows = {kind: [fmean(column) for column in zip(*(run[kind] for run in runs), strict=True)] for kind in ("solved", *ATTACKS)}

    def mean(kinds: Sequence[str]) -> list[float]:
        return [fmean(column) for column in zip(*(rows[kind] for kind in kinds), strict=True)]

    robust, unseen = mean(ATTACKS), mean(UNSEEN)
    totals = {"solved + robust": robust, "solved + robust (unseen)": unseen}
    sums = {name: [a + b for a, b in zip(rows["solved"], part, strict=True)] for name, part in totals.items()}
    return {"robust": robust, "robust (unseen)": unseen} | sums


def best_sequence(arms: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """By solved + robust on the validation problems; of equals the first."""
    return max(SEQUENCES, key=lambda arm: fmean(scores([run["valid"] for run in arms[arm]])["solved + robust"]))


def minus(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """first - second on the test problems, paired over problems, each averaged over seeds."""
    sides = [[run["test"] for run in side] for side in (first, second)]
    values = [scores(side) | {kind: _columns(side, kind) for kind in KINDS} for side in sides]
    return {name: paired(values[0][name], values[1][name]) for name in values[0]}


def _columns(runs: Sequence[Mapping[str, Any]], kind: str) -> list[float]:
    return [fmean(column) for column in zip(*(run[kind] for run in runs), strict=True)]


def _first(values: Sequence[float]) -> float:
    return fmean(values[: max(1, len(values) // 3)])


def _last(values: Sequence[float]) -> float:
    return fmean(values[-max(1, len(values) // 3) :])

"""What the cells of benchmarks/smollm_rl.py say together: rates, losses under noise, differences, the choice and the targets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from common import mean_sd, paired
from smollm_rl_noise import FAMILIES, NOISE

from advalign.functional.intervals import wilson

Cells = Sequence[Mapping[str, Any]]

CHOSEN_FROM = ("sft", "grpo", "dapo", "sapo", "grpo_pgd", "grpo_consistency")
ROBUST = ("grpo_pgd", "grpo_consistency")
TRANSFER = ("asdiv", "gsm8k")
TARGET_GAIN, TARGET_SHARE = 0.10, 0.5


def summarise(cells: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Per arm rates over the seeds that are there; differences and targets where both sides are."""
    by_arm: dict[str, list[Mapping[str, Any]]] = {}
    for cell in cells.values():
        by_arm.setdefault(cell["arm"], []).append(cell)
    summary: dict[str, Any] = {"arms": {arm: of_arm(runs) for arm, runs in by_arm.items()}}
    summary["chosen"] = chosen(by_arm)
    summary["differences"] = {
        f"{first} - {second}": difference(by_arm[first], by_arm[second])
        for second in ("start", "sft", "grpo")
        for first in by_arm
        if second in by_arm and first not in ("base", "start", second)
    }
    robust = summary["chosen"].get("robust")
    if robust and "grpo" in by_arm and "start" in by_arm:
        summary["targets"] = targets(by_arm, robust)
    return summary


def of_arm(runs: Cells) -> dict[str, Any]:
    """Means over seeds; the interval of clean accuracy is Wilson's over problems of all seeds."""
    clean = [score for run in runs for score in run["right"]["test"]]
    rates = {name: mean_sd([fmean(run["right"][name]) for run in runs]) for name in runs[0]["right"]}
    row: dict[str, Any] = {
        "seeds": [run["seed"] for run in runs],
        "rates": rates,
        "families": {family: mean_sd([family_rate(run, "test", family) for run in runs]) for family in FAMILIES},
        "noise": mean_sd([noise_rate(run, "test") for run in runs]),
        "loss_under_noise": mean_sd([fmean(run["right"]["test"]) - noise_rate(run, "test") for run in runs]),
        "clean_interval": wilson(sum(clean), len(clean)),
        "pass": {str(k): mean_sd([pass_at(run["solved_of_8"], k) for run in runs]) for k in (1, 4, 8)},
        "entropy": mean_sd([run["entropy"] for run in runs]),
        "perplexity": mean_sd([math.exp(fmean(run["text_nll"])) for run in runs]),
    }
    if "training_seconds" in runs[0]:
        row["training_seconds"] = mean_sd([run["training_seconds"] for run in runs])
        row["tokens"] = {name: fmean(run["tokens"][name] for run in runs) for name in runs[0]["tokens"]}
    if "right_without_shots" in runs[0]:
        row["without_shots"] = fmean(runs[0]["right_without_shots"])
    return row


def family_rate(run: Mapping[str, Any], split: str, family: str) -> float:
    return fmean(fmean(run["right"][f"{split}_{kind}"]) for kind in FAMILIES[family])


def noise_rate(run: Mapping[str, Any], split: str) -> float:
    """Accuracy under noise, each family counting once."""
    return fmean(family_rate(run, split, family) for family in NOISE)


def pass_at(solved: Sequence[int], k: int, n: int = 8) -> float:
    """mean of 1 - C(n - c, k) / C(n, k)   (arXiv:2107.03374, eq. 1)."""
    return fmean(1 - math.comb(n - c, k) / math.comb(n, k) for c in solved)


def chosen(by_arm: Mapping[str, Cells]) -> dict[str, str]:
    """The rule of the script, on validation problems alone; ties: the first."""
    valid = {arm: fmean(fmean(run["right"]["valid"]) for run in runs) for arm, runs in by_arm.items()}
    noisy = {arm: fmean(noise_rate(run, "valid") for run in runs) for arm, runs in by_arm.items()}
    best = [arm for arm in CHOSEN_FROM if arm in by_arm]
    robust = [arm for arm in ROBUST if arm in by_arm]
    choice = {"best": max(best, key=lambda arm: valid[arm])} if best else {}
    return choice | ({"robust": max(robust, key=lambda arm: noisy[arm])} if robust else {})


def per_problem(runs: Cells, names: Sequence[str]) -> list[float]:
    """Outcome of each problem, averaged over kinds and seeds."""
    return [fmean(scores) for scores in zip(*(run["right"][name] for run in runs for name in names), strict=True)]


def noise_per_problem(runs: Cells) -> list[float]:
    families = [per_problem(runs, [f"test_{kind}" for kind in FAMILIES[family]]) for family in NOISE]
    return [fmean(scores) for scores in zip(*families, strict=True)]


def difference(first: Cells, second: Cells) -> dict[str, Any]:
    """first - second, paired over problems; `lost`: of clean minus noisy."""
    result = {name: paired(per_problem(first, [name]), per_problem(second, [name])) for name in ("test", *TRANSFER)}
    sides = (first, second)
    return result | {
        "noise": paired(*(noise_per_problem(side) for side in sides)),
        "lost": paired(*(lost_per_problem(side) for side in sides)),
        "pass@8": paired(*(ever_solved(side) for side in sides)),
    }


def lost_per_problem(runs: Cells) -> list[float]:
    """Clean minus noisy."""
    return [clean - noisy for clean, noisy in zip(per_problem(runs, ["test"]), noise_per_problem(runs), strict=True)]


def ever_solved(runs: Cells) -> list[float]:
    """Whether one of eight samples is right, averaged over seeds."""
    return [fmean(float(count > 0) for count in counts) for counts in zip(*(run["solved_of_8"] for run in runs), strict=True)]


def targets(by_arm: Mapping[str, Cells], robust: str) -> dict[str, Any]:
    """Both targets on test problems. `share`: half of grpo's loss minus the robust arm's; at least 0 reaches the target."""
    gain = difference(by_arm["grpo"], by_arm["start"])["test"]
    losses = {arm: lost_per_problem(by_arm[arm]) for arm in ("grpo", robust)}
    margin = paired([TARGET_SHARE * loss for loss in losses["grpo"]], losses[robust])
    return {
        "gain": gain | {"reached": gain["difference"] >= TARGET_GAIN},
        "robust": {"arm": robust, "loss": fmean(losses[robust]), "loss_grpo": fmean(losses["grpo"]), "margin": margin}
        | {"reached": margin["difference"] >= 0},
    }

"""Word problems before and after the mixed step of configs/mix_mawps.yaml, against the same number of updates of SFT.

For every seed, one run of the configuration up to the end of its SFT stage (`sft`); from that very checkpoint, optimizer and
all, its third stage as written (`mixed`), and a control in which the third stage goes on with SFT on the clean
demonstrations (`control`). Measured on held-out problems by configs/suites/mawps.yaml: exact answers (greedy), pass@8
(sampled), and loss and exact answers when embedding PGD attacks the question.

    python benchmarks/mawps.py           resumable run by run; writes benchmarks/results/mawps.json
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from common import about, cpu_hours, mean_sd, once, paired, save
from prepare_mawps import prepare

from advalign import config as configuration
from advalign.evaluation import Suite
from advalign.functional.intervals import wilson
from advalign.metrics.run_log import read

OUT = Path("out/bench/mawps")
DATA = Path("out/mawps")
CONFIG = "configs/mix_mawps.yaml"
SUITE = "configs/suites/mawps.yaml"
ARMS = ("sft", "control", "mixed")
COPIES = 60


def described(arm: str, seed: int) -> dict[str, Any]:
    """The configuration of an arm. All arms name the same sources, so that all go on from the same checkpoint."""
    folder = OUT / f"model-{arm}-{seed}"
    config = configuration.read(CONFIG, [f"args.seed={seed}", f"args.output_dir={folder}", "args.eval_steps=0"])
    *warm_up, mix = config["stages"]
    last = {"sft": [], "control": [mix | {"name": "control", "objectives": ["imitate"]}], "mixed": [mix]}[arm]
    config["stages"] = [*warm_up, *last]
    config["args"]["save_steps"] = sum(stage["steps"] for stage in warm_up)
    return config


def train(arm: str, seed: int) -> Path:
    """A finished model; `control` and `mixed` start where `sft` of the same seed ended."""
    config = described(arm, seed)
    folder = Path(config["args"]["output_dir"])
    if not (folder / "policy" / "config.json").exists():
        trainer = configuration.trainer(config)
        if arm != "sft":
            trainer.load_checkpoint(OUT / f"model-sft-{seed}" / f"checkpoint-{config['args']['save_steps']}")
        trainer.train(overwrite=True, progress=sys.stderr.isatty())
    return folder


def measure(arm: str, seed: int) -> dict[str, Any]:
    """Numbers of one arm and seed on every held-out problem."""
    from advalign.models import load

    folder = train(arm, seed)
    result = Suite.load(SUITE).run(load(str(folder / "policy")), output_dir=folder / "suite")
    right = {name: float(judgement.correct) for name, judgement in result.before.items()}
    return {
        "arm": arm,
        "seed": seed,
        "accuracy": result.clean["accuracy"],
        "accuracy_interval": wilson(int(sum(right.values())), len(right)),
        "pass@1": result.clean["pass@1"],
        "pass@8": result.clean["pass@8"],
        "unique": result.clean["unique"],
        "entropy": result.clean["entropy"],
        "loss_at_radius": {str(radius): loss for radius, loss in zip(*result.curves("nll")["pgd"], strict=True)},
        "accuracy_at_radius": {str(a.radius): result.row(a)["accuracy under attack"] for a in result.arms},
        "right": right,
        "last_step": {k: v for k, v in read(folder)[-1].items() if isinstance(v, int | float)},
        "warnings": result.warnings(),
    }


def over_seeds(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean, deviation and values of every number."""
    flat = [_flat(run) for run in runs]
    return {name: mean_sd([f[name] for f in flat]) for name in flat[0]}


def compare(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> dict[str, Any]:
    """first - second. Accuracy: paired over held-out problems, each averaged over seeds; all numbers: seed by seed."""
    names = list(first[0]["right"])
    by_problem = [[sum(run["right"][n] for run in side) / len(side) for n in names] for side in (first, second)]
    return {
        "accuracy_over_problems": paired(*by_problem),
        "by_seed": {k: [a[k] - b[k] for a, b in zip(map(_flat, first), map(_flat, second), strict=True)] for k in _flat(first[0])},
    }


def _flat(run: dict[str, Any]) -> dict[str, float]:
    kept = {name: run[name] for name in ("accuracy", "pass@1", "pass@8", "unique", "entropy")}
    loss = {f"loss@{radius}": value for radius, value in run["loss_at_radius"].items()}
    return kept | loss | {f"accuracy@{radius}": value for radius, value in run["accuracy_at_radius"].items()}


def operations() -> dict[str, int]:
    """How the held-out answers are made: what guessing one operation would at most reach."""
    rows = [json.loads(line) for line in (DATA / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    return dict(Counter(next(c for c in row["response"] if c in "+-*/") for row in rows).most_common())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="a quarter of a CPU-hour or less per seed")
    seeds = range(parser.parse_args().seeds)
    torch.set_num_threads(1)
    counts = prepare(Path(os.environ.get("ADVALIGN_DATA", "data")) / "math_mawps", DATA, COPIES)
    runs = {arm: [] for arm in ARMS}
    for seed in seeds:
        for arm in ARMS:
            runs[arm].append(once(OUT / f"{arm}-{seed}.json", lambda arm=arm, seed=seed: measure(arm, seed)))
    everything = [run for found in runs.values() for run in found]
    save(
        "benchmarks/results/mawps.json",
        {
            **about("make bench-mawps"),
            "config": CONFIG,
            "suite": SUITE,
            "seeds": list(seeds),
            "data": counts,
            "held_out_operations": operations(),
            "arms": {arm: over_seeds(found) for arm, found in runs.items()},
            "mixed_minus_sft": compare(runs["mixed"], runs["sft"]),
            "mixed_minus_control": compare(runs["mixed"], runs["control"]),
            "control_minus_sft": compare(runs["control"], runs["sft"]),
            "cpu_hours": cpu_hours(everything),
            "runs": [{k: v for k, v in run.items() if k != "right"} for run in everything],
        },
    )


if __name__ == "__main__":
    main()

"""Preference objectives on one set of pairs: right against wrong answers to two-digit sums, sampled from one SFT checkpoint.

Every objective makes 240 updates of 32 pairs from those very weights, with one learning rate and its default settings; `sft` imitates
the right answers alone. Nothing is tuned per objective. Held out: 200 sums never trained on.

    python benchmarks/preferences.py      after benchmarks/rl.py and rl_claims.py, whose checkpoints and pairs it takes; resumable run by
                                          run; about 0.2 CPU-hours; writes benchmarks/results/preferences.json
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import rl
import rl_claims
import torch
from common import about, cpu_hours, mean_sd, once, save

from advalign import config as configuration
from advalign.metrics.run_log import read

OUT = rl.OUT / "preferences"
SEEDS = (0, 1)
STEPS = 240
ARMS: dict[str, dict[str, Any]] = {
    "sft": {"kind": "sft"},
    "dpo": {"kind": "dpo"},
    "cdpo": {"kind": "dpo", "label_smoothing": 0.1},
    "robust_dpo": {"kind": "dpo", "flip_rate": 0.1},
    "ipo": {"kind": "ipo"},
    "hinge": {"kind": "hinge"},
    "simpo": {"kind": "simpo"},
    "orpo": {"kind": "orpo"},
    "kto": {"kind": "kto"},
}


def data(name: str, seed: int) -> str:
    """The pairs of the offline claim, or each of their sides alone."""
    pairs = rl_claims.OUT / f"pairs-{seed}.jsonl"
    if name not in ("sft", "kto"):
        return str(pairs)
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    sides = {"sft": ("chosen",), "kto": ("chosen", "rejected")}[name]
    single = [{"prompt": r["prompt"], "response": r[side], "label": int(side == "chosen")} for r in rows for side in sides]
    file = OUT / f"{name}-{seed}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(r) + "\n" for r in single))
    return str(file)


def arm(name: str, seed: int) -> dict[str, Any]:
    folder = OUT / f"{name}-{seed}"
    source = {"sft": ("demos", 32), "kto": ("feedback", 64)}.get(name, ("pairs", 32))
    config = {
        "learners": {"policy": {"model": str(rl.OUT / f"base-{seed}" / "policy"), "max_length": 24, "learning_rate": 1.0e-4}},
        "sources": {"answers": {"kind": source[0], "data": data(name, seed), "batch_size": source[1]}},
        "frozen": {"reference": {"learner": "policy"}},
        "objectives": {"prefer": ARMS[name] | {"source": "answers"}},
        "evaluations": {"test": rl.evaluations()["test"]},
        "args": {"max_steps": STEPS, "seed": seed, "output_dir": str(folder)},
    }
    trainer = configuration.trainer(config)
    trainer.train(overwrite=True, progress=False)
    found, log = trainer.evaluate(), read(folder)
    margins = [row["prefer/rewards/margins"] for row in log[-20:] if row.get("prefer/rewards/margins") is not None]
    return {
        "accuracy": found["test/pass@1"],
        "pass@16": found["test/pass@16"],
        "entropy": found["test/entropy"],
        "margin": sum(margins) / len(margins) if margins else None,
    }


def one(job: tuple[str, int]) -> dict[str, Any]:
    torch.set_num_threads(1)
    name, seed = job
    return once(OUT / f"{name}-{seed}.json", lambda: arm(name, seed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    jobs = [(name, seed) for seed in SEEDS for name in ARMS]
    with ProcessPoolExecutor(args.processes, mp_context=get_context("spawn")) as pool:
        runs = dict(zip(jobs, pool.map(one, jobs), strict=True))
    base = [json.loads((rl.OUT / f"base-{seed}.json").read_text()) for seed in SEEDS]
    arms = {
        name: {k: mean_sd([runs[name, s][k] for s in SEEDS]) for k in ("accuracy", "pass@16", "entropy")}
        | {"margin": [runs[name, s]["margin"] for s in SEEDS]}
        for name in ARMS
    }
    start = {k: mean_sd([b[f"test/{k}"] for b in base]) for k in ("pass@1", "pass@16", "entropy")}
    head = about("python benchmarks/preferences.py") | {"seeds": list(SEEDS), "updates": STEPS, "base": start}
    save("benchmarks/results/preferences.json", head | {"arms": arms, "cpu_hours": cpu_hours(list(runs.values()))})


if __name__ == "__main__":
    main()

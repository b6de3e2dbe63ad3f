"""Every policy algorithm on two-digit addition, from one SFT checkpoint per seed, with one rollout budget.

A causal LM from scratch (two layers, characters) is trained by SFT until it answers about a third of held-out sums; every
algorithm goes on from those very weights: 60 draws of 16 prompts x 8 responses, eight updates per draw (four minibatches, twice), the
same learning rate and gradient clip. The learning rate was chosen with GRPO on seed 0 (of 3e-4, which unlearns, and 1e-4); nothing is
tuned per algorithm: settings are the published defaults where they are free of scale, so the table says how defaults compare here,
not how good an algorithm can be made. Held out: 200 sums never trained on (pass@1, pass@16); out of
distribution: 50 sums of longer numbers.

    python benchmarks/rl.py                       resumable run by run; at most 3 CPU-hours; writes benchmarks/results/rl.json
    python benchmarks/rl.py --only grpo,dapo      some of it; --seeds 1; --processes 2
"""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from common import about, cpu_hours, mean_sd, once, save

from advalign import config as configuration
from advalign.metrics.run_log import read

OUT = Path("out/bench/rl")
SEEDS = (0, 1, 2)
TASK = {"task": {"kind": "arithmetic", "digits": 2}}
DRAWS = 60
SFT_STEPS = 350
WATCHED = ("clip_fraction", "ratio_variance", "zero_signal", "informative", "batches_per_draw")


def policy(**more: Any) -> dict[str, Any]:
    """The learner; characters, so that a number is a sequence."""
    tokenizer = {"kind": "characters", "data": TASK}
    model = {"model": "scratch:tiny-gpt2?initializer_range=0.05", "tokenizer": tokenizer, "max_length": 24}
    return model | {"learning_rate": 1.0e-4, "minibatches": 4, "epochs": 2} | more


def evaluations() -> dict[str, Any]:
    sampled = {"data": TASK, "samples": 16, "sampling": {"max_new_tokens": 6}}
    return {"test": sampled | {"split": "test", "number": 200}, "ood": sampled | {"split": "ood", "number": 50}}


def base(seed: int) -> dict[str, Any]:
    """SFT, and what it is worth. Its weights are every algorithm's start."""
    folder = OUT / f"base-{seed}"
    config = {
        "learners": {"policy": policy(learning_rate=1.0e-3, minibatches=1, epochs=1)},
        "sources": {"demos": {"kind": "demos", "data": TASK | {"number": 2000}, "batch_size": 64, "seed": seed}},
        "objectives": {"imitate": {"kind": "sft", "source": "demos"}},
        "evaluations": evaluations(),
        "args": {"max_steps": SFT_STEPS, "seed": seed, "output_dir": str(folder)},
    }
    trainer = configuration.trainer(config)
    trainer.train(overwrite=True, progress=False)
    return trainer.evaluate()


GROUP = {"kind": "group"}
CENTRED = {"kind": "group", "scale": "none"}
LENGTH = 6

# name: (objectives of the policy, fields of the source, other sections)
Arm = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]
CRITIC: dict[str, Any] = {
    "learners": {"critic": policy(head="value", learning_rate=1.0e-3)},
    "objectives": {"critic": {"kind": "value", "learner": "critic"}},
}
GAE = {"advantage": {"kind": "gae"}}
ARMS: dict[str, Arm] = {
    "reinforce": ({"kind": "reinforce"}, {"advantage": CENTRED}, {}),
    "rloo": ({"kind": "ppo"}, {"advantage": {"kind": "leave_one_out"}}, {}),
    "reinforce_pp": ({"kind": "ppo"}, {"advantage": {"kind": "reinforce_pp"}}, {}),
    "reinforce_pp_baseline": ({"kind": "ppo"}, {"advantage": {"kind": "reinforce_pp", "baseline": "group"}}, {}),
    "remax": ({"kind": "ppo"}, {"advantage": {"kind": "remax"}}, {}),
    "opo": ({"kind": "ppo"}, {"advantage": {"kind": "opo"}}, {}),
    "max_rl": ({"kind": "ppo"}, {"advantage": {"kind": "max_rl"}}, {}),
    "pass_at_k": ({"kind": "ppo"}, {"advantage": {"kind": "pass_at_k"}}, {}),
    "ppo": ({"kind": "ppo"}, GAE, CRITIC),
    "ppo_dual_clip": ({"kind": "ppo", "dual_clip": 3.0}, GAE, CRITIC),
    "grpo": ({"kind": "grpo"}, {"advantage": GROUP}, {}),
    "dr_grpo": ({"kind": "dr_grpo", "length": LENGTH}, {"advantage": CENTRED}, {}),
    "dapo": ({"kind": "dapo"}, {"advantage": GROUP, "dynamic": {"max_batches": 3}}, {}),
    "dapo_no_refill": ({"kind": "dapo"}, {"advantage": GROUP}, {}),
    "gspo": ({"kind": "gspo"}, {"advantage": GROUP}, {}),
    "gspo_token": ({"kind": "gspo", "form": "token"}, {"advantage": GROUP}, {}),
    "sapo": ({"kind": "sapo"}, {"advantage": GROUP}, {}),
    "cispo": ({"kind": "cispo"}, {"advantage": GROUP}, {}),
    "gmpo": ({"kind": "gmpo"}, {"advantage": GROUP}, {}),
    "clip_cov": ({"kind": "clip_cov", "share": 0.002}, {"advantage": GROUP}, {}),
    "kl_cov": ({"kind": "kl_cov"}, {"advantage": GROUP}, {}),
    "high_entropy": ({"kind": "dapo", "top_entropy": 0.2}, {"advantage": GROUP}, {}),
    "psr": ({"kind": "ppo"}, {"advantage": {"kind": "signed", "positive": 1.0, "negative": 0.0}}, {}),
    "nsr": ({"kind": "ppo"}, {"advantage": {"kind": "signed", "positive": 0.0, "negative": 1.0}}, {}),
    "w_reinforce": ({"kind": "ppo"}, {"advantage": {"kind": "signed"}}, {}),
    "luffy": ({"kind": "luffy", "length": LENGTH}, {"advantage": CENTRED, "group_size": 7, "demonstrations": {"number": 1}}, {}),
    "hpt": (
        {"kind": "dr_grpo", "length": LENGTH},
        {"advantage": CENTRED, "demonstrations": {"gate": 0.0}},
        {"objectives": {"imitate": {"kind": "sft"}}},
    ),
}


def described(name: str, seed: int, folder: Path, model: str | None = None) -> dict[str, Any]:
    """The whole configuration of an arm."""
    objective, fields, more = deepcopy(ARMS[name])
    sampling = {"max_new_tokens": LENGTH}
    source = {"kind": "prompts", "data": TASK | {"number": 4000}, "batch_size": 16, "group_size": 8, "sampling": sampling}
    objectives = {"policy": objective | {"source": "sums"}}
    for other, term in more.get("objectives", {}).items():
        objectives[other] = term | {"source": "sums"}
    start = model or str(OUT / f"base-{seed}" / "policy")
    learners = {"policy": policy(model=start)} | more.get("learners", {})
    if "critic" in learners:
        learners["critic"]["model"] = start
    return {
        "learners": {k: {x: y for x, y in v.items() if x != "tokenizer"} for k, v in learners.items()},
        "sources": {"sums": source | {"rewards": [{"kind": "exact_answer"}]} | fields},
        "objectives": objectives,
        "evaluations": evaluations(),
        "args": {"max_steps": DRAWS, "seed": seed, "output_dir": str(folder), "measure_every": 0},
    }


def arm(name: str, seed: int) -> dict[str, Any]:
    folder = OUT / f"{name}-{seed}"
    trainer = configuration.trainer(described(name, seed, folder))
    trainer.train(overwrite=True, progress=False)
    found, log = trainer.evaluate(), read(folder)
    return {
        "accuracy": found["test/pass@1"],
        "pass@16": found["test/pass@16"],
        "ood": found["ood/pass@1"],
        "ood_pass@16": found["ood/pass@16"],
        "maj@16": found["test/maj@16"],
        "entropy": found["test/entropy"],
        "clip_fraction": _mean(log, "policy/clip_fraction"),
        "ratio_variance": _mean(log, "policy/ratio_variance"),
        "zero_signal": _mean(log, "sums/frac_reward_zero_std"),
        "informative": _mean(log, "sums/dynamic/informative"),
        "batches_per_draw": _mean(log, "sums/dynamic/batches") or 1.0,
        "curves": {k: [round(row[k], 4) for row in log if k in row] for k in ("sums/reward", "sums/sampled_entropy")},
    }


def _mean(log: list[dict[str, Any]], key: str) -> float | None:
    values = [row[key] for row in log if row.get(key) is not None]
    return sum(values) / len(values) if values else None


def one(job: tuple[str, int]) -> dict[str, Any]:
    torch.set_num_threads(1)
    name, seed = job
    if name == "base":
        return once(OUT / f"base-{seed}.json", lambda: base(seed))
    return once(OUT / f"{name}-{seed}.json", lambda: arm(name, seed))


def summary(runs: dict[tuple[str, int], dict[str, Any]], seeds: list[int], draws: int) -> dict[str, Any]:
    table = {}
    for name in ARMS:
        found = [runs[name, s] for s in seeds if (name, s) in runs]
        if not found:
            continue
        row: dict[str, Any] = {
            k: mean_sd([r[k] for r in found]) for k in ("accuracy", "pass@16", "maj@16", "ood", "ood_pass@16", "entropy") if k in found[0]
        }
        row |= {k: _average([r.get(k) for r in found]) for k in WATCHED}
        row["cpu_seconds_per_draw"] = sum(r["cpu_seconds"] for r in found) / len(found) / draws
        row["curves"] = {k: _mean_curve([r["curves"][k] for r in found]) for k in found[0]["curves"]}
        table[name] = row
    return table


def _average(values: list[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def _mean_curve(curves: list[list[float]]) -> list[float]:
    return [round(sum(values) / len(values), 4) for values in zip(*curves, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="names of arms, separated by commas")
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    seeds, names = list(range(args.seeds)), args.only.split(",") if args.only else list(ARMS)
    with ProcessPoolExecutor(args.processes, mp_context=get_context("spawn")) as pool:
        bases = list(pool.map(one, [("base", s) for s in seeds]))
        jobs = [(name, s) for s in seeds for name in names]
        runs = dict(zip(jobs, pool.map(one, jobs), strict=True))
    if args.only:
        return
    about_base = {k: mean_sd([b[f"test/{k}"] for b in bases]) for k in ("pass@1", "pass@16", "maj@16", "entropy")}
    spent = [*bases, *runs.values()]
    save(
        "benchmarks/results/rl.json",
        about("make bench-rl")
        | {"seeds": seeds, "draws": DRAWS, "updates_per_draw": 8, "base": about_base, "cpu_hours": cpu_hours(spent)}
        | {"arms": summary(runs, seeds, DRAWS)},
    )


if __name__ == "__main__":
    main()

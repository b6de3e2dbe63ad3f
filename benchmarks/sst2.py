"""Robust sentiment on SST-2: plain training against `classify | pgd` and `consistency(clean, pgd)`.

1. Selection, on training data alone: 1,600 of 2,000 sentences train, 400 validate; every arm at every radius, seed 0. Chosen is
   what keeps validation accuracy within a point and a half of plain training and stands best against embedding PGD and
   DeepWordBug on 60 of the 400.
2. Final: plain and every arm at its own best radius, 2,000 sentences, seeds 0 and 1; clean accuracy on all 872 dev
   sentences, embedding PGD at three radii and two TextAttack recipes on 100 of them (configs/suites/sst2.yaml).

    python benchmarks/sst2.py            resumable run by run; at most 2 CPU-hours; writes benchmarks/results/sst2.json
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

import torch
from common import about, cpu_hours, once, paired, save

from advalign import config as configuration
from advalign import data as loading
from advalign.evaluation import Suite
from advalign.metrics.run_log import read

OUT = Path("out/bench/sst2")
ARMS = {"classify_pgd": ("robust", (0.1, 0.2)), "consistency": ("agree", (0.1,))}
SEEDS = (0, 1)
STEPS = 126  # two epochs of 2,000 sentences
TOLERANCE = 0.015  # what clean accuracy may lose


def split() -> None:
    """The 2,000 sentences, and their two parts for the selection."""
    rows = loading.rows(configuration.read("configs/robust_sst2.yaml")["sources"]["train"]["data"], limit=2000, seed=0)
    random.Random(0).shuffle(rows)
    for name, part in {"all": rows, "fit": rows[:1600], "validation": rows[1600:]}.items():
        path = OUT / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in part))


def train(arm: str, radius: float, seed: int, data: str) -> Path:
    """One run of configs/robust_sst2.yaml; finished weights are kept."""
    folder = OUT / f"model-{data}-{arm}-{radius:g}-{seed}"
    if not (folder / "model" / "config.json").exists():
        term = ARMS[arm][0] if arm in ARMS else ""
        overrides = [f"objectives.{name}.coef={int(name == term)}" for name in ("robust", "agree")]
        overrides += [f"sources.train.data={OUT / f'{data}.jsonl'}", f"args.seed={seed}", f"sources.train.seed={seed}"]
        overrides += [f"args.output_dir={folder}", f"args.max_steps={STEPS}", "args.eval_steps=0"]
        overrides += [f"adversaries.pgd.radius={radius}"]
        described = configuration.read("configs/robust_sst2.yaml", overrides)
        ramp = described["schedules"]["adversaries.pgd.radius"]
        described["schedules"]["adversaries.pgd.radius"] = ramp | {"start": radius / 40, "end": radius}
        start = time.perf_counter()
        trainer = configuration.trainer(described)
        trainer.train(overwrite=True, progress=False)
        per_step = (time.perf_counter() - start) / trainer.total_steps
        save(folder / "time.json", {"seconds_per_step": per_step, "last": read(folder)[-1]})
    return folder


def attack(folder: Path, suite: dict[str, Any], examples: int) -> dict[str, Any]:
    """Clean accuracy and accuracy under every attack of the suite; per example, whether it survived."""
    from advalign.models import load

    result = Suite.load(suite | {"examples": examples}).run(load(str(folder / "model")), output_dir=folder / "suite")
    rows = {arm.name: result.row(arm) for arm in result.arms}
    survived = {arm.name: [float(r.status in ("failed", "over_budget")) for r in result.results_of(arm.name)] for arm in result.arms}
    return {
        "clean": result.clean["accuracy"],
        "aua": {name: row["accuracy under attack"] for name, row in rows.items()},
        "queries": {name: row["queries"] for name, row in rows.items()},
        "worst_case": result.worst_case(),
        "warnings": result.warnings(),
        "survived": survived,
        "seconds_per_step": json.loads((folder / "time.json").read_text())["seconds_per_step"],
    }


def suite_of(part: str) -> dict[str, Any]:
    suite = configuration.read("configs/suites/sst2.yaml")
    if part == "validation":
        suite |= {"data": str(OUT / "validation.jsonl"), "radii": [0.05]}
        suite["attacks"] = {name: suite["attacks"][name] for name in ("pgd", "deepwordbug")}
    return suite


def candidate(arm: str, radius: float) -> dict[str, Any]:
    """One run of the selection."""
    return once(OUT / f"select-{arm}-{radius:g}.json", lambda: attack(train(arm, radius, 0, "fit"), suite_of("validation"), 60))


def select() -> dict[str, Any]:
    """{arm: radius, chosen: arm} and the numbers behind it."""
    grid = [("plain", 0.1), *((arm, r) for arm, (_, radii) in ARMS.items() for r in radii)]
    runs = {f"{arm}@{radius:g}": candidate(arm, radius) for arm, radius in grid}
    plain = runs["plain@0.1"]

    def worth(name: str) -> tuple[bool, float]:
        run = runs[name]
        return run["clean"] >= plain["clean"] - TOLERANCE, sum(run["aua"].values()) / len(run["aua"])

    best = {arm: max((f"{arm}@{r:g}" for r in radii), key=worth) for arm, (_, radii) in ARMS.items()}
    chosen = max(best.values(), key=worth).partition("@")[0]
    return {"radius": {arm: float(name.partition("@")[2]) for arm, name in best.items()}, "chosen": chosen, "runs": runs}


def final(arm: str, radius: float, seed: int) -> dict[str, Any]:
    return once(OUT / f"final-{arm}-{radius:g}-{seed}.json", lambda: attack(train(arm, radius, seed, "all"), suite_of("dev"), 100))


def summary(runs: list[dict[str, Any]], plain: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds, and against plain training per (seed, example)."""
    attacks = runs[0]["aua"]
    pooled = {name: [x for run in runs for x in run["survived"][name]] for name in attacks}
    other = {name: [x for run in plain for x in run["survived"][name]] for name in attacks}
    everything = [[sum(values) / len(values) for values in zip(*side.values(), strict=True)] for side in (pooled, other)]
    return {
        "clean": sum(r["clean"] for r in runs) / len(runs),
        "aua": {name: sum(r["aua"][name] for r in runs) / len(runs) for name in attacks},
        "worst_case": sum(r["worst_case"]["accuracy"] for r in runs) / len(runs),
        "seconds_per_step": sum(r["seconds_per_step"] for r in runs) / len(runs),
        "seeds": [{k: r[k] for k in ("clean", "aua", "queries", "worst_case", "warnings", "cpu_seconds")} for r in runs],
        "gain": {name: paired(pooled[name], other[name]) for name in attacks} | {"mean_of_attacks": paired(*everything)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--select", default="", help="only these runs of the selection, for example plain@0.1,consistency@0.1")
    parser.add_argument("--only", default="", help="only these final runs, as arm@seed; both are for several processes side by side")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not (OUT / "validation.jsonl").exists():
        split()
    for name in filter(None, args.select.split(",")):
        candidate(name.partition("@")[0], float(name.partition("@")[2]))
    if args.select:
        return
    selection = select()
    chosen = {"plain": 0.1, **selection["radius"]}
    for name in filter(None, args.only.split(",")):
        final(name.partition("@")[0], chosen[name.partition("@")[0]], int(name.partition("@")[2]))
    if args.only:
        return
    runs = {arm: [final(arm, radius, seed) for seed in SEEDS] for arm, radius in chosen.items()}
    spent = [*selection["runs"].values(), *(run for found in runs.values() for run in found)]
    results = {arm: summary(found, runs["plain"]) for arm, found in runs.items()}
    save(
        "benchmarks/results/sst2.json",
        about("make bench-sst2", "textattack")
        | results
        | {"chosen": selection["chosen"], "radius": selection["radius"], "cpu_hours": cpu_hours(spent)}
        | {"selection": {name: {k: run[k] for k in ("clean", "aua")} for name, run in selection["runs"].items()}},
    )


if __name__ == "__main__":
    main()

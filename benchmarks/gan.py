"""GAPO against its alternatives: writing under constraints, learned from few or from many demonstrations.

Two designs. `scarce`: 60 demonstrations, a discriminator that can be fooled. `rich`: 400 demonstrations, an accurate one: the regime in
which a frozen discriminator is expected to do well, shown beside the other. Per seed (its own demonstrations, initialisation, sampling)
a policy is warmed up by SFT, a discriminator on real / perturbed pairs, and a reward model (for PPO) on response pairs; every arm then
makes the same number of steps from there. Held out: 90 combinations of constraints that were never trained on, 8 answers each.

    python benchmarks/gan.py                       make bench-gan: the missing runs; writes benchmarks/results/gan.json
    python benchmarks/gan.py --only scarce:gapo,scarce:frozen --seeds 2      some arms, some seeds; a second process may run beside it
    python benchmarks/gan.py --collect             the results of the runs that exist

Chosen on seeds 100 to 102, by compliance on prompts of the training split: the learning rate (at 1e-3 both arms collapsed, at 3e-4 GAPO
rose on two of three seeds, at 1e-4 nothing changed); imitation beside the reward, which keeps the third seed from collapsing and is
therefore in every arm with a discriminator as its reward; and, on seed 100, the weight of the verifiable reward with twice the steps.
Seeds 0 and 1 were spent on a setting without imitation. The reported seeds, from 10 on, were not used before.
"""

from __future__ import annotations

import argparse
import fcntl
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from common import about, cpu_hours, mean_sd, once, paired, save
from gan_arms import ABLATIONS, ARMS, EVERY, SECOND, TASK, pairs

from advalign import config as configuration
from advalign import data as loading
from advalign.metrics.run_log import read
from advalign.sources.pairs import Pairs

CONFIG = "configs/gan/constraints.yaml"
OUT = Path("out/bench/gan")
FIRST, SEEDS = 10, 5
# What the ablation suggests, on seeds that nothing was chosen on.
FRESH, AGAIN = range(15, 20), ("gapo", "bradley_terry", "gapo_robust_discriminator", "frozen")
DESIGNS = {"scarce": (60, 60), "rich": (400, 300)}  # demonstrations, SFT steps
MEASURES = {"compliance": "accuracy", "unique": "unique", "entropy": "entropy", "pass@8": "pass@8"}


def described(design: str, seed: int, folder: Path) -> dict[str, Any]:
    limit, steps = DESIGNS[design]
    given = {
        "args.seed": seed,
        "sources.demos.seed": seed,
        "sources.demos.limit": limit,
        "args.output_dir": folder,
        "stages.0.steps": steps,
    }
    config = configuration.read(CONFIG, [f"{path}={value}" for path, value in given.items() if not path.startswith("stages")])
    config["stages"][0]["steps"] = steps
    config["args"]["eval_steps"] = 0
    return config


def warm(design: str, seed: int) -> Path:
    """Policy, discriminator and reward model of a seed, trained once."""
    folder = OUT / design / f"warm-{seed}"

    def train() -> dict[str, Any]:
        config = described(design, seed, folder)
        config["stages"] = config["stages"][:2]
        trainer = configuration.trainer(config)
        trainer.train(overwrite=True, progress=False)
        return measured(trainer, folder)

    with locked(OUT / design / f"lock-warm-{seed}"):
        once(OUT / design / f"sft-{seed}.json", train)
        once(OUT / design / f"rm-{seed}.json", lambda: reward_model(design, seed, folder / "rm", seed))
    return folder


def reward_model(design: str, seed: int, folder: Path, initial: int) -> dict[str, Any]:
    """A reward model of response pairs; `initial`: the seed of its weights and batches."""
    config = described(design, initial, folder)
    config["learners"] = {"rm": config["learners"]["discriminator"]}
    config["sources"] = {"responses": pairs(DESIGNS[design][0], seed, "response")}
    config["objectives"] = {"rm": {"kind": "reward_model", "learner": "rm", "source": "responses"}}
    config["stages"] = [{"name": "rm", "steps": 500}]
    del config["evaluations"]
    return {"accuracy": configuration.trainer(config).train(overwrite=True, progress=False)[-1].get("rm/rewards/accuracies")}


def prepared(design: str, seed: int, name: str) -> dict[str, Any]:
    """The configuration of an arm, from the warm weights of its seed."""
    start, arm = warm(design, seed), EVERY[name]
    limit, _ = DESIGNS[design]
    config = described(design, seed, OUT / design / f"{name}-{seed}")
    config["learners"]["policy"]["model"], config["learners"]["discriminator"]["model"] = (
        str(start / "policy"),
        str(start / "discriminator"),
    )
    last = config["stages"][2]
    config["learners"]["policy"]["learning_rate"] = last["set"]["learners.policy.learning_rate"]
    sources = {t["source"] for t in arm.terms.values()}
    for learner, folder in arm.warm.items():
        like = "policy" if folder == "policy" else "discriminator"
        config["learners"][learner] = config["learners"][like] | {"model": str(start / folder)}
    if "second" in arm.warm:  # a reward model trained in the same way, from other weights
        with locked(OUT / design / f"lock-rm2-{seed}"):
            once(OUT / design / f"rm2-{seed}.json", lambda: reward_model(design, seed, start / "rm2", seed + 1000))
    if name == "ppo_reward_model":
        config["learners"]["rm"] = config["learners"]["discriminator"] | {"model": str(start / "rm" / "rm")}
        config["learners"]["critic"] = config["learners"]["policy"] | {"head": "value"}
    for kind in ("response", "prompt"):
        if f"{kind}s" in sources:
            config["sources"][f"{kind}s"] = pairs(limit, seed, kind)
    if "feedback" in sources:
        config["sources"]["feedback"] = {"kind": "feedback", "data": str(feedback(design, seed)), "batch_size": 32}
    config["objectives"], config["stages"] = dict(arm.terms), [{"name": "game", "steps": arm.times * last["steps"]}]
    for path, value in arm.values.items():
        put(config, path, value)
    for section, entries in arm.more.items():
        config[section] = {**config.get(section, {}), **entries}
    return config


def put(config: dict[str, Any], path: str, value: Any) -> None:
    *above, last = path.split(".")
    for name in above:
        config = config[name]
    config[last] = value


def feedback(design: str, seed: int) -> Path:
    """The demonstrations, desirable, and for each of them a wrong response: the pairs, one by one."""
    path = OUT / design / f"feedback-{seed}.jsonl"
    if not path.exists():
        source = Pairs(**{k: v for k, v in pairs(DESIGNS[design][0], seed, "response").items() if k != "kind"})
        task = loading.task_of(TASK)
        examples = loading.examples(TASK, limit=source.limit, seed=seed)
        pairs_ = [source.complete(example, index, task, "feedback") for index, example in enumerate(examples)]
        rows = [
            {"prompt": e.prompt, "response": e.meta[side], "label": int(side == "chosen")}
            for e in pairs_
            for side in ("chosen", "rejected")
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run(design: str, seed: int, name: str) -> None:
    """One arm, unless its result exists or another process runs it."""
    warm(design, seed)
    if name == "sft":
        return
    try:
        with locked(OUT / design / f"lock-{name}-{seed}", wait=False):
            once(OUT / design / f"{name}-{seed}.json", lambda: arm(design, seed, name))
    except BlockingIOError:
        return


def arm(design: str, seed: int, name: str) -> dict[str, Any]:
    trainer = configuration.trainer(prepared(design, seed, name))
    trainer.train(overwrite=True, progress=False)
    return measured(trainer, OUT / design / f"{name}-{seed}")


def measured(trainer: Any, folder: Path) -> dict[str, Any]:
    found, last = trainer.evaluate(), read(folder)[-20:]
    numbers = {ours: found[f"heldout/{theirs}"] for ours, theirs in MEASURES.items()}
    for key in (
        "discriminator/accuracy",
        "discriminator/accuracy/generated",
        "discriminator/accuracy/perturbed",
        "discriminator/saturation",
        "discriminator/skipped",
    ):
        values = [row[key] for row in last if key in row]
        if values:
            numbers[key] = sum(values) / len(values)
    return numbers


class locked:
    """Holds a file's lock; the system lets go of it when the process ends, however it ends."""

    def __init__(self, path: Path, wait: bool = True) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file, self.wait = path.open("w"), wait

    def __enter__(self) -> None:
        fcntl.flock(self.file, fcntl.LOCK_EX | (0 if self.wait else fcntl.LOCK_NB))

    def __exit__(self, *_: object) -> None:
        self.file.close()


# ---------------------------------------------------------------------------------------------------- results


def collect(seeds: int, path: str = "benchmarks/results/gan.json") -> None:
    """Seeds of an arm are paired with the same seeds of the others."""
    result: dict[str, Any] = about("make bench-gan")
    everything = []
    for design in DESIGNS:
        runs = {name: found for name in EVERY if (found := finished(design, name, seeds))}
        if not runs:
            continue
        everything += [r for found in runs.values() for r in found.values()]
        result[design] = {name: summary(name, found, runs) for name, found in runs.items()}
    fresh = {name: found for name in AGAIN if (found := finished("scarce", name, len(FRESH), FRESH.start))}
    if len(fresh) == len(AGAIN):
        everything += [r for found in fresh.values() for r in found.values()]
        result["fresh"] = {name: confirmed(found, fresh["frozen"]) | {"label": EVERY[name].label} for name, found in fresh.items()}
    result["cpu_hours"] = cpu_hours(everything)
    save(path, result)


def finished(design: str, name: str, seeds: int, first: int = FIRST) -> dict[int, dict[str, Any]]:
    files = {seed: OUT / design / f"{name}-{seed}.json" for seed in range(first, first + seeds)}
    return {seed: json.loads(file.read_text()) for seed, file in files.items() if file.exists()}


def confirmed(found: Mapping[int, Mapping[str, Any]], frozen: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """An arm on fresh seeds, and minus the frozen discriminator there."""
    both = sorted(set(found) & set(frozen))
    row: dict[str, Any] = {"seeds": list(found)} | {measure: mean_sd([r[measure] for r in found.values()]) for measure in MEASURES}
    if found is not frozen:
        row["minus_frozen"] = {m: paired([found[s][m] for s in both], [frozen[s][m] for s in both]) for m in MEASURES}
    return row


def summary(name: str, found: Mapping[int, Mapping[str, Any]], runs: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> dict[str, Any]:
    row: dict[str, Any] = {"label": EVERY[name].label, "trained_discriminator": EVERY[name].trained, "ablation": name in ABLATIONS}
    row |= {"second_wave": name in SECOND, "control": EVERY[name].control}
    row |= {"seeds": list(found), "cpu_seconds": [r["cpu_seconds"] for r in found.values()]}
    row |= {measure: mean_sd([r[measure] for r in found.values()]) for measure in MEASURES}
    row["discriminator"] = {
        k: mean_sd([r[k] for r in found.values()]) for k in next(iter(found.values())) if k.startswith("discriminator/")
    }
    if name != "gapo" and "gapo" in runs:
        both = sorted(set(found) & set(runs["gapo"]))
        if both:
            first, second = (found, runs["gapo"]) if name in ABLATIONS else (runs["gapo"], found)
            key = "minus_gapo" if name in ABLATIONS else "gapo_minus_this"
            row[key] = {m: paired([first[s][m] for s in both], [second[s][m] for s in both]) for m in MEASURES}
    # What co-training is worth where the reward is the only objective, and in twice the steps; and what each of the second wave adds.
    for arm, other, key in (
        ("alone", "frozen_alone", "frozen_alone"),
        ("longer", "frozen_longer", "frozen_longer"),
        (name, EVERY[name].control, "control"),
    ):
        if name == arm and other in runs and (both := sorted(set(found) & set(runs[other]))):
            row[f"minus_{key}"] = {m: paired([found[s][m] for s in both], [runs[other][s][m] for s in both]) for m in MEASURES}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="design:arm, separated by commas")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--first", type=int, default=FIRST, help="the first seed to run")
    parser.add_argument("--collect", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    jobs = [job.partition(":")[::2] for job in filter(None, args.only.split(","))]
    jobs = jobs or [(d, a) for d in DESIGNS for a in (EVERY if d == "scarce" else ARMS)]
    for seed in () if args.collect else range(args.first, FIRST + args.seeds):
        for design, name in jobs:
            run(design, seed, name)
    for seed in () if args.collect or args.only else FRESH:
        for name in AGAIN:
            run("scarce", seed, name)
    if args.collect or not args.only:
        collect(args.seeds)


if __name__ == "__main__":
    main()

"""Adversarial training of a small encoder, method by method: one recipe, one budget of steps, one suite of attacks.

1. Every arm at each of its radii, seed 0: 2,000 SST-2 sentences, 126 steps. Its radius is chosen on other training sentences: of
   those radii that keep validation accuracy within a point and a half of plain training, the one that stands best against
   embedding PGD and TextFooler-like substitution (if none does, the cleanest). No dev sentence has a say in it.
2. The chosen radius at seeds 0 and 1: clean accuracy on all dev sentences, AdvGLUE, embedding PGD at three radii and four word
   attacks under the same constraints on 100 of them (configs/suites/adversarial.yaml).
3. AG News: plain training and the four arms that validated best, seed 0.

    python benchmarks/adv.py                              everything that is not there yet; writes benchmarks/results/adv.json.
                                                          A second process may run beside it: they take different arms
    python benchmarks/adv.py --only sst2:pgd3@0,sst2:fgm@0     some runs, one process; arm@1 needs arm@0, arms need none@0
    python benchmarks/adv.py --collect                    writes the results of what is there
    python benchmarks/adv.py --device cuda --size full    all phrases, 400 attacked; writes benchmarks/results/adv_gpu.json
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from adv_arms import ARMS, WARM, described
from adv_summary import carried, collect
from common import once, save

from advalign import Callback
from advalign import config as configuration
from advalign import data as loading
from advalign.evaluation import Suite
from advalign.models import load
from advalign.targets import RanMask, target_of

TOLERANCE = 0.015  # what clean validation accuracy may lose against plain training
SEEDS = (0, 1)


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much of everything. `train` 0: all there is."""

    train: int
    steps: int
    validation: int
    chosen_on: int
    clean: int
    attacked: int
    budget: int


@dataclass(frozen=True, kw_only=True)
class Task:
    """Files below ADVALIGN_DATA; `shifted`: the same question asked elsewhere."""

    train: str
    full: str
    test: str
    labels: int
    shifted: str | None = None


SIZES = {
    "small": Size(train=2000, steps=126, validation=1000, chosen_on=60, clean=1000, attacked=100, budget=640),
    "full": Size(train=0, steps=4000, validation=1000, chosen_on=300, clean=5000, attacked=400, budget=8192),
    "smoke": Size(train=96, steps=WARM + 4, validation=24, chosen_on=3, clean=16, attacked=3, budget=640),
}
TASKS = {
    "sst2": Task(
        train="cls_sst2/train_sentences.jsonl",
        full="cls_sst2/train_phrases.jsonl.gz",
        test="cls_sst2/dev.jsonl",
        labels=2,
        shifted="cls_advglue/sst2_dev.jsonl",
    ),
    "ag_news": Task(
        train="cls_ag_news/train_10k.jsonl.gz", full="cls_ag_news/train_10k.jsonl.gz", test="cls_ag_news/test_part.jsonl.gz", labels=4
    ),
}


class Bench:
    """One task at one size: its files, its runs."""

    def __init__(self, name: str, size: str) -> None:
        self.name, self.task, self.size = name, TASKS[name], SIZES[size]
        self.out = Path("out/bench/adv") / size / name
        if not (self.out / "test.jsonl").exists():
            self.split()

    def split(self) -> None:
        """train, validation (other training rows) and test. The test file is written last: where it is, all are."""
        where = os.environ.get("ADVALIGN_DATA", "data")
        whole = loading.rows(f"{where}/{self.task.train}")
        chosen = loading.rows(f"{where}/{self.task.train}", limit=self.size.train or 2000, seed=0)
        taken = {row["text"] for row in chosen}
        others = [row for row in whole if row["text"] not in taken]
        validation = random.Random(0).sample(others, min(self.size.validation, len(others)))
        if not self.size.train:  # phrases of a validation sentence would give its label away
            held = "\n".join(row["text"] for row in validation)
            chosen = [row for row in loading.rows(f"{where}/{self.task.full}") if row["text"].strip() not in held]
        test = loading.rows(f"{where}/{self.task.test}")
        test = test if len(test) <= self.size.clean else random.Random(0).sample(test, self.size.clean)
        self.out.mkdir(parents=True, exist_ok=True)
        for name, rows in {"train": chosen, "validation": validation, "test": test}.items():
            text = "".join(json.dumps({"text": row["text"], "label": row["label"]}) + "\n" for row in rows)
            (self.out / f"{name}.jsonl").write_text(text, encoding="utf-8")

    # ------------------------------------------------------------------------------------------------- one run

    def train(self, arm: str, value: float, seed: int) -> Path:
        """One training run; finished weights are kept."""
        folder = self.out / f"model-{arm}-{value:g}-{seed}"
        if not (folder / "time.json").exists():
            data = {"data": self.out / "train.jsonl", "output": folder, "steps": self.size.steps, "batch": 32}
            config = described(arm, value, seed, labels=self.task.labels, budget=self.size.budget, **data)
            clock = Clock()
            trainer = configuration.trainer(config, callbacks=[clock])
            trainer.train(overwrite=True, progress=False)
            plan = trainer.run_spec.step_plan(trainer.run_spec.stages[-1], strongest=True).plans["model"]
            save(folder / "time.json", clock.seconds(ARMS[arm].replays) | {"forwards": plan.forwards()})
        return folder

    def suite(self, part: str) -> dict[str, Any]:
        suite = configuration.read("configs/suites/adversarial.yaml")
        examples = loading.examples(str(self.out / f"{part}.jsonl"))
        number = self.size.attacked
        if part == "validation":
            number, suite["radii"] = self.size.chosen_on, [0.05]
            suite["attacks"] = {name: suite["attacks"][name] for name in ("pgd", "textfooler")}
        return suite | {"data": random.Random(0).sample(examples, min(number, len(examples))), "examples": number}

    def attack(self, folder: Path, part: str, arm: str, value: float) -> dict[str, Any]:
        """Clean accuracy, and accuracy under every attack; per example, whether it survived."""
        network: Any = load(str(folder / "model")).to(DEVICE)
        if ARMS[arm].votes:
            network = RanMask(network, rate=value, votes=ARMS[arm].votes)
        correct = right(network, str(self.out / f"{part}.jsonl"))
        suite = self.suite(part)
        if ARMS[arm].votes and part == "test":
            suite["certified"] = {"ranmask": {"rate": value, "n0": 20, "n": 100}}
        result = Suite.load(suite).run(network, output_dir=folder / part)
        rows = {arm.name: result.row(arm) for arm in result.arms}
        survived = {arm.name: [float(r.status in ("failed", "over_budget")) for r in result.results_of(arm.name)] for arm in result.arms}
        found = {
            "clean": fmean(correct),
            "correct": correct,
            "aua": {name: row["accuracy under attack"] for name, row in rows.items()},
            "queries": {name: row["queries"] for name, row in rows.items()},
            "attack_seconds": {name: row["seconds"] for name, row in rows.items()},
            "worst_case": result.worst_case()["accuracy"],
            "warnings": result.warnings(),
            "survived": survived,
            "time": json.loads((folder / "time.json").read_text()),
        }
        if result.certified:
            found["certified"] = result.certified
        if part == "test" and self.task.shifted:
            found["shifted"] = right(network, f"{os.environ.get('ADVALIGN_DATA', 'data')}/{self.task.shifted}")
        return found

    def validated(self, arm: str, value: float) -> dict[str, Any]:
        """One run of the selection, with the training it measures."""
        path = self.out / f"validation-{arm}-{value:g}.json"
        return once(path, lambda: self.attack(self.train(arm, value, 0), "validation", arm, value))

    def worth(self, run: dict[str, Any]) -> tuple[bool, float]:
        """Clean enough first, then the mean over the attacks; of those that are not, the cleanest: a constant stands any attack."""
        allowed = run["clean"] >= self.validated("none", 0.0)["clean"] - TOLERANCE
        return allowed, fmean(run["aua"].values()) if allowed else run["clean"]

    def chosen(self, arm: str) -> float:
        return max(ARMS[arm].values, key=lambda value: self.worth(self.validated(arm, value)))

    def tested(self, arm: str, seed: int, value: float | None = None) -> dict[str, Any]:
        """One final run, at the radius that was chosen."""
        value = self.chosen(arm) if value is None else value
        path = self.out / f"test-{arm}-{value:g}-{seed}.json"
        return once(path, lambda: self.attack(self.train(arm, value, seed), "test", arm, value))

    def done(self, arm: str, seed: int, value: float | None = None) -> bool:
        """Whether a final run is there, without starting anything."""
        if value is None and not all((self.out / f"validation-{arm}-{v:g}.json").exists() for v in ARMS[arm].values):
            return False
        value = self.chosen(arm) if value is None else value
        return (self.out / f"test-{arm}-{value:g}-{seed}.json").exists()


class Clock(Callback):
    """CPU seconds of every step (wall seconds on an accelerator): the machine may be busy with something else."""

    def __init__(self) -> None:
        self.now = time.process_time if DEVICE == "cpu" else time.perf_counter
        self.times = [self.now()]

    def on_step(self, trainer: Any, logs: Any) -> None:
        self.times.append(self.now())

    def seconds(self, replays: int) -> dict[str, Any]:
        """The median step of either stage; `update`: per optimizer step of the second."""
        steps = [b - a for a, b in zip(self.times, self.times[1:], strict=False)]
        own = median(steps[WARM:])
        return {"clean_step": median(steps[:WARM]), "step": own, "update": own / replays}


def right(network: Any, path: str) -> list[float]:
    """Per example, whether the largest logit is the label's."""
    examples = loading.examples(path)
    predicted = target_of(network).predict([e.prompt for e in examples]).argmax(-1).tolist()
    return [float(k == e.label) for k, e in zip(predicted, examples, strict=True)]


# ------------------------------------------------------------------------------------------------- all of them


def run(benches: dict[str, Bench], job: str) -> bool:
    """`task:arm@seed`, unless another process is at that arm. The second task takes the radius of the first."""
    task, _, rest = job.partition(":")
    arm, _, seed = rest.partition("@")
    bench, first = benches[task], benches["sst2"]
    with (bench.out / f"lock-{arm}").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go when the process ends, however it ends
        except BlockingIOError:
            print(f"{job}: another process is at it", file=sys.stderr)
            return False
        bench.tested(arm, int(seed), None if task == "sst2" else first.chosen(arm))
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="only these runs, as task:arm@seed, in this order")
    parser.add_argument("--collect", action="store_true", help="start nothing; write the results of what is there")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--size", default="small", choices=SIZES)
    args = parser.parse_args()
    global DEVICE
    DEVICE = args.device
    if DEVICE == "cpu":
        torch.set_num_threads(1)
        os.environ["ACCELERATE_USE_CPU"] = "true"
    benches = {name: Bench(name, args.size) for name in TASKS}
    for job in filter(None, args.only.split(",")):
        run(benches, job)
    if args.only:
        return
    if not args.collect:
        run(benches, "sst2:none@0")
        finished = [run(benches, f"sst2:{arm}@{seed}") for seed in SEEDS for arm in ARMS]
        if not all(finished):
            print("The rest is with another process; start again when it has ended.", file=sys.stderr)
            return
        for arm in ["none", *carried(benches["sst2"])]:
            run(benches, f"ag_news:{arm}@0")
    names = {"small": "adv", "full": "adv_gpu"}
    path = f"benchmarks/results/{names[args.size]}.json" if args.size in names else f"out/bench/adv/{args.size}.json"
    command = "make bench-adv" if args.size == "small" else f"python benchmarks/adv.py --device {DEVICE} --size {args.size}"
    collect(benches, SEEDS, path, command)


DEVICE = "cpu"

if __name__ == "__main__":
    main()

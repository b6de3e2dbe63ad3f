"""The mixed step beside the same terms as trainers of their own, and what a step costs as it grows; for benchmarks/speed.py.

A causal LM of 3 million parameters answers 8 prompts of 24 words with 8 responses of 32 tokens (GRPO), imitates 32 demonstrations under
PGD with 2 steps (adversarial SFT), and an encoder of 1 million parameters tells its responses from demonstrations.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from statistics import median
from typing import Any

import torch

from advalign import Learner, Sampling, Trainer, TrainingArguments
from advalign import advantages as A
from advalign import adversaries as adv
from advalign import objectives as obj
from advalign import rewards as rw
from advalign import sources as src

POLICY = "scratch:small?hidden_size=224&intermediate_size=608&num_hidden_layers=4&num_attention_heads=4&num_key_value_heads=4"
DISCRIMINATOR = "scratch:encoder-tiny?hidden_size=128&intermediate_size=512&num_hidden_layers=4"
WORDS = [f"w{i}" for i in range(2000)]
PARTS = ("grpo", "adversarial sft", "discriminator")


def said(number: int, length: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choice(WORDS) for _ in range(length)) for _ in range(number)]


DATA = [{"prompt": p, "response": r} for p, r in zip(said(512, 24, 0), said(512, 32, 1), strict=True)]


def lengths(completions: list[str]) -> list[float]:
    return [len(set(text.split())) / 32 for text in completions]


def trainer(
    parts: Iterable[str] = PARTS, *, prompts: int = 8, size: int = 8, tokens: int = 32, ascent: int = 2, copies: int = 1,
    budget: int = 8192, compile: bool = False,
) -> Trainer:  # fmt: skip
    """`copies`: how many terms read the demonstrations clean, for the cost of one more objective."""
    words = {"kind": "words", "data": DATA}
    learners = {"policy": Learner(model=POLICY, tokenizer=words, max_length=256, learning_rate=1e-4, options={"compile": compile})}
    sources: dict[str, Any] = {}
    objectives: dict[str, Any] = {}
    if "grpo" in parts or "discriminator" in parts:
        sources["write"] = src.Prompts(
            data=DATA, rewards=[rw.Function(fn=lengths)], advantage=A.Group(), group_size=size, batch_size=prompts,
            sampling=Sampling(max_new_tokens=tokens),
        )  # fmt: skip
    if "grpo" in parts:
        objectives["policy"] = obj.GRPO(source="write")
    if {"adversarial sft", "discriminator", "sft"} & set(parts):
        sources["demos"] = src.Demos(data=DATA, batch_size=32)
    if "adversarial sft" in parts:
        objectives["robust"] = obj.SFT(source="demos", view="pgd" if ascent else "noise", coef=0.5)
    for number in range(copies if "sft" in parts else 0):
        objectives[f"imitate_{number}"] = obj.SFT(source="demos", coef=0.1)
    if "discriminator" in parts:
        learners["discriminator"] = Learner(model=DISCRIMINATOR, head="score", tokenizer=words, max_length=96, learning_rate=1e-4)
        sources["contrast"] = src.Contrast(real="demos", sampled="write", batch_size=32, always=True)
        objectives["discriminator"] = obj.Discriminate(source="contrast", learner="discriminator")
    return Trainer(
        learners=learners, sources=sources, objectives=objectives,
        adversaries={"pgd": adv.PGD(radius=0.05, steps=max(ascent, 1)), "noise": adv.Noise(radius=0.05)},
        args=TrainingArguments(max_steps=100, token_budget=budget),
    )  # fmt: skip


def timed(made: dict[str, Trainer], repeats: int) -> dict[str, dict[str, Any]]:
    """Steps of all trainers in turn; the first of each warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for one in made.values():
        one.start()
    for repeat in range(repeats + 1):
        for name, one in made.items():
            start = time.perf_counter()
            one.training_step()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return {name: {"seconds": median(values), "all": values} for name, values in seconds.items()}


def together(repeats: int = 5) -> dict[str, Any]:
    """One mixed trainer against three; the discriminator's has to sample responses of its own."""
    found: dict[str, Any] = timed({"mixed": trainer()} | {part: trainer([part]) for part in PARTS}, repeats)
    apart = sum(found[part]["seconds"] for part in PARTS)
    peaks = {"mixed": peak("mixed")} | {part: peak(part) for part in PARTS}
    return {
        "seconds": found, "separate_over_mixed": apart / found["mixed"]["seconds"], "peak_mb": peaks,
        "separate_peaks_over_mixed": sum(peaks[p] for p in PARTS) / peaks["mixed"],
    }  # fmt: skip


def compiled(repeats: int = 5) -> dict[str, Any]:
    """Steps with the policy's blocks compiled and not, in turn; `extra`: what the first two compiled steps took beyond two plain ones."""
    found: dict[str, Any] = {}
    for part in ("adversarial sft", "grpo"):
        made = {"plain": trainer([part]), "compiled": trainer([part], compile=True)}
        first = {}
        for name, one in made.items():
            start = time.perf_counter()
            one.start()
            for _ in range(2):
                one.training_step()
            first[name] = time.perf_counter() - start
        rows = timed(made, repeats)
        ratio = rows["plain"]["seconds"] / rows["compiled"]["seconds"]
        found[part] = {"seconds": rows, "ratio": ratio, "extra": first["compiled"] - first["plain"]}
    return found


def peak(name: str) -> float:
    """MB at the peak of a process that makes two steps, above what it held once everything was imported."""
    found = subprocess.run([sys.executable, __file__, name], capture_output=True, text=True, check=True)
    return float(json.loads(found.stdout.splitlines()[-1])["peak_mb"])


GROWTH: dict[str, tuple[str, Callable[[int], Trainer], tuple[int, ...]]] = {
    "responses per prompt (G)": ("grpo", lambda g: trainer(["grpo"], prompts=4, size=g), (2, 4, 8, 16)),
    "new tokens (T)": ("grpo", lambda t: trainer(["grpo"], prompts=4, tokens=t), (16, 32, 64, 128)),
    "ascent steps (K)": ("adversarial sft", lambda k: trainer(["adversarial sft"], ascent=k), (0, 1, 2, 4)),
    "objectives on the same rows": ("sft", lambda n: trainer(["sft"], copies=n), (1, 2, 4, 8)),
}


def growth(repeats: int = 5) -> dict[str, Any]:
    """{what grows: [[value, seconds of a step], ...]}"""
    found: dict[str, Any] = {}
    for what, (_, make, values) in GROWTH.items():
        rows = timed({str(v): make(v) for v in values}, repeats)
        found[what] = [[v, rows[str(v)]["seconds"]] for v in values]
    return found


if __name__ == "__main__":
    from speed_memory import peak as most
    from speed_memory import resident

    torch.set_num_threads(1)
    one = trainer(PARTS if sys.argv[1] == "mixed" else [sys.argv[1]])
    before = resident()
    for _ in range(2):
        one.start()
        one.training_step()
    print(json.dumps({"peak_mb": most() - before}))

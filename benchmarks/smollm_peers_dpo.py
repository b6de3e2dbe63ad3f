"""DPO here and in TRL 1.16 on SmolLM2-135M-Instruct: one adapter, the same pairs in the same order, float32, no dropout.

Pairs are single turns of HH-RLHF (harmless) with short answers. Both sides start from one adapter folder whose B is zero, so that the
reference is the model itself, and make the same updates: 4 pairs, AdamW, one learning rate, no clipping, no checkpointing of activations.
TRL reads texts that its own `apply_chat_template` would give up to the line feed behind the last turn, which rows have nowhere here.
"""

from __future__ import annotations

import gzip
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from smollm_cells import LORA, MODEL, smoke

from advalign import Frozen, Learner, Trainer, TrainingArguments
from advalign import objectives as obj
from advalign import sources as src
from advalign.models import load

STEPS, PAIRS, RATE, BETA = 12, 4, 1e-4, 0.1
ROUNDS = 3
"""Runs of each side, in turns."""
SYSTEM = "Be helpful."
LONGEST = 250
"""Characters of the longest answer that is taken."""


def steps() -> int:
    return 2 if smoke() else STEPS


def rows() -> list[dict[str, Any]]:
    """As many pairs as all steps read."""
    with gzip.open(Path(os.environ["ADVALIGN_DATA"]) / "pref_hh_harmless/pairs.jsonl.gz", "rt", encoding="utf-8") as file:
        pairs = [json.loads(line) for line in file]
    short = [p for p in pairs if p["prompt"].count("Human:") == 1 and p["chosen"] != p["rejected"] and _fits(p)]
    return [_conversation(p) for p in short[: steps() * PAIRS]]


def _fits(pair: Mapping[str, str]) -> bool:
    return len(pair["prompt"]) <= 200 and all(10 <= len(pair[side]) <= LONGEST for side in ("chosen", "rejected"))


def _conversation(pair: Mapping[str, str]) -> dict[str, Any]:
    question = pair["prompt"].removeprefix("\n\nHuman:").removesuffix("Assistant:").strip()
    prompt = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    return {"prompt": prompt, "chosen": pair["chosen"].strip(), "rejected": pair["rejected"].strip()}


def adapter(folder: Path) -> Path:
    """A folder with an adapter, the same on every call; written by another process, whose memory is not this one's."""
    subprocess.run([sys.executable, __file__, str(folder)], check=True)
    return folder


def write_adapter(folder: Path) -> None:
    torch.manual_seed(0)
    load(MODEL, dtype="float32", max_length=512, options=LORA).save_pretrained(folder)


def ours(folder: Path) -> dict[str, Any]:
    """One run with this library; pairs come in the order in which its source draws them."""
    start = adapter(folder / "adapter")
    trainer = Trainer(
        model=Learner(model=MODEL, dtype="float32", max_length=512, learning_rate=RATE, max_grad_norm=0.0, options={"adapter": str(start)}),
        sources={"pairs": src.Pairs(data=rows(), batch_size=PAIRS)},
        objectives={"dpo": obj.DPO(source="pairs", beta=BETA)},
        frozen={"reference": Frozen(learner="policy")},
        args=TrainingArguments(max_steps=steps()),
    )
    trainer.start()
    before, logs, seconds = _memory(), [], []
    for _ in range(steps()):
        begin = time.process_time()
        logs.append(trainer.training_step())
        seconds.append(time.process_time() - begin)
    curves = {"loss": [row["dpo/loss"] for row in logs], "margins": [row["dpo/rewards/margins"] for row in logs]}
    return curves | {"logps": [row["dpo/logps/chosen"] for row in logs], "seconds": seconds} | _grown(before)


def order() -> list[dict[str, Any]]:
    """The pairs in the order in which `ours` draws them."""
    given = {row["chosen"]: row for row in rows()}
    trainer = Trainer(
        model=Learner(model="scratch:tiny", tokenizer={"kind": "characters", "data": "task:arithmetic"}, max_length=4096),
        sources={"pairs": src.Pairs(data=[row | {"prompt": row["prompt"][1]["content"]} for row in rows()], batch_size=PAIRS)},
        objectives={"prefer": obj.SimPO(source="pairs")},
        args=TrainingArguments(max_steps=steps()),
    )
    trainer.start()
    draws = [trainer.context.sources["pairs"].draw(step, 0) for step in range(steps())]
    return [given[example.meta["chosen"]] for draw in draws for example in draw]


def trl(folder: Path) -> dict[str, Any]:
    """One run with TRL."""
    from datasets import Dataset
    from peft import PeftModel
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer

    start, network = adapter(folder / "adapter"), load(MODEL, dtype="float32", max_length=512)
    model, tokenizer = PeftModel.from_pretrained(network.model, str(start), is_trainable=True), network.encoder.tokenizer
    render = lambda prompt: tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)  # noqa: E731
    data = Dataset.from_list([row | {"prompt": render(row["prompt"])} for row in order()])
    config = DPOConfig(
        output_dir=tempfile.mkdtemp(), max_steps=steps(), per_device_train_batch_size=PAIRS, learning_rate=RATE, beta=BETA, logging_steps=1,
        lr_scheduler_type="constant", max_grad_norm=0.0, gradient_checkpointing=False, bf16=False, use_cpu=True, report_to="none",
        save_strategy="no", train_sampling_strategy="sequential", max_length=512, disable_tqdm=True,
    )  # fmt: skip
    clock: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            clock.append(time.process_time())

    trainer = DPOTrainer(model=model, args=config, train_dataset=data, processing_class=tokenizer, callbacks=[Clock()])
    before = _memory()
    trainer.train()
    clock.append(time.process_time())
    logs = [row for row in trainer.state.log_history if "loss" in row]
    curves = {"loss": [row["loss"] for row in logs], "margins": [row["rewards/margins"] for row in logs]}
    seconds = [b - a for a, b in pairwise(clock)]
    return curves | {"logps": [row["logps/chosen"] for row in logs], "seconds": seconds} | _grown(before)


def _memory() -> float:
    """Largest resident memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _grown(before: float) -> dict[str, float]:
    return {"peak_mb": _memory(), "grown_mb": _memory() - before}


def compared(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Runs of this library and of TRL: how far the curves are apart, and ratios of medians over steps (the first left out) and runs."""
    a, b = first[0], second[0]
    apart = {name: max(abs(x - y) for x, y in zip(a[name], b[name], strict=True)) for name in ("loss", "margins", "logps")}
    seconds = [median(s for run in side for s in run["seconds"][1:]) for side in (first, second)]
    memory = [median(run["peak_mb"] for run in side) for side in (first, second)]
    return {
        "settings": {"steps": len(a["loss"]), "pairs": PAIRS, "learning_rate": RATE, "beta": BETA, "rounds": len(first)},
        "loss": {"advalign": a["loss"], "trl": b["loss"], "mean": fmean(a["loss"])},
        "largest_difference": apart,
        "seconds_per_step": {"advalign": seconds[0], "trl": seconds[1], "ratio": seconds[1] / seconds[0]},
        "peak_mb": {"advalign": memory[0], "trl": memory[1], "ratio": memory[1] / memory[0]},
    }


if __name__ == "__main__":
    write_adapter(Path(sys.argv[1]))

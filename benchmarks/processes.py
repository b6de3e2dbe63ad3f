"""One update by one process and by two, with whole weights (ddp) and with sharded ones (fsdp): how far they are apart, and what it costs.

    python benchmarks/processes.py [--output benchmarks/results/processes.json]

The mixed step: GRPO with a KL term on given rollouts, SFT under PGD, in float64 for the differences and in float32 for the times. Two
processes on one processor prove that the arithmetic is right. They prove nothing about scaling.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import torch
from accelerate import Accelerator
from torch.distributed.device_mesh import init_device_mesh
from torch.multiprocessing import start_processes

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from advalign import adversaries, objectives
from advalign.engine.learner import Learner, LearnerRuntime
from advalign.engine.plan import plan
from advalign.models import load
from advalign.models.sharding import Sharding, full_tensor
from advalign.types import DemoRows, RolloutRows
from benchmarks.common import about

RESULT = Path(__file__).with_name("results") / "processes.json"
KINDS = ("ddp", "fsdp")
MODEL = "scratch:tiny-gpt2?n_embd={width}&n_layer=4"
WORDS = "a b c d e f g h i j k l m n o p q r s t u v w x y z :"
ROWS, PROMPT, LONGEST = 32, 16, 48
UPDATES = 3
ROUNDS = 5


def rows(network: Any) -> dict[str, Any]:
    """Rollouts and demonstrations of ragged lengths, the same every time."""
    generator = torch.Generator().manual_seed(0)
    words = WORDS.split()

    def text(longest: int) -> str:
        length = int(torch.randint(1, longest, (), generator=generator))
        return " ".join(words[int(i)] for i in torch.randint(len(words), (length,), generator=generator))

    prompts = [text(PROMPT) for _ in range(ROWS // 4)]
    tokens = network.encoder.demos(
        [prompts[i // 4] for i in range(ROWS)], [text(LONGEST) for _ in range(ROWS)], [i // 4 for i in range(ROWS)]
    )

    def column(scale: float) -> torch.Tensor:
        return torch.randn(tokens.ids.shape, generator=generator, dtype=torch.float64) * scale * tokens.target

    rollouts = RolloutRows(
        tokens=tokens,
        rewards=torch.zeros(ROWS, 1),
        advantages=column(1.0),
        sampler_logprobs=column(0.1) - 3,
        finished=torch.ones(ROWS, dtype=torch.bool),
        old_logprobs=column(0.1) - 3,
        ref_logprobs=column(0.1) - 3,
    )
    demos = DemoRows(tokens=network.encoder.demos([text(PROMPT) for _ in range(ROWS)], [text(LONGEST) for _ in range(ROWS)]))
    return {"math": rollouts, "chat": demos}


TERMS = {
    "policy": objectives.GRPO(source="math"),
    "near": objectives.KL(source="math", coef=0.1),
    "robust": objectives.SFT(source="chat", view="pgd", coef=0.5),
}
PGD = {"pgd": adversaries.PGD(radius=0.2, steps=2)}


def runtime(width: int, dtype: str, kind: str | None, rate: float) -> LearnerRuntime:
    network = load(MODEL.format(width=width), tokenizer={"kind": "words"}, texts=[WORDS], max_length=80, dtype=dtype)
    shards = Sharding(mesh=init_device_mesh("cpu", (2,))) if kind == "fsdp" else None
    return LearnerRuntime("policy", Learner(model="given", learning_rate=rate, max_grad_norm=1e9), network, Accelerator(), 10, shards)


def update(learner: LearnerRuntime, step: int) -> None:
    learner.update(plan("policy", TERMS, PGD, []), rows(learner.network), {}, budget=1024, key=(0, "update", "policy", step, 0, 0, 0))


def differences(kind: str | None) -> dict[str, torch.Tensor]:
    """Gradients of one update, and weights after some."""
    learner = runtime(64, "float64", kind, 0.0)
    update(learner, 0)
    found = {f"gradient/{n}": full_tensor(p.grad).clone() for n, p in learner.network.named_parameters() if p.grad is not None}
    learner = runtime(64, "float64", kind, 1e-3)
    for step in range(UPDATES):
        update(learner, step)
    return found | {f"weight/{n}": full_tensor(p.detach()).clone() for n, p in learner.network.named_parameters()}


def seconds(kind: str | None) -> list[float]:
    """Of updates, after one that is not counted."""
    learner, found = runtime(256, "float32", kind, 1e-3), []
    for step in range(ROUNDS + 1):
        start = time.perf_counter()
        update(learner, step)
        found.append(time.perf_counter() - start)
    return found[1:]


def child(rank: int, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
    torch.set_num_threads(1)
    where = {"init_method": f"file://{folder}/meet", "rank": rank, "world_size": 2, "timeout": timedelta(seconds=900)}
    torch.distributed.init_process_group("gloo", **where)
    for kind in KINDS:
        found, times = differences(kind), seconds(kind)
        if rank == 0:
            torch.save(found, Path(folder, f"{kind}.pt"))
            Path(folder, f"{kind}.json").write_text(json.dumps(times))
    torch.distributed.destroy_process_group()


def apart(found: Mapping[str, torch.Tensor], want: Mapping[str, torch.Tensor], what: str) -> dict[str, float]:
    names = [n for n in want if n.startswith(what)]
    worst = max(float((found[n] - want[n]).abs().max()) for n in names)
    return {"greatest_difference": float(f"{worst:.3g}"), "greatest_value": float(f"{max(float(want[n].abs().max()) for n in names):.3g}")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=RESULT)
    torch.set_num_threads(1)
    output = parser.parse_args().output
    with tempfile.TemporaryDirectory() as folder:
        start_processes(child, (folder,), nprocs=2, start_method="spawn")
        found = {kind: torch.load(Path(folder, f"{kind}.pt"), weights_only=True) for kind in KINDS}
        times = {kind: json.loads(Path(folder, f"{kind}.json").read_text()) for kind in KINDS}
    want, alone = differences(None), seconds(None)
    result: dict[str, Any] = about("python benchmarks/processes.py")
    result["what"] = "one mixed update (GRPO + KL + SFT under PGD), two gloo processes of one thread against one process of one thread"
    result["load_average"] = round(os.getloadavg()[0], 1)
    result["note"] = "processes share the machine, with each other and with whatever else runs: correctness, not scaling"
    result["one"] = {"seconds_per_update": {"median": round(median(alone), 3), "values": [round(s, 3) for s in alone]}}
    for kind in KINDS:
        result[kind] = {what: apart(found[kind], want, what) for what in ("gradient", "weight")}
        result[kind] |= {"updates_before_weights": UPDATES}
        result[kind]["seconds_per_update"] = {"median": round(median(times[kind]), 3), "values": [round(s, 3) for s in times[kind]]}
        result[kind]["seconds_over_one"] = round(median(times[kind]) / median(alone), 2)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=2) + "\n")  # `save` rounds to six digits, and there is nothing left of 1e-16
    print(json.dumps({k: result[k] for k in ("one", *KINDS)}, indent=1))


if __name__ == "__main__":
    main()

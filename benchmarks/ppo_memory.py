"""Bytes of PPO's four models, counted tensor by tensor, and the peak of a process that trains them for three steps.

separate   actor, critic and reward model with weights of their own; the reference is a copy of the actor
shared     one frozen base: actor, critic and reward model are adapters (and heads) on it; the reference is the base

python benchmarks/ppo_memory.py [--presets tiny small base] [--output benchmarks/results/ppo_memory.json]
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from common import about, save
from rich.console import Console
from rich.table import Table

from advalign import Frozen, Learner, Sampling, Trainer, TrainingArguments
from advalign import advantages as A
from advalign import objectives as obj
from advalign import rewards as rw
from advalign import sources as src
from advalign.engine.learner import LearnerRuntime

STEPS, RANK, TASK = 3, 8, "task:arithmetic"
WARM = "tiny?hidden_size=8&num_attention_heads=2"
KINDS = ("weights", "gradients", "optimizer", "frozen")


def ppo(preset: str, shared: bool) -> Trainer:
    """Actor and critic train, the reward model scores, the reference holds the actor back. float32, AdamW."""
    lora = {"options": {"lora": {"r": RANK, "target_modules": "all-linear"}}} if shared else {}
    actor: dict[str, Any] = {"model": f"scratch:{preset}", "tokenizer": {"kind": "characters", "data": TASK}, "max_length": 24}
    other = {"model": "learner:policy"} if shared else actor
    return Trainer(
        learners={
            "policy": Learner(**actor, **lora),
            "critic": Learner(head="value", **other, **lora),
            "reward": Learner(head="score", **other, **lora),
        },
        sources={
            "sums": src.Prompts(
                data=TASK,
                batch_size=4,
                group_size=2,
                sampling=Sampling(max_new_tokens=4),
                rewards=[rw.Discriminator(learner="reward")],
                advantage=A.GAE(),
            )
        },
        objectives={"policy": obj.PPO(source="sums"), "value": obj.Value(source="sums"), "near": obj.KL(source="sums", coef=0.05)},
        frozen={"reference": Frozen(learner="policy")},
        args=TrainingArguments(max_steps=STEPS),
    )


# ------------------------------------------------------------------------------------------------------- counting


def tensors(trainer: Trainer) -> Iterator[tuple[str, torch.Tensor]]:
    """Everything that stays in memory between two steps, as (kind, tensor)."""
    runtimes: list[LearnerRuntime] = list(trainer.learners.values())
    for network in (r.network for r in runtimes):
        yield from (("weights", t) for t in (*network.parameters(), *network.buffers()))
    for runtime in runtimes:
        yield from (("gradients", p.grad) for p in runtime.network.parameters() if p.grad is not None)
        for state in runtime.optimizer.state.values():
            yield from (("optimizer", t) for t in state.values() if isinstance(t, torch.Tensor))
    for network in trainer.frozen.values():
        yield from (("frozen", t) for t in (*network.parameters(), *network.buffers()))


def count(trainer: Trainer) -> dict[str, int]:
    """Bytes of each kind; a storage that several tensors share counts once, where it is met first."""
    found, seen = dict.fromkeys(KINDS, 0), set()
    for kind, tensor in tensors(trainer):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            found[kind] += storage.nbytes()
    return found


def check(trainer: Trainer, found: dict[str, int], shared: bool) -> None:
    """What the count must be, from numbers of parameters alone (float32: 4 bytes)."""
    nets = [r.network for r in trainer.learners.values()]
    own = {n: [p for p in net.parameters() if p.requires_grad] for n, net in zip(trainer.learners, nets, strict=True)}
    size = {n: sum(p.numel() for p in ps) for n, ps in own.items()}
    base = sum(p.numel() for p in nets[0].parameters()) - size["policy"] if shared else 0
    buffers = sum(b.numel() for net in nets for b in net.buffers()) // (len(nets) if shared else 1)
    trained = size["policy"] + size["critic"]
    assert found["weights"] == 4 * (base + sum(size.values()) + buffers), "weights"
    assert found["gradients"] == 4 * trained, "the reward model has no gradient, and a frozen base neither"
    assert found["optimizer"] == 4 * (2 * trained + len(own["policy"]) + len(own["critic"])), "two moments, and a step per tensor"
    copied = sum(t.numel() for t in (*trainer.frozen["reference"].parameters(), *trainer.frozen["reference"].buffers()))
    assert found["frozen"] == (0 if shared else 4 * copied), "the reference is a copy, or the base"


# ------------------------------------------------------------------------------------------------------ measuring


def measure(preset: str, shared: bool) -> dict[str, Any]:
    """In a process of its own: three steps, the bytes after them, and by how much its peak of resident memory grew."""
    ppo(WARM, shared).train(overwrite=True, progress=False)  # code and libraries are paged in before the first reading
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    trainer = ppo(preset, shared)
    trainer.train(overwrite=True, progress=False)
    found = count(trainer)
    check(trainer, found, shared)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    own = {n: sum(p.numel() for p in r.network.parameters() if p.requires_grad) for n, r in trainer.learners.items()}
    return {"parameters": own, "bytes": found | {"total": sum(found.values())}, "peak_growth_bytes": 1024 * grown}


def apart(preset: str, shared: bool) -> dict[str, Any]:
    """`measure` in a forked process, so that no earlier peak hides a later one."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(measure, (preset, shared))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["tiny", "small", "base"])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/ppo_memory.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    wall = time.perf_counter()
    ppo(WARM, True).train(overwrite=True, progress=False)  # late imports, once for all processes
    found = {p: {"separate": apart(p, False), "shared": apart(p, True)} for p in args.presets}
    cpu = sum(resource.getrusage(who).ru_utime for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    spent = {"wall_seconds": round(time.perf_counter() - wall, 1), "cpu_seconds": round(cpu, 1)}
    save(args.output, {**about("python benchmarks/ppo_memory.py", "peft"), "steps": STEPS, "rank": RANK, "presets": found, **spent})
    table = Table("preset", "models", *KINDS, "total", "peak growth", title="PPO's four models, MB")
    for preset, arms in found.items():
        for arm, run in arms.items():
            cells = [*(run["bytes"][kind] for kind in (*KINDS, "total")), run["peak_growth_bytes"]]
            table.add_row(preset, arm, *(f"{value / 1e6:.2f}" for value in cells))
    Console(width=110).print(table)


if __name__ == "__main__":
    main()

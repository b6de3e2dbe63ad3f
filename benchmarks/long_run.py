"""Does a long run need more memory, the longer it is? 3,000 steps of a small game with everything that could grow.

    python benchmarks/long_run.py [--steps 3000] [--output benchmarks/results/long_run.json]

A policy that samples, replayed rollouts, a discriminator that is trained on replayed texts, warm-started deltas, an average, a gate, a
number that follows a metric, evaluations, logs, checkpoints, and a classifier whose answers are kept in a cache on disk. Read from the
operating system every 100 steps: resident memory and open files; and sizes of checkpoints.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from advalign import Evaluation, Follow, Frozen, Gate, Learner, Sampling, Trainer, TrainingArguments
from advalign.advantages.group import Group
from advalign.adversaries.pgd import PGD
from advalign.interfaces import Callback
from advalign.models import load
from advalign.objectives.discriminate import Discriminate
from advalign.objectives.grpo import GRPO
from advalign.objectives.sft import SFT
from advalign.rewards.discriminator import Discriminator
from advalign.sources.contrast import Contrast
from advalign.sources.demos import Demos
from advalign.sources.prompts import Prompts
from advalign.sources.replay import Replay
from advalign.targets import ClassifierTarget
from advalign.targets.cache import AnswerCache
from advalign.tasks.constraints import Constraints
from benchmarks.common import about, save

RESULT = Path(__file__).with_name("results") / "long_run.json"
DATA = "task:constraints"
EVERY = 100
WARM_UP = 500


class Watch(Callback):
    """Asks the cached classifier at every step, and reads memory and files every 100 steps."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.process = folder, psutil.Process()
        network = load("scratch:encoder-tiny?hidden_size=32", head="classifier", tokenizer={"kind": "words"}, texts=["a b c d e f"])
        self.target = ClassifierTarget(network, cache=AnswerCache(folder / "cache.sqlite", "classifier"))
        self.points: list[dict[str, Any]] = []

    def on_step(self, trainer: Any, logs: Any) -> None:
        self.target.predict([f"a b {'c d ' * (trainer.step % 7)} {trainer.step % 500}"])
        if trainer.step % EVERY == 0:
            gc.collect()
            checkpoints = sorted(self.folder.glob("run/checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
            size = sum(file.stat().st_size for file in checkpoints[-1].rglob("*") if file.is_file())
            rss, files = self.process.memory_info().rss, self.process.num_fds()
            self.points.append({"step": trainer.step, "resident_mb": rss / 1e6, "open_files": files, "checkpoint_kb": size / 1e3})
            print(self.points[-1], file=sys.stderr, flush=True)


def trainer(steps: int, folder: Path, watch: Watch) -> Trainer:
    """The game."""
    small = {"tokenizer": {"kind": "words", "data": DATA}, "max_length": 32, "learning_rate": 1e-3}
    short = Sampling(max_new_tokens=6)
    return Trainer(
        learners={
            "policy": Learner(model="scratch:tiny-gpt2?n_embd=32", **small),
            "discriminator": Learner(model="scratch:encoder-tiny?hidden_size=32", head="score", **small),
        },
        sources={
            "chat": Demos(data=DATA, limit=64, batch_size=4),
            "write": Prompts(
                data=DATA,
                batch_size=4,
                group_size=3,
                sampling=short,
                rewards=[Discriminator(learner="discriminator", normalize="running")],
                advantage=Group(scale="none"),
            ),
            "again": Replay(source="write", batch_size=2, steps=4, advantage=Group(scale="none")),
            "contrast": Contrast(real="chat", sampled="write", perturb=Constraints(), batch_size=4, replay=0.25, replay_steps=10),
        },
        adversaries={"pgd": PGD(radius=0.1, steps=1, warm=True)},
        objectives={
            "policy": GRPO(source="write"),
            "again": GRPO(source="again"),
            "robust": SFT(source="chat", view="pgd", coef=0.5),
            "discriminator": Discriminate(source="contrast"),
        },
        frozen={"mean": Frozen(ema=0.9)},
        gates={"discriminator": Gate(metric="discriminator/accuracy", above=0.95)},
        schedules={"adversaries.pgd.radius": Follow(metric="pgd/gain", target=0.05, start=0.1, low=0.01, high=1.0)},
        evaluations={"held": Evaluation(data=DATA, number=4, sampling=short)},
        callbacks=[watch],
        args=TrainingArguments(max_steps=steps, output_dir=str(folder / "run"), save_steps=EVERY // 2, eval_steps=EVERY // 2),
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        watch = Watch(Path(name))
        history = trainer(args.steps, Path(name), watch).train(progress=False)
    assert len(history) == args.steps
    warm = [point for point in watch.points if point["step"] >= WARM_UP]
    growth = {key: max(point[key] for point in warm) / warm[0][key] - 1 for key in ("resident_mb", "open_files", "checkpoint_kb")}
    save(
        args.output,
        {**about("make bench-long", "psutil"), "steps": args.steps, "warm_up": WARM_UP, "growth": growth, "points": watch.points},
    )


if __name__ == "__main__":
    main()

"""Small runs of every kind of state, and what can go wrong with them; each runs in a process of its own, forked from one that has imported
everything. Not in a test file: a fresh interpreter must import it by name."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
from helpers.runs import DATA, SHORT, chat, discriminator, game, imitation, policy, write

from advalign import Callback, Follow, Frozen, Gate, Ramp, Stage, TrainingArguments, Until
from advalign.advantages.gae import GAE
from advalign.advantages.group import Group
from advalign.adversaries.pgd import PGD
from advalign.adversaries.universal import Universal
from advalign.errors import AdvalignError
from advalign.objectives.discriminate import Discriminate
from advalign.objectives.grpo import GRPO
from advalign.objectives.kl import KL
from advalign.objectives.ppo import PPO
from advalign.objectives.sft import SFT
from advalign.objectives.value import Value
from advalign.rewards.exact_answer import ExactAnswer
from advalign.rewards.length import Length
from advalign.sources._options import Curriculum, Dynamic
from advalign.sources.contrast import Contrast
from advalign.sources.replay import Replay
from advalign.tasks.constraints import Constraints
from advalign.training.evaluate import Evaluation

STEPS = 6
WORLD = 2
LORA = {"r": 2, "lora_alpha": 4, "target_modules": ["c_attn"]}


def plain(**sections):
    """One learner, one objective."""
    return imitation(**sections)


def lora(**sections):
    """Adapters of a policy and a critic, a reference and an average, dropout."""
    defaults = {
        "learners": {
            "policy": policy(options={"lora": LORA, "dropout": 0.1}),
            "critic": policy(head="value", options={"lora": LORA}),
        },
        "sources": {"chat": chat(), "write": write(rewards=[ExactAnswer(), Length(target=4)], advantage=GAE())},
        "objectives": {
            "imitate": SFT(source="chat"),
            "policy": PPO(source="write"),
            "near": KL(source="write", coef=0.1),
            "value": Value(source="write", learner="critic"),
        },
        "frozen": {"reference": Frozen(), "mean": Frozen(ema=0.5)},
        "adversaries": {},
    }
    return game(**{**defaults, **sections})


def replay(**sections):
    """A critic, a curriculum, refills, replay, deltas that are kept from step to step."""
    defaults = {
        "learners": {"policy": policy(epochs=2), "critic": policy(head="value")},
        "sources": {
            "chat": chat(batch_size=1),
            "few": chat(batch_size=3, limit=3),
            "write": write(
                rewards=[ExactAnswer(), Length(target=4)], advantage=GAE(), dynamic=Dynamic(max_batches=2), curriculum=Curriculum()
            ),
            "again": Replay(source="write", advantage=Group(), batch_size=3),
        },
        "objectives": {
            "policy": PPO(source="write"),
            "replay": PPO(source="again", coef=0.1),
            "one": SFT(source="chat", view="universal", coef=0.5),
            "kept": SFT(source="few", view="warm", coef=0.5),
            "critic": Value(source="write", learner="critic"),
        },
        "adversaries": {"universal": Universal(radius=0.2), "warm": PGD(radius=0.2, steps=1, warm=True)},
    }
    return game(**{**defaults, **sections})


def games(**sections):
    """A gated discriminator with replay, a radius that follows a metric, a ramp, a stage that a metric ends, an average, a renewed copy."""
    defaults = {
        "learners": {
            "policy": policy(minibatches=2, lr_scheduler_type="linear"),
            "discriminator": discriminator(updates=2, options={"dropout": 0.1}),
        },
        "sources": {
            "chat": chat(),
            "write": write(),
            "contrast": Contrast(real="chat", sampled="write", perturb=Constraints(), batch_size=4, replay=0.5),
        },
        "objectives": {
            "policy": GRPO(source="write"),
            "near": KL(source="write", coef=0.1),
            "robust": SFT(source="chat", view="pgd", coef=0.5),
            "discriminator": Discriminate(source="contrast"),
        },
        "adversaries": {"pgd": PGD(radius=0.1, steps=2)},
        "frozen": {"reference": Frozen(), "mean": Frozen(ema=0.9), "before": Frozen(refresh=2)},
        "gates": {"discriminator": Gate(metric="discriminator/accuracy", above=0.5, max_skips=2, smoothing=0.5)},
        "schedules": {
            "adversaries.pgd.radius": Follow(metric="pgd/gain", target=0.01, start=0.1, low=0.01, high=0.3),
            "objectives.robust.coef": Ramp(start=0.1, end=0.5, steps=4),
        },
        "stages": [
            Stage(name="warm", steps=4, objectives=("robust", "discriminator"), until=Until(metric="robust/loss", below=99.0, after=2)),
            Stage(name="mix", steps=STEPS - 2),
        ],
        "evaluations": {"heldout": Evaluation(data=DATA, number=2, sampling=SHORT)},
    }
    return game(**{**defaults, **sections})


RUNS = {"plain": plain, "lora": lora, "replay": replay, "games": games}
SEVERAL = {"ddp": "ddp", "fsdp": "fsdp"}
"""Runs of two processes: a learner of `games` each in a part, or as a whole."""


def trainer(kind, folder, callbacks=(), **arguments):
    """A run of a kind that saves after every second step."""
    defaults = {"max_steps": STEPS, "token_budget": 200, "save_steps": 2, "eval_steps": 3, "output_dir": str(folder), "seed": 5}
    if kind in SEVERAL:
        defaults["distributed"] = SEVERAL[kind]
    build = RUNS.get(kind, replay)
    return build(args=TrainingArguments(**{**defaults, **arguments}), callbacks=list(callbacks))


# ------------------------------------------------------------------------------------------- what a process does


def train(kind, folder, resume=False, moment=None, meeting=None, rank=0, fault=None, errors=None, arguments=None):
    """Trains in this process; its exit code is that of the command line, and a sentence goes to the file `errors`.

    `moment`: this process kills itself when it touches the folder for the moment-th time. `meeting`: a file at which two processes meet.
    `fault`: the name of a callback of this module.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if errors is not None:
        sys.stderr = open(errors, "w", buffering=1)  # noqa: SIM115 -- until the process ends
    _settle(meeting, rank)
    counter = _Counter(folder, moment)
    try:
        trainer(kind, folder, [CALLBACKS[fault](folder)] if fault else [], **(arguments or {})).train(resume=resume, progress=False)
    except AdvalignError as error:
        if rank == 0:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(error.exit_code)
    except KeyboardInterrupt:
        os._exit(130)
    Path(f"{folder}.calls-{rank}").write_text(str(counter.number))
    if meeting is not None:
        torch.distributed.destroy_process_group()


def _settle(meeting, rank) -> None:
    os.environ |= {"HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
    torch.set_num_threads(1)
    random.seed(time.time_ns())  # what the run depends on is no global stream
    if meeting is not None:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD), "LOCAL_WORLD_SIZE": str(WORLD)}
        options = {"init_method": f"file://{meeting}", "rank": rank, "world_size": WORLD, "timeout": timedelta(seconds=120)}
        torch.distributed.init_process_group("gloo", **options)


class _Counter:
    """Counts what this process does to files in a folder, and kills it at one of these moments."""

    EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate")

    def __init__(self, folder, moment) -> None:
        self.folder, self.moment, self.number = str(folder) + os.sep, moment, 0
        sys.addaudithook(self._hook)

    def _hook(self, event, arguments) -> None:
        if event in self.EVENTS and isinstance(arguments[0], str | os.PathLike) and str(arguments[0]).startswith(self.folder):
            self.number += 1
            if self.number == self.moment:
                os.kill(os.getpid(), signal.SIGKILL)


# ------------------------------------------------------------------------------------------------------- faults


class FillsDisk(Callback):
    """Leaves no byte free after step 3, as another user of the disk does."""

    AT = 3

    def __init__(self, folder) -> None:
        self.file = Path(folder).parent / "filler"

    def on_step(self, trainer, logs) -> None:
        if trainer.step == self.AT:
            self.fill()

    def fill(self) -> None:
        size = 2**16
        with self.file.open("ab", buffering=0) as file:
            while size:
                try:
                    file.write(b"x" * size)
                except OSError:
                    size //= 2


class FillsReserve(FillsDisk):
    """Takes the reserved space too."""

    def fill(self) -> None:
        for reserved in self.file.parent.glob("*/.partial-reserved"):
            reserved.unlink()
        super().fill()


class Waits(Callback):
    """Waits in step 3, until somebody has written a file beside the folder."""

    def __init__(self, folder) -> None:
        self.folder = Path(folder)

    def on_step(self, trainer, logs) -> None:
        if trainer.step == 3:
            Path(f"{self.folder}.waits").touch()
            end = time.monotonic() + 120
            while not Path(f"{self.folder}.go").exists() and time.monotonic() < end:
                time.sleep(0.01)


CALLBACKS = {cls.__name__: cls for cls in (FillsDisk, FillsReserve, Waits)}

"""Whole runs on two processes. Not in a test file: a fresh interpreter must import it by name."""

import json
import os
from datetime import timedelta
from pathlib import Path

import torch
from games import DATA, SHORT, chat, game, judge, policy, write
from safetensors.torch import save_file

from advalign import Frozen, TrainingArguments
from advalign.advantages.gae import GAE
from advalign.advantages.group import Group
from advalign.adversaries.pgd import PGD
from advalign.adversaries.universal import Universal
from advalign.models.sharding import whole
from advalign.objectives.discriminate import Discriminate
from advalign.objectives.grpo import GRPO
from advalign.objectives.kl import KL
from advalign.objectives.ppo import PPO
from advalign.objectives.sft import SFT
from advalign.objectives.value import Value
from advalign.rewards.exact_answer import ExactAnswer
from advalign.rewards.length import Length
from advalign.sources._options import Curriculum, Dynamic
from advalign.sources.replay import Replay
from advalign.training.evaluate import Evaluation

WORLD = 2


class Seen:
    """Every text that was sampled, step by step."""

    def __init__(self):
        self.texts = []

    def on_step(self, trainer, logs):
        items = {name: found for name, found in sorted(trainer.context.items.items()) if hasattr(found[0], "rollouts")}
        self.texts.append({name: [[r.text for r in g.rollouts] for g in groups] for name, groups in items.items()})

    def on_evaluate(self, trainer, logs):
        pass

    def on_save(self, trainer, path):
        pass


def mixed(**sections):
    """GRPO on a judge that trains, SFT under attack, a reference, an average; a draw in two updates."""
    given = {
        "learners": {"policy": policy(minibatches=2), "judge": judge(updates=2)},
        "objectives": {
            "policy": GRPO(source="write"),
            "near": KL(source="write", coef=0.1),
            "robust": SFT(source="chat", view="pgd", coef=0.5),
            "judge": Discriminate(source="verdicts"),
        },
        "adversaries": {"pgd": PGD(radius=0.1, steps=2)},
        "frozen": {"reference": Frozen(), "mean": Frozen(ema=0.9)},
        "evaluations": {"heldout": Evaluation(data=DATA, number=3, sampling=SHORT)},
    }
    return game(**{**given, **sections})


def critics(**sections):
    """PPO with a critic, a curriculum, refills and replay; one demonstration, so that one process has none; deltas that are kept."""
    rewards = [ExactAnswer(), Length(target=4)]
    given = {
        "learners": {"policy": policy(epochs=2), "critic": policy(head="value")},
        "sources": {
            "chat": chat(batch_size=1),
            "few": chat(batch_size=3, limit=3),
            "write": write(rewards=rewards, advantage=GAE(), dynamic=Dynamic(max_batches=2), curriculum=Curriculum()),
            "again": Replay(of="write", advantage=Group(), batch_size=3),
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
    return game(**{**given, **sections})


RUNS = {"mixed": mixed, "critics": critics}


def trained(name, folder, *, steps=3, resume=False, **more):
    """(trainer, log, texts) of a run that saves every step."""
    seen = Seen()
    given = {"max_steps": steps, "token_budget": 120, "save_steps": 1, "eval_steps": 3, "output_dir": str(folder)}
    args = TrainingArguments(**{**given, **more})
    trainer = RUNS[name](args=args, callbacks=[seen])
    history = trainer.train(resume=resume, progress=False)
    return trainer, history, seen.texts


def weights(trainer):
    return {f"{n}.{k}": whole(p.detach()).clone() for n, r in trainer.learners.items() for k, p in r.network.named_parameters()}


def note(folder: Path, name: str, rank: int, trainer, history, texts) -> None:
    save_file(weights(trainer), folder / f"{name}-{rank}.safetensors")
    (folder / f"{name}-{rank}.json").write_text(json.dumps({"log": history, "texts": texts}))


def meet(rank: int, folder: str) -> bool:
    """Join the group; where gloo cannot start, say why."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD), "LOCAL_WORLD_SIZE": str(WORLD)}
    os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.set_num_threads(1)
    try:
        where = {"init_method": f"file://{folder}/meet", "rank": rank, "world_size": WORLD, "timeout": timedelta(seconds=300)}
        torch.distributed.init_process_group("gloo", **where)
        torch.distributed.barrier()
    except (RuntimeError, ValueError) as error:
        Path(folder, "reason").write_text(str(error))
        return False
    return True


def run(rank: int, folder: str) -> None:
    """What a spawned process does: every run, and the first once more from its second checkpoint."""
    if not meet(rank, folder):
        return
    for name in RUNS:
        note(Path(folder), name, rank, *trained(name, Path(folder, name)))
    torch.distributed.destroy_process_group()

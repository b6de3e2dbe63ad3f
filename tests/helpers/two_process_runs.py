"""Whole runs on two processes. Not in a test file: a fresh interpreter must import it by name."""

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from helpers.gloo import WORLD, meet
from helpers.networks import demos, network, pairs, rollouts
from helpers.runs import DATA, SHORT, chat, discriminator, game, policy, write
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh

from advalign import Callback, Frozen, Learner, TrainingArguments
from advalign import adversaries as adv
from advalign.advantages.gae import GAE
from advalign.advantages.group import Group
from advalign.adversaries.pgd import PGD
from advalign.adversaries.universal import Universal
from advalign.engine.learner import LearnerRuntime
from advalign.engine.plan import plan
from advalign.models.sharding import Sharding, full_tensor
from advalign.objectives.clip_cov import ClipCov
from advalign.objectives.consistency import Consistency
from advalign.objectives.discriminate import Discriminate
from advalign.objectives.dpo import DPO
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
from advalign.types import RolloutGroup

KINDS = ("ddp", "fsdp")
ROWS = {"all": slice(None), "few": slice(0, 2)}


class SampledTexts(Callback):
    """Every text that was sampled, step by step."""

    def __init__(self):
        self.texts = []

    def on_step(self, trainer, logs):
        draws = {name: items for name, items in sorted(trainer.context.items.items()) if isinstance(items[0], RolloutGroup)}
        self.texts.append({name: [[r.text for r in g.rollouts] for g in groups] for name, groups in draws.items()})


def mixed(**sections):
    """GRPO on a discriminator that trains, SFT under attack, a reference, an average; a draw in two updates."""
    defaults = {
        "learners": {"policy": policy(minibatches=2), "discriminator": discriminator(updates=2)},
        "objectives": {
            "policy": GRPO(source="write"),
            "near": KL(source="write", coef=0.1),
            "robust": SFT(source="chat", view="pgd", coef=0.5),
            "discriminator": Discriminate(source="contrast"),
        },
        "adversaries": {"pgd": PGD(radius=0.1, steps=2)},
        "frozen": {"reference": Frozen(), "mean": Frozen(ema=0.9)},
        "evaluations": {"heldout": Evaluation(data=DATA, number=3, sampling=SHORT)},
    }
    return game(**{**defaults, **sections})


def critics(**sections):
    """PPO with a critic, a curriculum, refills and replay; one demonstration, so that one process has none; deltas that are kept."""
    rewards = [ExactAnswer(), Length(target=4)]
    defaults = {
        "learners": {"policy": policy(epochs=2), "critic": policy(head="value")},
        "sources": {
            "chat": chat(batch_size=1),
            "few": chat(batch_size=3, limit=3),
            "write": write(rewards=rewards, advantage=GAE(), dynamic=Dynamic(max_batches=2), curriculum=Curriculum()),
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


def low(**sections):
    """The mixed run in float32, where autocast, or the shards' precision, has something to lower."""
    return mixed(learners={"policy": policy(minibatches=2, dtype="float32"), "discriminator": discriminator(dtype="float32")}, **sections)


RUNS = {"mixed": mixed, "critics": critics}


def trained(name, folder, *, steps=3, resume=False, **arguments):
    """(trainer, log, texts) of a run that saves every step."""
    noted = SampledTexts()
    defaults = {"max_steps": steps, "token_budget": 120, "save_steps": 1, "eval_steps": 3, "output_dir": str(folder)}
    trainer = {**RUNS, "low": low}[name](args=TrainingArguments(**{**defaults, **arguments}), callbacks=[noted])
    history = trainer.train(resume=resume, progress=False)
    return trainer, history, noted.texts


def weights(trainer):
    return {f"{n}.{k}": full_tensor(p.detach()).clone() for n, r in trainer.learners.items() for k, p in r.network.named_parameters()}


def note(folder: Path, name: str, trainer, history, texts) -> None:
    """What a process found, into files."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights(trainer), folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(json.dumps({"log": list(history), "texts": texts}))


# ---------------------------------------------------------------------------------- adversaries, three updates each

SFTS = {"attacked": SFT(source="chat", view="it"), "clean": SFT(source="chat", coef=0.2)}
UPDATES = {
    "pgd, warm": (SFTS, adv.PGD(radius=0.3, steps=2, warm=True)),
    "free": (SFTS, adv.Free(radius=0.3)),
    "freelb": (SFTS, adv.FreeLB(radius=0.3, steps=2)),
    "universal": (SFTS, adv.Universal(radius=0.3)),
    "lat": (SFTS, adv.LATAdversary(radius=0.3, steps=2, sites=("layer:0", "layer:1"))),
    "apgd on pairs": ({"a": DPO(source="pairs", view="it")}, adv.APGD(radius=0.3, steps=3)),
    "vat": ({"a": Consistency(source="chat", view="it", output="tokens")}, adv.VAT(radius=0.3)),
    "characters": (SFTS, adv.Characters(budget=0.5)),
    "refusal": (SFTS, adv.RefusalDirection(harmful="harmful.jsonl", harmless="harmless.jsonl", every=2, number=3)),
    "one delta per group": (
        {"a": PPO(source="math", view="it"), "cov": ClipCov(source="math")},
        adv.PGD(radius=0.3, steps=2, share="group", where="prompt", warm=True),
    ),
}


def updated(name, folder, rows=slice(None), mesh=None, **options):
    """(weights, logs) after three updates of one network. With two rows of long deltas one process may have none."""
    objectives, adversary = UPDATES[name]
    torch.manual_seed(0)
    net = network(options=options)
    rows_of = {"chat": demos(net), "math": rollouts(net), "pairs": pairs(net)}
    read = {objective.source for objective in objectives.values()}
    subset = {s: r.index(torch.arange(len(r.tokens.ids))[rows]) for s, r in rows_of.items() if s in read}
    if isinstance(adversary, adv.RefusalDirection):
        for side in ("harmful", "harmless"):
            texts = {"harmful": ("a b c", "d e", "f a"), "harmless": ("g h", "i", "j k b")}[side]
            (folder / f"{side}.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
        adversary = replace(adversary, harmful=str(folder / "harmful.jsonl"), harmless=str(folder / "harmless.jsonl"))
    shards = None if mesh is None else Sharding(mesh=mesh)
    runtime = LearnerRuntime("policy", Learner(model="given", learning_rate=1e-2), net, Accelerator(), 10, shards)
    planned = plan("policy", objectives, {"it": adversary}, [])
    for step in range(3):
        logs = runtime.update(planned, subset, {}, budget=70, key=(0, "update", "policy", step, 0, 0, 0))
    return {k: full_tensor(p.detach()).clone() for k, p in net.named_parameters()}, logs


# ------------------------------------------------------------------------------------------------------ processes


def run(rank: int, folder: str) -> None:
    """What a spawned process does: every run with each way to use two processes, resumed too; then every adversary."""
    if not meet(rank, folder):
        return
    warnings.simplefilter("ignore")
    for kind in KINDS:
        for name in RUNS:
            run_folder = Path(folder, kind, name)
            note(run_folder / "found", f"whole-{rank}", *trained(name, run_folder / "whole", distributed=kind))
            if rank == 0:  # the second checkpoint, to go on from with two processes and with one
                for copy in ("again", "alone"):
                    shutil.copytree(run_folder / "whole" / "checkpoint-2", run_folder / copy / "checkpoint-2")
            torch.distributed.barrier()
            note(run_folder / "found", f"again-{rank}", *trained(name, run_folder / "again", resume=True, distributed=kind))
        if rank == 0:
            Path(folder, "inner").mkdir(exist_ok=True)
        torch.distributed.barrier()
        mesh = init_device_mesh("cpu", (WORLD,)) if kind == "fsdp" else None
        for name in UPDATES:
            for label, subset in ROWS.items():
                at = Path(folder, "inner", f"{kind}-{rank}-{label}")
                at.mkdir(exist_ok=True)
                tensors, logs = updated(name, at, subset, mesh)
                save_file(tensors, at / f"{name}.safetensors")
                (at / f"{name}.json").write_text(json.dumps(logs))
        AcceleratorState._reset_state()
        short = trained("low", Path(folder, kind, "low"), steps=2, distributed=kind, mixed_precision="bf16")
        note(Path(folder, kind, "mixed", "found"), f"low-{rank}", *short)
        AcceleratorState._reset_state()
    torch.distributed.destroy_process_group()

"""What the trainer tests share: a whole game that is as small as it can be, to be changed a little by each test."""

import torch

from advalign import Learner, Sampling, Trainer, TrainingArguments
from advalign.advantages.group import Group
from advalign.adversaries.pgd import PGD
from advalign.engine.learner import LearnerRuntime
from advalign.objectives.discriminate import Discriminate
from advalign.objectives.grpo import GRPO
from advalign.objectives.sft import SFT
from advalign.rewards.discriminator import Discriminator as DiscriminatorReward
from advalign.sources.contrast import Contrast
from advalign.sources.demos import Demos
from advalign.sources.prompts import Prompts
from advalign.tasks.constraints import Constraints

DATA = "task:constraints"
WORDS = {"kind": "words", "data": DATA}
SHORT = Sampling(max_new_tokens=6)


def policy(**fields):
    model = {"model": "scratch:tiny-gpt2?n_embd=32", "tokenizer": WORDS, "max_length": 32, "dtype": "float64"}
    return Learner(**{**model, "learning_rate": 1e-3, **fields})


def discriminator(**fields):
    return policy(**{"model": "scratch:encoder-tiny?hidden_size=32", "head": "score", **fields})


def chat(**fields):
    return Demos(**{"data": DATA, "limit": 12, "batch_size": 4, **fields})


def write(**fields):
    defaults = {
        "data": DATA,
        "batch_size": 4,
        "group_size": 3,
        "sampling": SHORT,
        "rewards": [DiscriminatorReward(learner="discriminator")],
    }
    return Prompts(**{**defaults, "advantage": Group(scale="none"), **fields})


def game(**sections):
    """Arguments of a Trainer: policy and discriminator, sft + grpo + sft|pgd + discriminate. A section given replaces that section."""
    arguments = {
        "learners": {"policy": policy(), "discriminator": discriminator()},
        "sources": {
            "chat": chat(),
            "write": write(),
            "contrast": Contrast(real="chat", sampled="write", perturb=Constraints(), batch_size=4),
        },
        "adversaries": {"pgd": PGD(radius=0.1, steps=1)},
        "objectives": {
            "policy": GRPO(source="write"),
            "robust": SFT(source="chat", view="pgd", coef=0.5),
            "discriminator": Discriminate(source="contrast"),
        },
        "args": TrainingArguments(max_steps=2),
    }
    return Trainer(**{**arguments, **sections})


def imitation(steps=3, **sections):
    """A Trainer with one learner and one SFT term."""
    objectives = sections.pop("objectives", {"imitate": SFT(source="chat")})
    args = TrainingArguments(max_steps=steps)
    return Trainer(**{"model": policy(), "sources": {"chat": chat()}, "objectives": objectives, "args": args, **sections})


def weights(network):
    return {name: p.detach().clone() for name, p in network.named_parameters()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def spy(monkeypatch, before=None, after=None):
    """Call `before(runtime, rows)` and `after(runtime, rows)` around every update of every learner."""
    real = LearnerRuntime.update

    def update(self, plan, rows, *arguments, **options):
        if before is not None:
            before(self, rows)
        logs = real(self, plan, rows, *arguments, **options)
        if after is not None:
            after(self, rows)
        return logs

    monkeypatch.setattr(LearnerRuntime, "update", update)

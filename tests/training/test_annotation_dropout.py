"""Annotated columns are those of the model without dropout, whatever mode training left it in."""

import pytest
import torch
from helpers.runs import DATA, SHORT, policy, spy

from advalign import Frozen, Trainer, TrainingArguments
from advalign.advantages import Group
from advalign.objectives import DPO, GRPO
from advalign.rewards import Length
from advalign.sources import Pairs, Prompts


def clean_logprobs(network, tokens):
    """Of one forward without dropout."""
    mode = network.training
    network.eval()
    with torch.no_grad():
        logp = network(tokens, {"logprobs"}).logprobs
    network.train(mode)
    return torch.where(tokens.target, logp, 0.0)


def dropout(**fields):
    """A policy that drops half of its hidden states, and never moves."""
    return policy(options={"dropout": 0.5}, learning_rate=0.0, **fields)


@pytest.mark.parametrize("column", ["old_logprobs", "ref_logprobs"])
def test_annotations_are_without_dropout(monkeypatch, column):
    """Three steps, so that the draw is annotated by a model that has been in training mode."""
    write = Prompts(data=DATA, batch_size=2, group_size=2, sampling=SHORT, rewards=[Length()], advantage=Group())
    objectives = {"x": GRPO(source="s")} if column == "old_logprobs" else {"x": DPO(source="s")}
    differences = []

    def compare(runtime, rows):
        r = rows["s"]
        annotated = getattr(r, column)
        differences.append(float((torch.where(r.tokens.target, annotated, 0.0) - clean_logprobs(runtime.network, r.tokens)).abs().max()))

    spy(monkeypatch, before=compare)
    trainer = Trainer(
        learners={"policy": dropout(minibatches=2)},
        sources={"s": write if column == "old_logprobs" else Pairs(data=DATA, batch_size=4, limit=8)},
        objectives=objectives,
        frozen={"reference": Frozen(learner="policy")},
        args=TrainingArguments(max_steps=3),
    )
    trainer.train(progress=False)
    assert len(differences) == 6
    assert max(differences) < 1e-12


def test_annotation_leaves_the_mode_of_the_network():
    trainer = Trainer(
        learners={"policy": dropout(minibatches=2)},
        sources={"s": Prompts(data=DATA, batch_size=2, group_size=2, sampling=SHORT, rewards=[Length()], advantage=Group())},
        objectives={"x": GRPO(source="s")},
        args=TrainingArguments(max_steps=2),
    )
    trainer.train(progress=False)
    network = trainer.learners["policy"].network
    tokens = network.encoder.demos(["red"], ["blue"])
    assert network.training
    outputs = [network(tokens, {"logprobs"}).logprobs for _ in range(2)]
    assert not torch.equal(*outputs)  # dropout is on where it belongs

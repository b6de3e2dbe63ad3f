"""Conventions that users of other libraries bring along (docs/training.md): when rates fall, how minibatches are drawn, where ramps end."""

import pytest
import torch
from helpers.runs import chat, discriminator, game, imitation, policy, spy, write
from transformers.optimization import get_scheduler

from advalign import Gate, Ramp, Stage, TrainingArguments
from advalign.advantages.group import Group
from advalign.adversaries.free import Free
from advalign.adversaries.pgd import PGD
from advalign.engine.micro import split_groups
from advalign.objectives.clip_cov import ClipCov
from advalign.objectives.kl_cov import KLCov
from advalign.objectives.sft import SFT
from advalign.rewards.function import Function
from advalign.training.columns import columns
from advalign.training.run_spec import RunSpec


def rates(trainer, monkeypatch):
    """The learning rate of every update, in order."""
    seen = []
    spy(monkeypatch, before=lambda runtime, rows: seen.append(runtime.optimizer.param_groups[0]["lr"]))
    trainer.train(progress=False)
    return seen


def expected(kind, number, warmup=0, rate=1e-3):
    """What transformers' scheduler gives for `number` optimizer updates."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=rate)
    scheduler = get_scheduler(kind, optimizer, num_warmup_steps=warmup, num_training_steps=number)
    values = []
    for _ in range(number):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return values


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant_with_warmup"])
@pytest.mark.parametrize("fields", [{}, {"minibatches": 2, "epochs": 3}, {"updates": 2}, {"every": 2}], ids=str)
def test_the_learning_rate_falls_over_the_updates_of_the_learner(kind, fields, monkeypatch):
    """Six steps of one update, of 2 x 3, of 2, and three of one."""
    number = {"minibatches": 36, "updates": 12, "every": 3}.get(next(iter(fields), ""), 6)
    trainer = imitation(model=policy(lr_scheduler_type=kind, warmup_steps=2, **fields), steps=6)
    assert trainer.run_spec.num_updates("policy") == number
    assert rates(trainer, monkeypatch) == pytest.approx(expected(kind, number, 2), abs=1e-12)


def test_stages_intervals_and_schedules_are_counted(monkeypatch):
    """4 steps of one update; 3 steps, of which the learner takes part in every second with 2 epochs; 2 without this learner."""
    stages = [
        Stage(name="warm", steps=4, objectives=("imitate",)),
        Stage(name="slow", steps=3, objectives=("robust",), set={"learners.policy.epochs": 2, "learners.policy.every": 2}),
        Stage(name="other", steps=2, objectives=("discriminator",)),
    ]
    trainer = game(
        learners={"policy": policy(lr_scheduler_type="linear"), "discriminator": discriminator()},
        objectives={
            "imitate": SFT(source="chat"),
            "robust": SFT(source="chat", view="pgd"),
            "discriminator": game().config["objectives"]["discriminator"],
        },
        adversaries={"pgd": PGD(radius=0.1, steps=1)},
        stages=stages,
    )
    assert trainer.run_spec.num_updates("policy") == 4 + 2 * 2
    assert trainer.run_spec.num_updates("discriminator") == 2
    seen = []
    spy(monkeypatch, before=lambda runtime, rows: seen.append((runtime.name, runtime.optimizer.param_groups[0]["lr"])))
    trainer.train(progress=False)
    assert [rate for name, rate in seen if name == "policy"] == pytest.approx(expected("linear", 8), abs=1e-12)


def test_an_objective_that_a_ramp_switches_on_is_counted_from_there():
    """A coefficient of 0, 0, 0.5 and 1 in four steps: two updates."""
    ramp = {"objectives.imitate.coef": Ramp(end=1.0, steps=3, delay=1)}
    trainer = imitation(steps=4, schedules=ramp)
    assert trainer.run_spec.num_updates("policy") == 2


def test_updates_that_a_gate_skips_count(monkeypatch):
    trainer = game(
        learners={"policy": policy(), "discriminator": discriminator(lr_scheduler_type="linear", updates=2)},
        gates={"discriminator": Gate(metric="discriminator/accuracy", above=-1.0, max_skips=2)},
        args=TrainingArguments(max_steps=6),
    )
    trainer.train(progress=False)
    assert trainer.run_spec.num_updates("discriminator") == 12
    assert trainer.learners["discriminator"].optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)


# ------------------------------------------------------------------------------------------------------ minibatches


def minibatches(trainer, monkeypatch):
    """Row numbers of every minibatch of the first step."""
    seen = []
    spy(monkeypatch, before=lambda runtime, rows: seen.append(rows["chat"].tokens.key.tolist()))
    trainer.start()
    trainer.training_step()
    return seen


def test_minibatches_are_shuffled_between_epochs(monkeypatch):
    model = policy(minibatches=4, epochs=3)
    sources = {"chat": chat(batch_size=12)}
    seen = minibatches(imitation(model=model, sources=sources), monkeypatch)
    epochs = [seen[i : i + 4] for i in (0, 4, 8)]
    assert epochs[0] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert all(sorted(row for part in epoch for row in part) == list(range(12)) for epoch in epochs)
    assert epochs[1] != epochs[0] != epochs[2] != epochs[1]
    monkeypatch.undo()
    assert minibatches(imitation(model=model, sources=sources), monkeypatch) == seen  # a function of the seed


def test_groups_stay_whole_when_they_are_shuffled():
    from helpers.networks import network, pairs

    rows = pairs(network())
    parts = split_groups(rows, 2, torch.Generator().manual_seed(1))
    assert sorted(p.tolist() for p in parts) == [[0, 1], [2, 3]]


def test_free_replays_a_row_with_its_own_delta_in_whatever_minibatch(monkeypatch):
    adversary = Free(radius=0.2, carry=False)
    trainer = imitation(
        model=policy(minibatches=2, epochs=2),
        objectives={"robust": SFT(source="chat", view="free")},
        adversaries={"free": adversary},
    )
    trainer.start()
    trainer.training_step()
    memory = trainer.learners["policy"].memory["free"]
    assert sorted(name for places in memory.values() for name in places) == [f"chat/{i}" for i in range(4)]


# ------------------------------------------------------------------------------------------------------------ ramps


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_a_ramp_of_the_length_of_the_run_reaches_its_end_in_the_last_step(kind):
    ramp = Ramp(start=0.2, end=1.0, steps=5, kind=kind)
    trainer = imitation(steps=5, schedules={"objectives.imitate.coef": ramp})
    values = [RunSpec.step_plan(trainer.run_spec, trainer.stage, step).objectives["imitate"].coef for step in range(5)]
    assert values[0] == pytest.approx(0.2)
    assert values[-1] == pytest.approx(1.0)
    assert values == sorted(values)
    assert values[2] == pytest.approx(0.6)  # half way


# ------------------------------------------------------------------------------------------------------- covariances


@pytest.mark.parametrize("term", [KLCov, ClipCov])
def test_covariances_are_those_of_the_weights_before_each_update(term, monkeypatch):
    """In the first update of a draw they are the old log-probabilities; then those of the network at that moment."""
    longer = Function(fn=lambda completions: [float(len(c)) for c in completions])
    trainer = game(
        learners={"policy": policy(minibatches=2, epochs=2, learning_rate=0.05)},
        sources={"write": write(rewards=[longer], advantage=Group(scale="none"))},
        objectives={"learn": term(source="write")},
        adversaries={},
    )
    seen = []

    def look(runtime, rows):
        rows = rows["write"]
        now = columns(runtime.network, rows, {"logprobs"}, 10_000)["logprobs"]
        seen.append((rows.current_logprobs, rows.old_logprobs, now, rows.tokens.target))

    spy(monkeypatch, before=look)
    trainer.start()
    trainer.training_step()
    assert seen[0][0] is None
    torch.testing.assert_close(seen[0][1], seen[0][2], rtol=0, atol=1e-12)
    for current, old, now, target in seen[1:]:
        torch.testing.assert_close(current, now, rtol=0, atol=1e-12)
        assert (current - old)[target].abs().max() > 1e-3

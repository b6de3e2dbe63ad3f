"""What moves while a run goes on: stages, schedules, learning rates, frozen copies."""

import math

import pytest
import torch
from helpers.runs import game, imitation, policy, same, weights, write

from advalign import Follow, Frozen, Ramp, Stage, TrainingArguments, Until
from advalign.adversaries.pgd import PGD
from advalign.errors import ConfigError
from advalign.objectives.grpo import GRPO
from advalign.objectives.kl import KL
from advalign.objectives.sft import SFT
from advalign.rewards.function import Function
from advalign.training.run_spec import RunSpec
from advalign.training.schedule import Timeline


def test_stages_run_their_objectives_and_settings_in_order():
    stages = [
        Stage(name="warm", steps=2, objectives=("imitate",), set={"learners.policy.learning_rate": 1e-4}),
        Stage(name="robust", steps=1, objectives=("robust",)),
        Stage(name="both", steps=1),
    ]
    objectives = {"imitate": SFT(source="chat"), "robust": SFT(source="chat", view="pgd")}
    trainer = imitation(objectives=objectives, adversaries={"pgd": PGD(steps=1)}, stages=stages)
    history = trainer.train(progress=False)
    assert trainer.total_steps == 4
    assert [entry["stage"] for entry in history] == ["warm", "warm", "robust", "both"]
    assert [("imitate/loss" in entry, "robust/loss" in entry) for entry in history] == [(True, False)] * 2 + [(False, True), (True, True)]
    assert [entry["policy/learning_rate"] for entry in history] == [1e-4, 1e-4, 1e-3, 1e-3]


def scripted(values):
    """A reward that says one number per draw."""
    numbers = iter(values)
    return Function(fn=lambda completions: [next(numbers)] * len(completions))


def test_until_ends_a_stage_on_a_running_mean():
    # Smoothing 0.5 over 0, 1, 1, 1: means 0, 1/2, 3/4. Above 0.7 for the first time after three steps of the ten.
    until = Until(metric="write/rewards/function/mean", above=0.7, smoothing=0.5)
    stages = [Stage(name="wait", steps=10, until=until), Stage(name="rest", steps=2)]
    objectives = {"policy": GRPO(source="write")}
    trainer = game(objectives=objectives, sources={"write": write(rewards=[scripted([0.0] + [1.0] * 9)])}, stages=stages)
    assert [entry["stage"] for entry in trainer.train(progress=False)] == ["wait"] * 3 + ["rest"] * 2


def test_two_equal_stages_each_end_on_their_own():
    # -loss is below zero from the start; at least two steps each.
    stage = Stage(steps=5, until=Until(metric="imitate/loss", above=0.0, after=2))
    history = imitation(stages=[stage, stage]).train(progress=False)
    assert [entry["step"] for entry in history] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("ramp", "expected"),
    [
        (Ramp(end=1.0, steps=5), {0: 0, 1: 1 / 4, 2: 1 / 2, 4: 1, 9: 1}),  # the last of five steps
        (Ramp(start=2.0, end=1.0, steps=3, delay=3), {0: 2, 3: 2, 4: 1.5, 5: 1}),
        (Ramp(start=2.0, end=1.0, steps=1, delay=3), {0: 2, 2: 2, 3: 1}),
        (Ramp(end=1.0, steps=5, kind="cosine"), {0: 0, 1: (1 - math.sqrt(0.5)) / 2, 2: 1 / 2, 3: (1 + math.sqrt(0.5)) / 2, 4: 1}),
        (Ramp(end=3.0, steps=4, kind="constant"), {0: 0, 3: 0, 4: 3, 5: 3}),
    ],
)
def test_ramps(ramp, expected):
    for step, value in expected.items():
        assert ramp.at(step) == pytest.approx(value, abs=1e-12)


def test_schedules_move_numbers_while_it_runs():
    objectives = {"imitate": SFT(source="chat"), "robust": SFT(source="chat", view="pgd")}
    schedules = {
        "objectives.robust.coef": Ramp(end=0.5, steps=3),
        "adversaries.pgd.steps": Ramp(start=1, end=3, steps=5),  # whole numbers stay whole: 1, 1.5 -> 2, 2, 2.5 -> 2, 3
        "learners.policy.learning_rate": Ramp(start=1e-3, end=2e-3, steps=2, stage="late"),  # counted from the start of its stage
    }
    stages = [Stage(name="early", steps=3), Stage(name="late", steps=2)]
    trainer = imitation(objectives=objectives, adversaries={"pgd": PGD(radius=0.1)}, schedules=schedules, stages=stages)
    trainer.start()
    coefs, steps, rates, forwards = [], [], [], []
    for _ in range(5):
        plan = trainer.step_plan().plans["policy"]
        coefs.append(plan.objectives["robust"].coef if "robust" in plan.objectives else 0)
        steps.append(plan.adversaries["pgd"].steps if plan.adversaries else 0)
        before = trainer.model.num_forwards
        rates.append(trainer.training_step()["policy/learning_rate"])
        forwards.append(trainer.model.num_forwards - before)
    assert coefs == [0, 0.25, 0.5, 0.5, 0.5]
    assert steps == [0, 2, 2, 2, 3]
    assert forwards == [1] + [1 + n + 1 for n in steps[1:]]  # a term of coefficient 0 costs nothing
    assert rates == [1e-3, 1e-3, 1e-3, 1e-3, 2e-3]
    assert "0.5 sft(chat | pgd)" in trainer.formula()
    assert "objectives.robust.coef goes from 0 to 0.5 in 3 steps (linear)" in trainer.formula()


def test_follow_by_hand():
    """v <- v exp(rate d): a gain of 1 at a target of 2 is half too small (d = 1/2); at 6 the distance is clipped to -1."""
    follow = Follow(metric="pgd/gain", target=2.0, start=0.1, low=0.05, high=0.2, rate=0.4, smoothing=0.0)
    assert follow.next_value(0.1, 1.0) == pytest.approx(0.1 * math.exp(0.2), rel=1e-12)
    assert follow.next_value(0.1, 6.0) == pytest.approx(0.1 * math.exp(-0.4), rel=1e-12)
    assert (follow.next_value(0.19, 0.0), follow.next_value(0.051, 9.0)) == (0.2, 0.05)
    above = Follow(metric="clean/accuracy", target=0.8, start=0.1, rate=0.4, raise_when="above")
    assert above.next_value(0.1, 0.9) == pytest.approx(0.1 * math.exp(0.4 * 0.125), rel=1e-12)
    # The running mean: 1, then 0.9 * 1 + 0.1 * 3 = 1.2, of which d = 0.4.
    timeline = Timeline([Stage(steps=9)], {"adversaries.pgd.radius": Follow(metric="g", target=2.0, start=0.1, rate=1.0)})
    timeline.observe(1, {"g": 1.0})
    timeline.observe(2, {"g": 3.0})
    timeline.observe(3, {"other": 3.0})
    assert timeline.values == {"adversaries.pgd.radius": pytest.approx(0.1 * math.exp(0.5) * math.exp(0.4), rel=1e-12)}


def test_a_radius_follows_what_the_attack_gains(tmp_path):
    """Towards a gain the attack cannot reach the radius rises; towards one far below its own it falls; and a resumed run goes on."""

    def run(target, steps=6, resume=False, folder=None):
        schedules = {"adversaries.pgd.radius": Follow(metric="pgd/gain", target=target, start=0.1, low=0.001, high=5.0, rate=0.5)}
        args = TrainingArguments(max_steps=steps, output_dir=folder, save_steps=3 if folder else 0)
        objectives = {"robust": SFT(source="chat", view="pgd")}
        trainer = imitation(objectives=objectives, adversaries={"pgd": PGD(radius=0.1)}, schedules=schedules, args=args)
        return [entry["schedules/adversaries.pgd.radius"] for entry in trainer.train(progress=False, resume=resume)]

    rising, falling = run(100.0), run(1e-6)
    assert rising == sorted(rising)
    assert rising[-1] > 1.0 > 0.02 > falling[-1]
    assert falling == sorted(falling, reverse=True)
    uninterrupted = run(0.01, folder=str(tmp_path / "whole"))
    first = run(0.01, steps=3, folder=str(tmp_path / "cut"))
    remaining = run(0.01, folder=str(tmp_path / "cut"), resume=True)
    assert first + remaining == uninterrupted


def test_follow_from_yaml_and_its_refusals():
    from advalign import config

    built = config.sections({"schedules": {"adversaries.pgd.radius": {"metric": "pgd/gain", "target": 0.3, "start": 0.1, "high": 0.4}}})
    assert isinstance(built["schedules"]["adversaries.pgd.radius"], Follow)
    assert built["schedules"]["adversaries.pgd.radius"].end == 0.4
    with pytest.raises(ConfigError, match=r"start 0\.5 must be between low 0 and high 0\.4"):
        Follow(metric="g", target=1.0, start=0.5, high=0.4)
    with pytest.raises(ConfigError, match="Did you mean 'above'"):
        Follow(metric="g", target=1.0, start=0.5, raise_when="abve")


def test_a_learning_rate_schedule_of_transformers():
    # linear with one warm-up step over three: factors 0, 1, 1/2.
    rates = [e["policy/learning_rate"] for e in imitation(model=policy(lr_scheduler_type="linear", warmup_steps=1)).train(progress=False)]
    assert rates == pytest.approx([0.0, 1e-3, 5e-4])


# ------------------------------------------------------------------------------------------------------ frozen copies


def test_a_reference_is_a_snapshot_from_the_stage_that_first_needs_it():
    stages = [Stage(name="warm", steps=2, objectives=("imitate",)), Stage(name="mix", steps=2, objectives=("policy", "near"))]
    objectives = {"imitate": SFT(source="chat"), "policy": GRPO(source="write"), "near": KL(source="write")}
    trainer = game(objectives=objectives, frozen={"reference": Frozen()}, stages=stages)
    trainer.start()
    trainer.training_step()
    assert trainer.frozen == {}
    trainer.training_step()
    warmed = weights(trainer.learners["policy"].network)
    trainer.training_step()
    trainer.training_step()
    assert same(weights(trainer.frozen["reference"]), warmed)
    assert not same(weights(trainer.learners["policy"].network), warmed)


def test_an_average_follows_its_learner():
    trainer = imitation(frozen={"mean": Frozen(ema=0.75)})
    trainer.start()
    average = weights(trainer.model)
    for _ in range(3):
        trainer.training_step()
        current = weights(trainer.model)
        average = {name: 0.75 * average[name] + 0.25 * current[name] for name in current}  # w <- ema w + (1 - ema) w_learner
    for name, value in weights(trainer.frozen["mean"]).items():
        assert torch.allclose(value, average[name], rtol=0, atol=1e-12), name


def test_a_step_is_planned_once(monkeypatch):
    """Every part of a step is handed the same configuration, objectives and plans."""
    calls = []
    real = RunSpec.active_config

    def counting(self, stage, step=0, *arguments, **options):
        calls.append(step)
        return real(self, stage, step, *arguments, **options)

    trainer = game(schedules={"objectives.robust.coef": Ramp(end=0.5, steps=2)})
    trainer.start()
    monkeypatch.setattr(RunSpec, "active_config", counting)
    for _ in range(3):
        trainer.training_step()
    assert calls == [0, 1, 2]


def test_the_copy_that_is_the_reference_is_resolved_in_one_place():
    def spec(**frozen):
        return imitation(frozen=frozen).run_spec

    assert spec().reference is None
    assert spec(teacher=Frozen()).reference is None
    assert spec(reference=Frozen(), teacher=Frozen()).reference == "reference"


# ---------------------------------------------------------------------- fields of a learner that move, and that do not


@pytest.mark.parametrize("field", [{"weight_decay": 0.5}, {"max_grad_norm": 1e-9}])
def test_what_a_stage_sets_of_the_optimizer_is_what_the_learner_would_have_had(field):
    (name, value), args = *field.items(), {"learning_rate": 1e-2}
    staged = imitation(model=policy(**args), stages=[Stage(steps=2, name="s", set={f"learners.policy.{name}": value})])
    ramped = imitation(model=policy(**args), schedules={f"learners.policy.{name}": Ramp(start=value, end=value)}, steps=2)
    given, plain = imitation(2, model=policy(**args, **field)), imitation(2, model=policy(**args))
    for trainer in (staged, ramped, given, plain):
        trainer.train(progress=False)
    assert same(weights(staged.model), weights(given.model))
    assert same(weights(ramped.model), weights(given.model))
    assert not same(weights(staged.model), weights(plain.model))


@pytest.mark.parametrize(
    ("field", "value"), [("max_length", 16), ("lr_scheduler_type", "linear"), ("warmup_steps", 3), ("dtype", "float32"), ("head", "value")]
)
def test_what_is_read_at_the_start_alone_cannot_move(field, value):
    message = rf"learners.policy.{field}: no field of a learner that can change during a run '{field}'. Known: epochs, every, "
    with pytest.raises(ConfigError, match=message):
        imitation(stages=[Stage(steps=2, name="s", set={f"learners.policy.{field}": value})])

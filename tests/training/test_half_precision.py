"""Runs of weights of half precision: what moves, averages of it, checkpoints, and what sharding refuses."""

import pytest
import torch
from helpers.equal import assert_equal
from helpers.runs import DATA, imitation, policy, weights

from advalign import Frozen, TrainingArguments, config
from advalign.engine.optimizer import HALF
from advalign.errors import ConfigError
from advalign.objectives.consistency import Consistency
from advalign.objectives.sft import SFT
from advalign.training import distributed

MEAN = {"mean": Frozen(ema=0.9)}
WITH_MEAN = {"imitate": SFT(source="chat"), "near": Consistency(source="chat", output="tokens", view="mean", coef=0.1)}


def half(dtype="bfloat16", rate=1e-6, **sections):
    return imitation(model=policy(dtype=dtype, learning_rate=rate, model="scratch:tiny?hidden_size=32"), **sections)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_five_steps_at_a_small_rate_move_what_rounding_would_have_lost(dtype):
    """Adam's first steps are of the size of the rate: five of 1e-6 each, of which a weight of 0.02 in bfloat16 shows nothing."""
    trainer = half(dtype, steps=5)
    trainer.start()
    runtime, before = trainer.learners["policy"], weights(trainer.model)
    trainer.train(progress=False)
    moved = [(runtime.masters.exact(p) - before[name].float()).abs() for name, p in trainer.model.named_parameters()]
    flat = torch.cat([x.flatten() for x in moved])
    assert {p.dtype for p in trainer.model.parameters()} <= set(HALF)
    assert (flat > 0).float().mean() > 0.8
    assert flat.max() <= 5.2e-6  # and what float32 rounds
    for p in trainer.model.parameters():
        assert torch.equal(p, runtime.masters.exact(p).to(p.dtype))


def test_float16_with_the_default_eps_has_no_weight_that_is_not_finite():
    trainer = half("float16", rate=1e-3, steps=2)
    trainer.train(progress=False)
    assert all(p.isfinite().all() for p in trainer.model.parameters())


def test_an_average_is_kept_in_float32():
    """m <- 0.9 m + 0.1 w, of the float32 copies; rounded to bfloat16 after each step the average would stay where it began."""
    trainer = half(rate=1e-4, frozen=MEAN, objectives=WITH_MEAN, steps=4)
    trainer.start()
    trainer.copies.get("mean")
    runtime = trainer.learners["policy"]
    expected = {name: p.detach().float().clone() for name, p in trainer.model.named_parameters()}
    for _ in range(4):
        trainer.training_step()
        for name, p in trainer.model.named_parameters():
            expected[name].lerp_(runtime.masters.exact(p).detach(), 1 - 0.9)
    for name, p in trainer.frozen["mean"].named_parameters():
        assert torch.equal(trainer.copies.averages["mean"][name], expected[name])
        assert torch.equal(p, expected[name].bfloat16())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_resumed_run_ends_with_the_same_bits(dtype, tmp_path):
    def run(folder, steps, resume=False):
        args = TrainingArguments(max_steps=steps, output_dir=str(folder), save_steps=2)
        trainer = half(dtype, rate=1e-5, frozen=MEAN, objectives=WITH_MEAN, args=args)
        trainer.train(progress=False, resume=resume)
        return trainer

    whole = run(tmp_path / "whole", 4)
    run(tmp_path / "cut", 2)
    resumed = run(tmp_path / "cut", 4, resume=True)
    assert_equal(weights(whole.model), weights(resumed.model))
    assert_equal(whole.learners["policy"].state_dict(), resumed.learners["policy"].state_dict())
    assert_equal(whole.copies.averages, resumed.copies.averages)
    assert_equal(weights(whole.frozen["mean"]), weights(resumed.frozen["mean"]))


def test_sharded_weights_of_half_precision_are_not_trained():
    trainer = half()
    trainer.start()
    network, objectives = trainer.model, trainer.config["objectives"]
    distributed.check_precision("policy", network, False, objectives)
    distributed.check_precision("teacher", network, True, objectives)  # nothing trains it
    with pytest.raises(ConfigError, match=r"^learners\.policy\.dtype: bfloat16 given, .*dtype: float32 with args\.mixed_precision: bf16"):
        distributed.check_precision("policy", network, True, objectives)


def test_float16_as_mixed_precision_is_refused():
    with pytest.raises(ConfigError, match=r"^args\.mixed_precision: no precision of autocast 'fp16'. Known: bf16, no"):
        TrainingArguments(mixed_precision="fp16")
    described = {
        "learners": {"policy": {"model": "scratch:tiny", "tokenizer": {"kind": "words", "data": DATA}}},
        "sources": {"chat": {"kind": "demos", "data": DATA}},
        "objectives": {"imitate": {"kind": "sft", "source": "chat"}},
        "args": {"mixed_precision": "bf61"},
    }
    with pytest.raises(ConfigError, match=r"Did you mean 'bf16'\?"):
        config.trainer(described)


def test_a_note_says_what_float16_loses():
    assert any("gradients below 6e-8 are zero in float16" in note for note in half("float16").notes())
    assert not any("6e-8" in note for note in half("bfloat16").notes())

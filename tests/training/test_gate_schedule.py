"""The learning rate of a learner is a function of the step of the run, whether or not a gate let the learner train."""

import pytest
from helpers.runs import discriminator, game, policy

from advalign import Gate, TrainingArguments


def test_the_rate_decays_while_a_gate_skips_updates():
    """Linear decay from 1e-3 over 6 steps: 1e-3 (1 - step / 6). The gate is always closed and lets every third step through."""
    trainer = game(
        learners={"policy": policy(), "discriminator": discriminator(lr_scheduler_type="linear")},
        gates={"discriminator": Gate(metric="discriminator/accuracy", above=-1.0, max_skips=2)},
        args=TrainingArguments(max_steps=6),
    )
    history = trainer.train(progress=False)
    skipped = [bool(logs["discriminator/skipped"]) for logs in history]
    assert skipped.count(True) >= 3
    after_a_skip = [i for i in range(1, 6) if skipped[i - 1] and not skipped[i]]
    assert after_a_skip
    for step, logs in enumerate(history):
        if not skipped[step]:
            assert logs["discriminator/learning_rate"] == pytest.approx(1e-3 * (1 - step / 6), abs=1e-12)
    assert trainer.learners["discriminator"].optimizer.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-12)

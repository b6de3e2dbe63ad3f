"""A real response against the learner's own (SPIN): the opponent is the previous iterate, and the pairs are what was sampled."""

import pytest
from helpers.runs import SHORT, chat, game, policy, same, weights

from advalign import Frozen, Trainer, TrainingArguments
from advalign.objectives.dpo import DPO
from advalign.sources.self_vs_real import SelfVsReal


def test_a_previous_iterate_is_taken_anew():
    trainer = spin(max_steps=5)
    trainer.start()
    states = []
    for _ in range(5):
        before = weights(trainer.learners["policy"].network)
        trainer.training_step()
        states.append((before, weights(trainer.frozen["previous"]), trainer.copies.versions["previous"]))
    # refresh: 2 means the copy is the policy as steps 0, 2 and 4 found it.
    for step, (_, copy, version) in enumerate(states):
        assert same(copy, states[step - step % 2][0])
        assert version == step - step % 2


def spin(**arguments):
    sources = {"chat": chat(), "own": SelfVsReal(real="chat", learner="previous", sampling=SHORT, batch_size=4, history=0.5)}
    frozen = {"reference": Frozen(refresh=2), "previous": Frozen(refresh=2)}
    objectives = {"spin": DPO(source="own")}
    args = TrainingArguments(**arguments)
    return Trainer(learners={"policy": policy()}, sources=sources, frozen=frozen, objectives=objectives, args=args)


def test_spin_starts_each_iteration_at_log_two():
    """At a refresh the opponent is the policy itself: both log-ratios are 0, and the loss is -log sigmoid(0) = 0.6931."""
    history = spin(max_steps=4).train(progress=False)
    losses = [row["spin/loss"] for row in history]
    assert losses[0] == pytest.approx(0.693147, abs=1e-6)
    assert losses[2] == pytest.approx(0.693147, abs=1e-6)
    assert losses[1] != pytest.approx(0.693147, abs=1e-4)


def test_the_rejected_side_is_what_was_sampled():
    trainer = spin()
    trainer.start()
    runtime = trainer.context.sources["own"]
    items = runtime.draw(0, 0)
    encoder = trainer.learners["policy"].network.encoder
    rows = runtime.rows(items, encoder)
    real = {e.meta["response"]: e.prompt for e in trainer.context.sources["chat"].examples}
    for i, (chosen, group) in enumerate(items):
        ids = [rows.tokens.ids[2 * i + side][rows.tokens.target[2 * i + side]].tolist() for side in (0, 1)]
        assert real[chosen] == group.example.prompt
        assert encoder.decode(ids[0]) == chosen
        assert ids[1] == group.rollouts[0].response_ids
    # A model that reads both ways gets the same texts, in its own pair template.
    other = game()
    other.start()
    reader = other.learners["discriminator"].network.encoder
    pairs = runtime.rows(items, reader)
    for i, (chosen, group) in enumerate(items):
        alone = reader.scored_pairs([group.example.prompt] * 2, [chosen, group.rollouts[0].text], [True, group.rollouts[0].finished])
        for side in (0, 1):
            mask = pairs.tokens.mask[2 * i + side]
            assert pairs.tokens.ids[2 * i + side][mask].tolist() == alone.ids[side][alone.mask[side]].tolist()

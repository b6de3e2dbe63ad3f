"""A real response against the learner's own (SPIN): the opponent is the previous iterate, and the pairs are what was sampled."""

import pytest
from helpers import tokenizer_kinds
from helpers.runs import SHORT, chat, game, policy, same, weights
from transformers import GPT2Config, GPT2LMHeadModel

from advalign import Frozen, Learner, Trainer, TrainingArguments
from advalign.errors import ConfigError
from advalign.objectives.dpo import DPO
from advalign.sources.demos import Demos
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


def test_texts_without_prompt_are_continued_from_a_beginning_of_sequence_alone(tmp_path):
    """An empty prompt is answered where the tokenizer puts a token before a text; else there is nothing that could be continued."""
    for adds in ("bos", ""):
        tokenizer = tokenizer_kinds.words(adds)
        config = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=32, eos_token_id=tokenizer.eos_token_id)
        folder = tmp_path / f"adds_{adds}"
        GPT2LMHeadModel(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        texts = Demos(data=[{"text": "the cat"}, {"text": "a cat"}])
        trainer = Trainer(
            learners={"policy": Learner(model=str(folder), max_length=16)},
            sources={"real": texts, "own": SelfVsReal(real="real", sampling=SHORT, batch_size=2)},
            objectives={"spin": DPO(source="own")},
            frozen={"reference": Frozen()},
            args=TrainingArguments(max_steps=1),
        )
        if not adds:
            with pytest.raises(ConfigError, match=r"rollout: the prompt of example '\d' is empty, and the tokenizer puts no token before"):
                trainer.train(progress=False)
            continue
        trainer.start()
        items = trainer.context.sources["own"].draw(0, 0)
        rows = trainer.context.sources["own"].rows(items, trainer.learners["policy"].network.encoder).tokens
        for i, (real, group) in enumerate(items):
            assert group.prompt_ids == [tokenizer.bos_token_id]
            assert rows.ids[2 * i][rows.mask[2 * i]].tolist() == [*tokenizer(real)["input_ids"], tokenizer.eos_token_id]
            assert rows.ids[2 * i + 1][rows.mask[2 * i + 1]].tolist() == [tokenizer.bos_token_id, *group.rollouts[0].response_ids]

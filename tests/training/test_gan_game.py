"""The game between learners: which learner skips an update, who scores, who compares, and that all of it resumes to the bit."""

from dataclasses import replace

import pytest
import torch
from helpers.runs import SHORT, chat, discriminator, game, imitation, policy, same, spy, weights, write

from advalign import Evaluation, Frozen, Sampling, TrainingArguments
from advalign.advantages.group import Group
from advalign.errors import ConfigError
from advalign.models.inference import score_texts
from advalign.objectives.discriminate import Discriminate
from advalign.objectives.dpo import DPO
from advalign.objectives.grpo import GRPO
from advalign.rewards.discriminator import Discriminator as DiscriminatorReward
from advalign.sources.contrast import GENERATED, Contrast
from advalign.sources.self_vs_real import SelfVsReal
from advalign.tasks.constraints import Constraints
from advalign.training.schedule import Gate, Stage, Timeline, Until
from advalign.types import Example

# ------------------------------------------------------------------------------------------------- who takes part


GATE = {"discriminator": Gate(metric="discriminator/accuracy", above=0.85, max_skips=2, smoothing=0.5)}


def skips(timeline, learner="discriminator"):
    """Whether a learner skips its updates in a step, which is then counted."""
    skipped = timeline.is_skipping(learner)
    timeline.count_skip(learner, skipped)
    return skipped


def test_a_gate_by_hand():
    """Smoothing 0.5: the mean after 0.8, 1.0 is 0.9, then after 0.2 it is 0.55. Above 0.85 it is closed, for two steps at most."""
    timeline = Timeline([Stage(steps=99)], None, GATE)
    assert not skips(timeline)  # nothing is measured yet
    timeline.observe(1, {"discriminator/accuracy": 0.8})
    assert not skips(timeline)
    timeline.observe(2, {"discriminator/accuracy": 1.0})
    assert [skips(timeline) for _ in range(6)] == [True, True, False, True, True, False]
    resumed = Timeline([Stage(steps=99)], None, GATE)
    resumed.load_state_dict(timeline.state_dict())
    assert skips(resumed)
    resumed.observe(3, {"discriminator/accuracy": 0.2})
    assert not skips(resumed)
    assert not skips(resumed, "policy")  # without a gate


def test_asking_a_gate_counts_nothing():
    timeline = Timeline([Stage(steps=99)], None, GATE)
    timeline.observe(1, {"discriminator/accuracy": 1.0})
    before = timeline.state_dict()
    assert [timeline.is_skipping("discriminator") for _ in range(5)] == [True] * 5  # max_skips is 2
    assert timeline.state_dict() == before


def test_a_learner_that_skips_an_update_reads_and_does_not_move():
    trainer = game(
        gates={"discriminator": Gate(metric="discriminator/accuracy", above=-1.0, max_skips=2)}, args=TrainingArguments(max_steps=4)
    )
    trainer.start()
    steps = []
    for _ in range(4):
        before = weights(trainer.learners["discriminator"].network)
        logs = trainer.training_step()
        trainer.timeline.observe(trainer.step, logs)
        moved = not same(before, weights(trainer.learners["discriminator"].network))
        steps.append((logs["discriminator/skipped"], moved, "discriminator/accuracy" in logs))
    # The first step knows nothing; then two updates are skipped, and one is forced.
    assert steps == [(0.0, True, True), (1.0, False, True), (1.0, False, True), (0.0, True, True)]
    assert trainer.learners["discriminator"].version == 2


def test_a_learner_every_other_step(monkeypatch):
    who: list[str] = []
    spy(monkeypatch, before=lambda runtime, rows: who.append(runtime.name))
    trainer = game(learners={"policy": policy(), "discriminator": discriminator(every=2)}, args=TrainingArguments(max_steps=4))
    trainer.train(progress=False)
    assert who == ["policy", "discriminator", "policy", "policy", "discriminator", "policy"]


def test_a_stage_ends_on_an_evaluation():
    stages = [Stage(name="a", steps=9, until=Until(metric="held/nll", below=1e9, after=1, smoothing=0.0)), Stage(name="b", steps=1)]
    trainer = imitation(
        stages=stages,
        evaluations={"held": Evaluation(data="task:constraints", number=2, sampling=SHORT)},
        args=TrainingArguments(eval_steps=3),
    )
    history = trainer.train(progress=False)
    assert [row["stage"] for row in history] == ["a", "a", "a", "b"]  # evaluated after step 3, which ended the stage
    assert "held/nll" in history[2]
    assert "held/nll" in history[3]


def test_notes_on_what_is_probably_not_meant():
    trainer = game(sources={"chat": chat(), "write": write(advantage=Group()), "contrast": Contrast(real="chat", sampled="write")})
    assert [note.split(" ")[0] for note in trainer.notes()] == ["sources.write.advantage"]
    assert game(sources={"chat": chat(), "write": write(advantage=Group(floor=1.0)), "contrast": Contrast(real="chat")}).notes() == []
    trainer.start()
    small, large = (sum(p.numel() for p in trainer.learners[n].network.parameters()) for n in ("policy", "discriminator"))
    assert large > small
    assert f"learners.discriminator has {large:,} parameters and scores 'policy' of sources.write with {small:,}" in trainer.notes()[1]


# ------------------------------------------------------------------------------------------------- frozen copies


def test_an_averaged_discriminator_gives_the_reward():
    trainer = game(
        sources={
            "chat": chat(),
            "write": write(rewards=[DiscriminatorReward(learner="slow")]),
            "contrast": Contrast(real="chat", sampled="write"),
        },
        frozen={"slow": Frozen(learner="discriminator", ema=0.5)},
    )
    trainer.start()
    trainer.training_step()
    first = weights(trainer.learners["discriminator"].network)
    assert trainer.copies.versions["slow"] == 1
    slow = trainer.frozen["slow"]
    groups = trainer.context.generate("policy", [Example(prompt="length 3 with red without blue :")], 2, SHORT, ("here",))
    texts = [r.text for r in groups[0].rollouts]
    prompts, done = [groups[0].example.prompt] * 2, [r.finished for r in groups[0].rollouts]
    rows = list(zip(prompts, texts, done, strict=True))
    scores, version = trainer.context.score("slow", prompts, texts, done)
    assert scores == score_texts(slow, rows, 8192)
    assert scores != score_texts(trainer.learners["discriminator"].network, rows, 8192)
    assert version == 1
    # w_slow = (w_0 + w_1) / 2 after one step of the discriminator.
    again = game(sources=trainer.config["sources"], frozen={"slow": Frozen(learner="discriminator", ema=0.5)})
    again.start()
    start = weights(again.learners["discriminator"].network)
    for name, value in weights(slow).items():
        assert torch.allclose(value, (start[name] + first[name]) / 2, atol=1e-12)


def test_a_reward_from_an_unknown_learner_and_from_a_policy_is_refused():
    with pytest.raises(ConfigError, match=r"sources.write.rewards.0.learner: .*'jugde'.*discriminator"):
        game(sources={"chat": chat(), "write": write(rewards=[DiscriminatorReward(learner="jugde")]), "contrast": Contrast(real="chat")})
    with pytest.raises(ConfigError, match="'policy' has head 'policy', and a reward needs head: score"):
        game(sources={"chat": chat(), "write": write(rewards=[DiscriminatorReward(learner="policy")]), "contrast": Contrast(real="chat")})


def test_a_whole_game_resumes_to_the_bit(tmp_path):
    def whole(folder, steps, **more):
        contrast = Contrast(
            real="chat", sampled="write", perturb=Constraints(), batch_size=4, replay=0.5, corrupt=("drop",), minus_logprob="policy"
        )
        return game(
            learners={"policy": policy(), "discriminator": discriminator(updates=2)},
            sources={
                "chat": chat(),
                "write": write(rewards=[DiscriminatorReward(learner="slow")]),
                "own": SelfVsReal(real="chat", learner="before", sampling=SHORT, batch_size=4, history=0.5),
                "contrast": contrast,
            },
            objectives={"policy": GRPO(source="write"), "spin": DPO(source="own"), "discriminator": Discriminate(source="contrast")},
            frozen={"slow": Frozen(learner="discriminator", ema=0.9), "reference": Frozen(refresh=3), "before": Frozen(refresh=3)},
            gates={"discriminator": Gate(metric="discriminator/accuracy", above=0.3, max_skips=1)},
            args=TrainingArguments(max_steps=steps, output_dir=str(tmp_path / folder), save_steps=4, seed=5),
            **more,
        )

    straight = whole("a", 7)
    straight.train(progress=False)
    whole("b", 4).train(progress=False)
    resumed = whole("b", 7)
    history = resumed.train(resume=True, progress=False)
    assert [row["step"] for row in history] == [5, 6, 7]
    for name in ("policy", "discriminator"):
        assert same(weights(straight.learners[name].network), weights(resumed.learners[name].network))
    for name in ("slow", "reference", "before"):
        assert same(weights(straight.frozen[name]), weights(resumed.frozen[name]))
    assert straight.copies.versions == resumed.copies.versions


def test_scores_per_token_need_the_samplers_tokenizer():
    trainer = game()
    trainer.start()
    examples = [Example(prompt="length 3 with red without blue :")]
    groups = trainer.context.generate("policy", examples, 2, Sampling(max_new_tokens=4), ("here",))
    with pytest.raises(ConfigError, match=r"learners.discriminator: scores per token need the sampler's tokenizer"):
        trainer.context.score_tokens("discriminator", groups)


def test_logprobs_are_those_of_the_sampler():
    trainer = game()
    trainer.start()
    examples = [Example(prompt="length 3 with red without blue :")]
    encoder = trainer.context.encoder("policy")
    drawn = trainer.context.generate("policy", examples, 16, SHORT, ("here",))[0].rollouts
    # An untrained policy also writes special tokens, which are no text.
    textual = [r for r in drawn if encoder.responses([r.text], [r.finished])[0] == r.response_ids]
    assert len(textual) > 2
    prompts, texts, finished = [examples[0].prompt] * len(textual), [r.text for r in textual], [r.finished for r in textual]
    logprobs = trainer.context.logprobs("policy", prompts, texts, finished)
    assert logprobs == pytest.approx([sum(r.sampler_logprobs) for r in textual], abs=1e-9)


def test_every_learner_of_a_source_reads_every_draw(monkeypatch):
    rows = {"discriminator": [], "second": []}
    spy(monkeypatch, before=lambda runtime, read: rows.get(runtime.name, []).append(read["contrast"].tokens.ids))
    learners = {"policy": policy(), "discriminator": discriminator(updates=2), "second": discriminator(updates=2)}
    objectives = {
        "first": Discriminate(source="contrast"),
        "second": Discriminate(source="contrast", learner="second"),
    }
    game(learners=learners, objectives=objectives, args=TrainingArguments(max_steps=2)).train(progress=False)
    for step in range(2):
        first, second = (rows[name][2 * step : 2 * step + 2] for name in ("discriminator", "second"))
        assert not torch.equal(*second)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_airl_has_one_policy_in_reward_and_discriminator(temperature):
    # D = f - log pi(y | x) in both: the offset of a sampled row is log pi at the sampling temperature, and the reward the score less it.
    sampling = replace(SHORT, temperature=temperature)
    reward = DiscriminatorReward(learner="discriminator", form="airl")
    sources = {"chat": chat(), "write": write(sampling=sampling, rewards=[reward])}
    sources["contrast"] = Contrast(real="chat", sampled="write", batch_size=4, minus_logprob="policy")
    trainer = game(sources=sources, objectives={"discriminator": Discriminate(source="contrast"), "policy": GRPO(source="write")})
    trainer.start()
    groups = trainer.context.sources["write"].draw(0, 0)
    trainer.context.items["write"] = groups
    rollouts = {(g.example.prompt, r.text): (g, r) for g in groups for r in g.rollouts}
    num_compared = 0
    for item in trainer.context.sources["contrast"].draw(0, 0):
        if item.kind != GENERATED:
            continue
        group, rollout = rollouts[item.prompt, item.text]
        ids = torch.tensor([group.prompt_ids + rollout.response_ids])
        read = trainer.model.encoder.scored_pairs([item.prompt], [item.text], [item.finished])
        if read.ids[0].tolist() != ids[0].tolist():  # a special token inside is not in the text
            continue
        num_compared += 1
        logprobs = (trainer.model.model(ids).logits / temperature).log_softmax(2)[0, :-1].gather(1, ids[0, 1:, None])
        want = float(logprobs[len(group.prompt_ids) - 1 :].detach().sum())
        assert item.offset == pytest.approx(want, abs=1e-5)
        (score,), _ = trainer.context.score("discriminator", [item.prompt], [item.text], [item.finished])
        assert rollout.rewards[0] == pytest.approx(score - want, abs=1e-5)
    assert num_compared


@pytest.mark.parametrize("repeats", [{"updates": 2}, {"epochs": 2}, {"updates": 2, "epochs": 2, "minibatches": 2}])
def test_the_logged_accuracy_is_of_rows_that_the_step_has_not_trained_on(monkeypatch, repeats):
    """Scores of the discriminator as it was before the step, on the rows of its first pass; the later ones would look better."""
    scores, seen = [], []

    def before(runtime, rows):
        if runtime.name != "discriminator":
            return
        network, contrast = runtime.network, rows["contrast"]
        mode = network.training
        network.eval()
        with torch.no_grad():
            signed = network(contrast.tokens, {"scores"}).scores * (2 * contrast.labels - 1)
        network.train(mode)
        scores.append(((signed > 0).double().mean().item(), signed.mean().item(), len(signed)))
        seen.append(runtime.version)

    spy(monkeypatch, before=before)
    learners = {"policy": policy(), "discriminator": discriminator(learning_rate=1e-2, options={"dropout": 0.0}, **repeats)}
    (log,) = game(learners=learners, args=TrainingArguments(max_steps=1)).train(progress=False)
    number = repeats.get("minibatches", 1)
    assert len(scores) == repeats.get("updates", 1) * repeats.get("epochs", 1) * number
    first = scores[:number]
    assert log["discriminator/accuracy"] == pytest.approx(sum(a for a, _, _ in first) / number)
    assert log["discriminator/margin"] == pytest.approx(sum(m for _, m, _ in first) / number)
    assert sum(m for _, m, _ in scores[-number:]) / number > log["discriminator/margin"]  # of all rows, in the last epoch

"""The game between learners: who skips_update, who is asked, what is compared, and that all of it resumes to the bit."""

import json
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers.runs import SHORT, chat, discriminator, game, imitation, policy, same, spy, weights, write

from advalign import Evaluation, Frozen, Sampling, Trainer, TrainingArguments
from advalign.advantages.gae import GAE
from advalign.advantages.group import Group
from advalign.errors import ConfigError, RewardError
from advalign.models.inference import score_texts
from advalign.objectives.discriminate import Discriminate
from advalign.objectives.dpo import DPO
from advalign.objectives.grpo import GRPO
from advalign.rewards.discriminator import Discriminator as Judged
from advalign.sources import _rollouts
from advalign.sources._corrupt import CORRUPTIONS, corrupted
from advalign.sources.contrast import CORRUPTED, GENERATED, PERTURBED, REAL, Contrast
from advalign.sources.self_vs_real import SelfVsReal
from advalign.tasks.constraints import Constraints
from advalign.training.annotate import Annotator
from advalign.training.schedule import Gate, Stage, Timeline, Until
from advalign.types import Example, Rollout, RolloutGroup

# ------------------------------------------------------------------------------------------------- who takes part


def test_a_gate_by_hand():
    """Smoothing 0.5: the mean after 0.8, 1.0 is 0.9, then after 0.2 it is 0.55. Above 0.85 it is closed, for two steps at most."""
    timeline = Timeline(
        [Stage(steps=99)], None, {"discriminator": Gate(metric="discriminator/accuracy", above=0.85, max_skips=2, smoothing=0.5)}
    )
    assert not timeline.skips_update("discriminator")  # nothing is known yet
    timeline.observe(1, {"discriminator/accuracy": 0.8})
    assert not timeline.skips_update("discriminator")
    timeline.observe(2, {"discriminator/accuracy": 1.0})
    assert [timeline.skips_update("discriminator") for _ in range(6)] == [True, True, False, True, True, False]
    resumed = Timeline(
        [Stage(steps=99)], None, {"discriminator": Gate(metric="discriminator/accuracy", above=0.85, max_skips=2, smoothing=0.5)}
    )
    resumed.load_state_dict(timeline.state_dict())
    assert resumed.skips_update("discriminator")
    resumed.observe(3, {"discriminator/accuracy": 0.2})
    assert not resumed.skips_update("discriminator")
    assert not resumed.skips_update("policy")  # without a gate


def test_a_resting_learner_reads_and_does_not_move():
    trainer = game(
        gates={"discriminator": Gate(metric="discriminator/accuracy", above=-1.0, max_skips=2)}, args=TrainingArguments(max_steps=4)
    )
    trainer.start()
    seen = []
    for _ in range(4):
        before = weights(trainer.learners["discriminator"].network)
        logs = trainer.training_step()
        trainer.timeline.observe(trainer.step, logs)
        moved = not same(before, weights(trainer.learners["discriminator"].network))
        seen.append((logs["discriminator/skipped"], moved, "discriminator/accuracy" in logs))
    # The first step knows nothing; then two skips_update, and one step by force.
    assert seen == [(0.0, True, True), (1.0, False, True), (1.0, False, True), (0.0, True, True)]
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
    )
    trainer.args = TrainingArguments(eval_steps=3)
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
    assert (
        f"learners.discriminator has {large:,} parameters and discriminators 'policy' of sources.write with {small:,}" in trainer.notes()[1]
    )


# ------------------------------------------------------------------------------------------------- frozen copies


def test_an_averaged_judge_gives_the_reward():
    trainer = game(
        sources={"chat": chat(), "write": write(rewards=[Judged(learner="slow")]), "contrast": Contrast(real="chat", sampled="write")},
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
    found, version = trainer.context.score("slow", prompts, texts, done)
    assert found == score_texts(slow, rows, 8192)
    assert found != score_texts(trainer.learners["discriminator"].network, rows, 8192)
    assert version == 1
    # w_slow = (w_0 + w_1) / 2 after one step of the discriminator.
    again = game(sources=trainer.config["sources"], frozen={"slow": Frozen(learner="discriminator", ema=0.5)})
    again.start()
    start = weights(again.learners["discriminator"].network)
    for name, value in weights(slow).items():
        assert torch.allclose(value, (start[name] + first[name]) / 2, atol=1e-12)


def test_a_reward_of_nobody_and_of_a_policy_is_refused():
    with pytest.raises(ConfigError, match=r"sources.write.rewards.0.learner: .*'jugde'.*discriminator"):
        game(sources={"chat": chat(), "write": write(rewards=[Judged(learner="jugde")]), "contrast": Contrast(real="chat")})
    with pytest.raises(ConfigError, match="'policy' has head 'policy', and a reward needs head: score"):
        game(sources={"chat": chat(), "write": write(rewards=[Judged(learner="policy")]), "contrast": Contrast(real="chat")})


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


def test_a_whole_game_resumes_to_the_bit(tmp_path):
    def whole(folder, steps, **more):
        contrast = Contrast(
            real="chat", sampled="write", perturb=Constraints(), batch_size=4, replay=0.5, corrupt=("drop",), minus_logprob="policy"
        )
        return game(
            learners={"policy": policy(), "discriminator": discriminator(updates=2)},
            sources={
                "chat": chat(),
                "write": write(rewards=[Judged(learner="slow")]),
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


# ---------------------------------------------------------------------------------------------- what is compared


class Drawn:
    """A context with a fixed real side and a fixed draw of responses."""

    def __init__(self, real, groups=()):
        self.examples, self.groups = list(real), list(groups)

    def random(self, *key):
        return random.Random(str(key))

    def source(self, name):
        return SimpleNamespace(examples=self.examples, sample=lambda n, rng: rng.sample(self.examples, min(n, len(self.examples))))

    def current_items(self, name):
        return self.groups or None

    def logprobs(self, learner, prompts, texts, finished):
        return [-float(len(text.split())) for text in texts]


def demo(prompt, response, verify=None):
    return Example(prompt=prompt, meta={"response": response}, verify=verify)


def group(prompt, *texts, verify=None):
    rollouts = [Rollout(response_ids=[1], sampler_logprobs=[0.0], text=text, finished=True) for text in texts]
    return RolloutGroup(example=Example(prompt=prompt, verify=verify), prompt_ids=[1], rollouts=rollouts)


def test_what_was_sampled_and_is_right_may_be_the_real_side():
    """By hand: of each draw the verified responses; where a draw has none, those of the draws before, and they survive a checkpoint."""

    class Sampled(Drawn):
        def source(self, name):
            return SimpleNamespace()  # a source of rollouts has no list to sample from

    def answered(*texts):
        return replace(group("q", *texts), example=Example(prompt="q", id="q", verify=lambda text: float("ok" in text)))

    context = Sampled([], [answered("ok a", "no", "ok b")])
    runtime = Contrast(real="s", corrupt=("drop",), batch_size=5).start(context, "v")
    items = runtime.draw(0, 0)
    assert sorted((i.kind, i.text) for i in items if i.kind == 0) == [(0, "ok a"), (0, "ok b")]
    assert {i.text for i in items if i.kind == 3} == {"a", "b"}  # dropping the other word would leave them right
    context.groups = [answered("no", "nein")]
    assert {i.text for i in runtime.draw(1, 0) if i.kind == 0} == {"ok a", "ok b"}
    again = Contrast(real="s", corrupt=("drop",), batch_size=5).start(Sampled([], context.groups), "v")
    with pytest.raises(ConfigError, match="nothing it wrote so far is right"):
        again.draw(1, 0)
    again.load_state_dict(json.loads(json.dumps(runtime.state_dict())))
    assert again.draw(2, 0) == runtime.draw(2, 0)


def test_real_rows_of_the_prompts_that_were_sampled():
    real = [demo(f"q{i}", f"a{i} {k}") for i in range(6) for k in range(2)]
    context = Drawn(real, [group("q1", "x", "y", "z"), group("q4", "u", "v"), group("q9", "w")])
    items = Contrast(real="r", sampled="s", match="prompt", group_size=2).start(context, "v").draw(0, 0)
    by_group = {}
    for item in items:
        by_group.setdefault(item.group, []).append(item)
    assert sorted({i.prompt for i in items}) == ["q1", "q4"]  # q9 has no real response
    for rows in by_group.values():
        assert len({i.prompt for i in rows}) == 1
        assert sorted(i.kind for i in rows) == [REAL, GENERATED, GENERATED]  # two at most of q1's three
    with pytest.raises(ConfigError, match="none of the prompts that 's' answered has a real response in 'r'"):
        Contrast(real="r", sampled="s", match="prompt").start(Drawn(real, [group("q9", "w")]), "v").draw(0, 0)


def test_length_matched_pairs():
    """Real lengths 5 5 6 6 7, generated 3 4 5 6 6: at tolerance 0 only 5, 6 and 6 have partners."""
    real = [demo(f"q{i}", " ".join(["r"] * n)) for i, n in enumerate((5, 5, 6, 6, 7))]
    context = Drawn(real, [group(f"p{i}", " ".join(["g"] * n)) for i, n in enumerate((3, 4, 5, 6, 6))])
    runtime = Contrast(real="r", sampled="s", lengths=0.0).start(context, "v")
    items = runtime.draw(0, 0)
    lengths = {kind: sorted(len(i.text.split()) for i in items if i.kind == kind) for kind in (REAL, GENERATED)}
    assert lengths == {REAL: [5, 6, 6], GENERATED: [5, 6, 6]}
    assert runtime.notes == {"length_matched": 3 / 5}
    # A quarter of the longer one: 3 still has no partner, 4 is within 0.25 * 5 = 1.25 of a 5, and 7 of a 6 (1 <= 1.75).
    loose = Contrast(real="r", sampled="s", lengths=0.25).start(context, "v").draw(0, 0)
    assert sorted(len(i.text.split()) for i in loose if i.kind == GENERATED) in ([4, 5, 6, 6], [5, 6, 6])


def test_where_no_length_fits_the_nearest_pair_stays():
    real = [demo("q", "r r r r"), demo("q2", "r r r r r r")]
    context = Drawn(real, [group("p", "g", "g g")])
    items = Contrast(real="r", sampled="s", lengths=0.0).start(context, "v").draw(0, 0)
    assert [len(i.text.split()) for i in items] == [4, 2]


def test_corrupted_texts_are_wrong_and_one_change_away():
    task = Constraints()
    examples = task.examples("train", 40, random.Random(0))
    for example in examples:
        text = task.demonstrate(example, random.Random(example.id))
        worse = corrupted(text, ("drop", "repeat", "swap"), random.Random(1), example.verify)
        assert worse is not None
        assert example.verify(worse) == 0
        assert abs(len(worse.split()) - len(text.split())) <= 1


@pytest.mark.parametrize(
    ("kind", "text", "possible"),
    [
        ("numbers", "x = 7", {f"x = {n}" for n in range(10) if n != 7}),
        ("operators", "3 + 4", {"3 - 4", "3 * 4", "3 / 4"}),
        ("operators", "no such thing", {None}),
        ("drop", "a b", {"a", "b"}),
        ("repeat", "a b", {"a a b", "a b b"}),
        ("swap", "a b c", {"b a c", "c b a", "a c b"}),
        ("swap", "a a", {None}),
        ("cut", "a b c", {"a", "a b"}),
        ("cut", "a", {None}),
    ],
)
def test_corruptions_by_hand(kind, text, possible):
    found = {CORRUPTIONS[kind](text, random.Random(seed)) for seed in range(200)}
    assert found <= possible
    assert len(found) == len(possible) or kind == "numbers"


def test_kinds_of_rows_and_what_is_taken_off_a_score():
    task = Constraints()
    real = [demo(e.prompt, task.demonstrate(e, random.Random(0)), e.verify) for e in task.examples("train", 3, random.Random(0))]
    whole = {e.prompt: e for e in task.examples("train", 400, random.Random(0))}
    real = [Example(prompt=e.prompt, meta={**whole[e.prompt].meta, **e.meta}, verify=e.verify) for e in real]
    source = Contrast(real="r", sampled="s", perturb=task, corrupt=("drop",), minus_logprob="policy", batch_size=3)
    items = source.start(Drawn(real, [group("p", "red blue")]), "v").draw(0, 0)
    counts = [sum(i.kind == kind for i in items) for kind in (REAL, PERTURBED, GENERATED, CORRUPTED)]
    assert counts == [3, 3, 1, 3]
    assert all(i.offset == -len(i.text.split()) for i in items)


def test_a_text_that_verifies_is_no_negative():
    context = Drawn([demo("q", "a")], [group("p", "good", "bad", verify=lambda text: float(text == "good"))])
    for override, kept in ((True, ["bad"]), (False, ["bad", "good"])):
        items = Contrast(real="r", sampled="s", override=override).start(context, "v").draw(0, 0)
        assert sorted(i.text for i in items if i.kind == GENERATED) == kept


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"match": "promt", "sampled": "s"}, "'promt'.*prompt"),
        ({"match": "prompt"}, "name it as sampled"),
        ({"corrupt": ("dorp",)}, "'dorp'.*drop"),
        ({"length_unit": "tokens"}, "'tokens'.*words"),
        ({"replay": 1.5}, "must be a share from 0 to 1"),
    ],
)
def test_contrast_refuses(fields, sentence):
    with pytest.raises(ConfigError, match=sentence):
        Contrast(real="r", **fields)


# --------------------------------------------------------------------------------------------- rewards on tokens


def rolled(*rewards):
    rollouts = [Rollout(response_ids=[5, 6, 7][:n], sampler_logprobs=[0.0] * n, text="", finished=True) for n in (3, 2)]
    groups = [RolloutGroup(example=Example(prompt="red"), prompt_ids=[3], rollouts=rollouts)]
    kinds = [SimpleNamespace(weight=w) for w, _ in rewards]
    logs = _rollouts.score(groups, kinds, [lambda g, s=s: s for _, s in rewards], "sources.write")
    return groups, kinds, logs


def test_token_rewards_are_weighted_placed_and_summed():
    """Weight 2 on tokens (1, 2, 3) and (4, 5), weight 1 on the responses 10 and 20: totals 2 * 6 + 10 = 22 and 2 * 9 + 20 = 38."""
    groups, kinds, logs = rolled((2.0, [[1.0, 2.0, 3.0], [4.0, 5.0]]), (1.0, [10.0, 20.0]))
    first, second = groups[0].rollouts
    assert (first.token_rewards, second.token_rewards) == ([2.0, 4.0, 6.0], [8.0, 10.0])
    assert (first.rewards, second.rewards) == ([0.0, 10.0], [0.0, 20.0])
    assert [_rollouts.total(r, kinds) for r in groups[0].rollouts] == [22.0, 38.0]
    assert [logs[k] for k in logs if k.endswith("/mean")] == [7.5, 15.0]

    trainer = game()
    trainer.start()
    encoder = trainer.learners["policy"].network.encoder
    rows = _rollouts.rows(groups, encoder, [k.weight for k in kinds], 1.0)
    assert rows.token_rewards[rows.tokens.target].tolist() == [2.0, 4.0, 6.0, 8.0, 10.0]

    annotate = Annotator(trainer.learners, {}, None, 8192)
    summed, _ = annotate("a", SimpleNamespace(advantage=Group(scale="none"), learner="policy"), rows, set())
    assert summed.rewards.sum(1).tolist() == [22.0, 38.0]  # an estimator of whole responses gets the sum
    assert summed.advantages[summed.tokens.target].tolist() == [-8.0] * 3 + [8.0] * 2

    class Rewards:
        needs_values = False
        reads_token_rewards = True

        def __call__(self, rows, state, all_reduce):
            self.seen = rows.token_rewards, rows.rewards.sum(1)
            return rows.advantages, None

    reader = Rewards()
    annotate("b", SimpleNamespace(advantage=reader, learner="policy"), rows, set())
    assert reader.seen[0] is rows.token_rewards
    assert reader.seen[1].tolist() == [10.0, 20.0]
    assert GAE.reads_token_rewards


def test_token_rewards_that_do_not_fit():
    with pytest.raises(RewardError, match="gave 2 scores for a response of 3 tokens"):
        rolled((1.0, [[1.0, 2.0], [1.0, 2.0]]))
    with pytest.raises(RewardError, match="gave 1 scores for 2 responses"):
        rolled((1.0, [[1.0, 2.0, 3.0]]))
    with pytest.raises(RewardError, match="gave inf"):
        rolled((1.0, [[1.0, float("inf"), 3.0], [1.0, 2.0]]))
    groups, _, _ = rolled((1.0, [[1.0, float("nan"), 3.0], [1.0, 2.0]]))
    kept, gone = _rollouts.without_abstentions(groups)
    assert (len(kept[0].rollouts), gone) == (1, 1)


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
    kept = [r for r in drawn if encoder.responses([r.text], [r.finished])[0] == r.response_ids]
    assert len(kept) > 2
    found = trainer.context.logprobs("policy", [examples[0].prompt] * len(kept), [r.text for r in kept], [r.finished for r in kept])
    assert found == pytest.approx([sum(r.sampler_logprobs) for r in kept], abs=1e-9)

"""The best of what a learner samples, as demonstrations."""

import json
import random
from dataclasses import replace

import pytest
from helpers.networks import network
from helpers.runs import SHORT, WORDS, discriminator, game, policy
from helpers.sources import Scripted, ids

from advalign import TrainingArguments
from advalign.errors import AdvalignError, ConfigError, RewardError
from advalign.objectives.sft import SFT
from advalign.rewards.discriminator import Discriminator as DiscriminatorReward
from advalign.rewards.function import Function
from advalign.sources.rejection import Rejection
from advalign.types import Example

SCORES = {"low": 0.0, "mid": 1.0, "high": 2.0, "top": 3.0, "same": 2.0}


def rejecting(answers, prompts=("p",), score=None, **fields):
    """A started rejection whose reward of a text is that of its first word; `answers(prompt)` says what is sampled."""
    rewards = [Function(fn=score or (lambda completions: [SCORES[c.split()[0]] for c in completions]))]
    context = Scripted(answers=answers)
    given = {"data": "task:constraints", "limit": len(prompts), "rewards": rewards, "collect": len(prompts), "group_size": 2}
    runtime = Rejection(**given | fields).start(context, "best")
    runtime.prompts.items = [Example(prompt=p) for p in prompts]
    return runtime, context


def texts(groups):
    return sorted((g.example.prompt, g.rollouts[0].text) for g in groups)


def test_rejection_keeps_the_best_and_of_ties_the_first():
    answers = {"p": ["low", "high a", "mid"], "q": ["same a", "high b", "low"]}
    runtime, _ = rejecting(answers.get, prompts=("p", "q"), group_size=3)
    assert texts(runtime.draw(0, 0)) == [("p", "high a"), ("q", "same a")]
    # Two of six; both have reward 2.
    assert (runtime.logs["kept_fraction"], runtime.logs["kept_reward"], runtime.logs["num_pool"]) == (2 / 6, 2.0, 2.0)
    assert runtime.logs["rewards/function/mean"] == pytest.approx((0 + 2 + 1 + 2 + 2 + 0) / 6)


def test_rejection_keeps_several_different_ones_and_never_the_same_twice():
    runtime, _ = rejecting(lambda prompt: ["high a", "high a", "mid", "low", "high a", "mid"], group_size=6, keep=3)
    assert [t for _, t in texts(runtime.draw(0, 0))] == ["high a", "low", "mid"]
    # A prompt that is asked twice in one collection is still one prompt.
    said = iter([["low", "high a"], ["top a", "high a"]])
    runtime, context = rejecting(lambda prompt: next(said), collect=2, keep=2)
    assert [t for _, t in texts(runtime.draw(0, 0))] == ["high a", "top a"]
    assert context.asked == [["p", "p"]]


def test_only_what_reaches_the_threshold_stays():
    answers = {"p": ["low", "top"], "q": ["mid", "low"], "r": ["high", "mid"]}
    runtime, _ = rejecting(answers.get, prompts=("p", "q", "r"), threshold=2.0, keep=2)
    assert texts(runtime.draw(0, 0)) == [("p", "top"), ("r", "high")]
    assert runtime.logs["kept_fraction"] == 2 / 6
    assert runtime.logs["kept_reward"] == 2.5


def test_the_threshold_is_on_the_weighted_sum_of_the_rewards():
    runtime, context = rejecting(lambda prompt: ["high a", "mid b b b"])
    lengths = Function(fn=lambda completions: [float(len(c.split())) for c in completions], weight=0.5)
    config = replace(runtime.config, rewards=[*runtime.config.rewards, lengths], threshold=3.0)
    runtime = config.start(context, "best")
    runtime.prompts.items = [Example(prompt="p")]
    # 2 + 2/2 = 3 and 1 + 4/2 = 3: the first of the tie.
    assert texts(runtime.draw(0, 0)) == [("p", "high a")]
    assert runtime.logs["kept_reward"] == 3.0


def test_a_pool_serves_as_many_draws_as_it_is_said_to():
    asked = []

    def answers(prompt):
        return [f"high {prompt}{len(asked)}", "low"]

    runtime, context = rejecting(answers, prompts=tuple("abcdef"), refresh=3, batch_size=2)
    asked = context.asked
    draws = [texts(runtime.draw(step, 0)) for step in range(6)]
    assert len(context.asked) == 2
    # Three draws of two are one pass over the pool of six; the next pool says when it was sampled.
    assert sorted(pair for draw in draws[:3] for pair in draw) == [(p, f"high {p}1") for p in "abcdef"]
    assert sorted(pair for draw in draws[3:] for pair in draw) == [(p, f"high {p}2") for p in "abcdef"]
    # The rates of a collection are logged when it is made, and not again.
    runtime.draw(6, 0)
    assert "kept_fraction" in runtime.logs
    runtime.draw(7, 0)
    assert runtime.logs == {"num_pool": 6.0}


def test_every_pass_over_the_pool_is_in_a_new_order_and_a_small_pool_is_drawn_whole():
    runtime, _ = rejecting(lambda prompt: ["high", "low"], prompts=tuple("abcdef"), refresh=100, batch_size=6)
    passes = [[g.example.prompt for g in runtime.draw(step, 0)] for step in range(5)]
    assert all(sorted(p) == list("abcdef") for p in passes)
    assert len(set(map(tuple, passes))) > 1
    runtime, _ = rejecting(lambda prompt: ["high", "low"], prompts=tuple("abc"), refresh=100, batch_size=64)
    assert [len(runtime.draw(step, 0)) for step in range(3)] == [3, 3, 3]


def test_nothing_above_the_threshold_is_a_sentence_or_the_pool_of_before():
    def none(prompt):
        return ["mid", "low"]

    with pytest.raises(
        RewardError, match=r"^sources.best: none of 2 responses reached the threshold 1.5, the best total reward is 1; .*\.$"
    ):
        rejecting(none, threshold=1.5)[0].draw(0, 0)
    runtime, _ = rejecting(none, score=lambda completions: [None] * len(completions))
    with pytest.raises(RewardError, match=r"^sources.best: none of 2 responses .*, the rewards abstained on all of them; .*\.$"):
        runtime.draw(0, 0)
    said = iter([["low", "top"], ["mid", "low"], ["mid", "low"], ["high", "low"]])
    runtime, context = rejecting(lambda prompt: next(said), threshold=1.5)
    found = [texts(runtime.draw(step, 0)) for step in range(3)]
    assert found == [[("p", "top")]] * 3
    assert runtime.logs["kept_fraction"] == 0
    assert "kept_reward" not in runtime.logs
    assert texts(runtime.draw(3, 0)) == [("p", "high")]
    assert len(context.asked) == 4


def test_a_response_that_no_reward_could_judge_is_out_and_counted():
    runtime, _ = rejecting(lambda prompt: ["top", "mid", "low"], group_size=3, score=lambda completions: [None, 1.0, 0.0])
    assert texts(runtime.draw(0, 0)) == [("p", "mid")]
    assert runtime.logs["abstained"] == 1.0


def test_rows_carry_the_sampled_ids():
    net = network()
    runtime, _ = rejecting(lambda prompt: ["high a", "low"], prompts=("p q",))
    rows = runtime.rows(runtime.draw(0, 0), net.encoder)
    assert rows.tokens.ids.tolist() == [[*ids("p q"), *ids("high a")]]  # not what the encoder would make of the text
    assert rows.tokens.target.tolist() == [[False, False, True, True]]


def test_rejection_resumes_to_the_bit_in_the_middle_of_a_pool():
    rng = random.Random(0)
    script = [[rng.choice(["high", "mid", "top", "low"]) + f" {i}{j}" for j in range(3)] for i in range(40)]

    def started():
        said = iter(script)
        return rejecting(lambda prompt: next(said), prompts=tuple("abcdefg"), group_size=3, collect=5, refresh=3, batch_size=2)

    whole, context = started()
    for step in range(4):
        whole.draw(step, 0)
    broken, other = started()
    broken.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    for _ in range(10):  # what the first four draws have sampled is gone
        other.answers("")
    for step in range(4, 12):
        assert whole.draw(step, 0) == broken.draw(step, 0)
    assert context.asked[2:] == other.asked
    assert whole.state_dict() == broken.state_dict()


def test_rejection_before_its_first_draw_has_a_state_too():
    runtime, _ = rejecting(lambda prompt: ["high", "low"])
    again, _ = rejecting(lambda prompt: ["high", "low"])
    again.load_state_dict(json.loads(json.dumps(runtime.state_dict())))
    assert texts(again.draw(0, 0)) == [("p", "high")]


def test_a_rejection_scores_with_the_judge_before_its_update():
    best = Rejection(
        data="task:constraints", rewards=[DiscriminatorReward(learner="discriminator")], collect=4, group_size=3, sampling=SHORT
    )
    trainer = game()
    sources = trainer.config["sources"] | {"best": best}
    objectives = trainer.config["objectives"] | {"distil": SFT(source="best")}
    # The discriminator is the first learner, makes its update first, and must not have made it when it scores.
    trainer = game(learners={"discriminator": discriminator(updates=2), "policy": policy()}, sources=sources, objectives=objectives)
    for step in range(2):
        trainer.training_step() if step else (trainer.start(), trainer.training_step())
        rollouts = [r for g in trainer.context.items["best"] for r in g.rollouts]
        assert {tuple(r.reward_versions) for r in rollouts} == {(2 * step,)}
        assert {r.policy_version for r in rollouts} == {step}


def test_raft_raises_the_reward_it_selects_by():
    reward = Function(fn=lambda completions: [float(c.split().count("red")) for c in completions])
    best = Rejection(data="task:constraints", rewards=[reward], collect=8, group_size=8, sampling=SHORT, batch_size=8)
    args = TrainingArguments(max_steps=12)
    trainer = game(
        learners={"policy": policy(learning_rate=5e-3)},
        sources={"best": best},
        objectives={"distil": SFT(source="best")},
        adversaries={},
        args=args,
    )
    history = trainer.train(progress=False)
    assert all(entry["best/kept_reward"] > entry["best/reward"] for entry in history)  # best of eight against the mean
    start, end = ([entry["best/reward"] for entry in part] for part in (history[:3], history[-3:]))
    assert sum(end) / 3 > 2 * sum(start) / 3


def test_a_learner_that_trains_on_the_best_reads_the_sampler_s_ids():
    best = Rejection(data="task:constraints", rewards=[Function(fn=len)], sampling=SHORT)
    learners = {"policy": policy(), "student": policy(tokenizer={**WORDS, "kind": "characters"})}
    objectives = {"distil": SFT(source="best", learner="student")}
    trainer = game(learners=learners, sources={"best": best}, objectives=objectives, adversaries={})
    with pytest.raises(ConfigError, match=r"^objectives.distil: learner 'student' and the sampler 'policy' have different tokenizers; .*"):
        trainer.start()


@pytest.mark.parametrize("field", ["keep", "refresh", "collect", "batch_size", "group_size"])
def test_rejection_refuses_zeros(field):
    with pytest.raises(AdvalignError, match=rf"{field}: 0 given; a whole number of at least 1 is expected\.$"):
        Rejection(data="task:constraints", rewards=[Function(fn=len)], **{field: 0})

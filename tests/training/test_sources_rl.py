"""Sources of rollouts beside `prompts`: the past again, a file of the past, and the best of the present."""

import copy
import json
import math
import random
import re
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
import yaml
from helpers.context import FakeContext
from helpers.networks import network
from helpers.runs import SHORT, WORDS, discriminator, game, policy, spy, write

from advalign import TrainingArguments, config, plugins
from advalign.advantages.group import Group
from advalign.advantages.leave_one_out import LeaveOneOut
from advalign.errors import AdvalignError, ConfigError, RewardError
from advalign.interfaces import SourceRuntime
from advalign.objectives._policy import Correction
from advalign.objectives.grpo import GRPO
from advalign.objectives.sft import SFT
from advalign.rewards.discriminator import Discriminator as DiscriminatorReward
from advalign.rewards.function import Function
from advalign.rewards.length import Length
from advalign.sources._scoring import as_scorer, score
from advalign.sources.rejection import Rejection
from advalign.sources.replay import Replay
from advalign.sources.trajectories import Trajectories
from advalign.types import Example, Rollout, RolloutGroup, RolloutRows, from_json, to_json, without_verifier

CENTRED = Group(scale="none")


class Scripted(FakeContext):
    """A run without a trainer: the test gives what is sampled and what other sources drew."""

    def __init__(self, seed=0, net=None, answers=None):
        super().__init__(seed=seed)
        self.net, self.answers, self.updates, self.asked = net, answers, 0, []

    def version(self, learner):
        return self.updates

    def encoder(self, learner):
        return self.net.encoder

    def generate(self, learner, examples, n, sampling, key):
        """`answers(prompt)` -> texts, each one token per word; no tokenizer is involved."""
        self.asked.append([e.prompt for e in examples])
        groups = []
        for example in examples:
            texts = self.answers(example.prompt)
            assert len(texts) == n
            rollouts = [Rollout(response_ids=ids(t), sampler_logprobs=[-1.0] * len(ids(t)), text=t, finished=True) for t in texts]
            groups.append(RolloutGroup(example=example, prompt_ids=ids(example.prompt), rollouts=rollouts))
        return groups


def ids(text):
    """One number above 100 per word: ids that no tokenizer of these tests would give."""
    return [100 + sum(map(ord, word)) for word in text.split()]


def group(prompt, *, version=0, rewards=(1.0, 0.0), offpolicy=False):
    def rollout(number, reward):
        logprobs = [-0.1 * (number + 1), -1 / 3]
        return Rollout(response_ids=[5, 6], sampler_logprobs=logprobs, text="c d", finished=True, policy_version=version, rewards=[reward])

    rollouts = [rollout(i, r) for i, r in enumerate(rewards)]
    if offpolicy:
        rollouts.append(Rollout(response_ids=[7], sampler_logprobs=[0.0], text="e", finished=True, rewards=[1.0], offpolicy=True))
    example = Example(prompt=prompt, id=prompt, meta={"cards": (1, 2)}, verify=lambda text: 1.0)
    return RolloutGroup(example=example, prompt_ids=[5], rollouts=rollouts)


def names(groups):
    return sorted(g.example.prompt for g in groups)


# ------------------------------------------------------------------------------------------------------------ replay


def replaying(context=None, **fields):
    """A started replay of a source that draws two groups "<step>a", "<step>b" per step, three updates after the last."""
    context = context or Scripted()
    context.source_configs.setdefault("write", write())
    runtime = Replay(**{"source": "write", "advantage": CENTRED, "batch_size": 100, **fields}).start(context, "past")

    def step(number, seen=True):
        context.updates = 3 * number
        context.items = {"write": [group(f"{number}{x}", version=3 * number) for x in "ab"]} if seen else {}
        return runtime.draw(number, 0)

    return runtime, step, context


def test_replay_holds_the_last_draws_and_not_the_current_one():
    runtime, step, _ = replaying(steps=2)
    assert names(step(0)) == ["0a", "0b"]  # nothing has passed yet: the current draw, and the log says so
    assert runtime.logs == {"num_fresh": 2.0, "num_replayed": 0.0, "staleness": 0.0}
    assert names(step(1)) == ["0a", "0b"]
    assert runtime.logs == {"num_fresh": 0.0, "num_replayed": 2.0, "staleness": 3.0}
    assert names(step(2)) == ["0a", "0b", "1a", "1b"]
    assert names(step(3)) == ["1a", "1b", "2a", "2b"]  # two draws are kept, so step 0 is forgotten
    assert runtime.logs["staleness"] == (3 + 6) / 2  # three updates per step


def test_replay_with_the_current_draw_holds_one_more():
    _, step, _ = replaying(steps=1, include_current=True)
    assert [names(step(i)) for i in range(3)] == [["0a", "0b"], ["0a", "0b", "1a", "1b"], ["1a", "1b", "2a", "2b"]]


def test_replay_is_limited_in_updates_of_the_policy():
    # Draw s is 3 (n - s) updates old at step n. With at most 6 that is the last two, whatever `steps` would allow.
    runtime, step, _ = replaying(steps=10, max_staleness=6)
    for number in range(4):
        step(number)
    assert names(step(4)) == ["2a", "2b", "3a", "3b"]
    # Nothing is young enough: the current draw.
    assert names(step(9)) == ["9a", "9b"]
    assert runtime.logs == {"num_fresh": 2.0, "num_replayed": 0.0, "staleness": 0.0}


def test_demonstrations_in_a_group_have_no_age():
    runtime, _, context = replaying(max_staleness=3)
    # A gate may leave nothing but the demonstration; in the other group it is beside responses of version 3.
    taught, mixed = group("taught", rewards=(), offpolicy=True), group("mixed", version=3, offpolicy=True)
    context.updates, context.items = 3, {"write": [taught, mixed]}
    runtime.draw(1, 0)
    context.updates, context.items = 6, {}
    assert names(runtime.draw(2, 0)) == ["mixed", "taught"]
    assert runtime.logs["staleness"] == (3 + 0) / 2
    context.updates = 9
    assert names(runtime.draw(3, 0)) == ["taught"]


def test_replay_draws_whole_groups_uniformly_and_by_its_own_stream():
    _, step, _ = replaying(steps=2, batch_size=1)
    step(0), step(1)
    # The pool does not change where the source is not drawn: 400 single draws out of four groups, 100 expected of each, standard
    # deviation sqrt(400 * 1/4 * 3/4) = 8.7.
    counts = dict.fromkeys(("0a", "0b", "1a", "1b"), 0)
    chosen = []
    for number in range(2, 402):
        (one,) = step(number, seen=False)
        assert len(one.rollouts) == 2
        counts[one.example.prompt] += 1
        chosen.append(one.example.prompt)
    assert all(abs(count - 100) < 4 * 8.7 for count in counts.values())
    _, again, _ = replaying(steps=2, batch_size=1)
    again(0), again(1)
    assert [again(number, seen=False)[0].example.prompt for number in range(2, 402)] == chosen
    _, other, _ = replaying(Scripted(seed=1), steps=2, batch_size=1)
    other(0), other(1)
    assert [other(number, seen=False)[0].example.prompt for number in range(2, 402)] != chosen


def test_replay_resumes_to_the_bit_through_plain_values():
    whole, step, _ = replaying(steps=3, batch_size=3)
    step(0), step(1)
    broken, again, _ = replaying(steps=3, batch_size=3)
    broken.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    for number in (2, 3, 4):
        assert step(number) == again(number)  # dataclasses: ids, log-probabilities, rewards, versions, to the last bit
    assert whole.state_dict() == broken.state_dict()
    # What a checkpoint cannot hold is dropped when a group enters the pool, not when it is written down.
    assert all(g.example.verify is None and not g.example.meta for g in step(5))


def test_replay_draws_a_source_that_nothing_else_reads():
    drawn = []

    class Written(SourceRuntime):
        logs = MappingProxyType({"reward": 0.5})

        def draw(self, step, repeat):
            drawn.append(step)
            return [group(f"{step}a")]

        def rows(self, items, encoder):
            raise AssertionError("this test builds no rows")

    context = Scripted()
    context.sources["write"] = Written()
    runtime, step, _ = replaying(context, include_current=True)
    assert names(step(0, seen=False)) == ["0a"]
    assert names(step(1, seen=False)) == ["0a", "1a"]
    assert drawn == [0, 1]
    assert runtime.logs["reward"] == 0.5


def test_replay_refuses_in_a_sentence():
    _, step, _ = replaying()
    with pytest.raises(ConfigError, match=r"^sources.past: no draw of 'write' is left to replay and no active objective reads it; .*\.$"):
        step(0, seen=False)
    with pytest.raises(ConfigError, match=r"^sources.past.learner: 'discriminator' given, but source 'write' is sampled by 'policy'\.$"):
        replaying(learner="discriminator")
    context = Scripted()
    context.source_configs["write"] = Rejection(data="task:constraints", rewards=[Function(fn=len)])
    with pytest.raises(ConfigError, match=r"^sources.past.source: source 'write' builds DemoRows; only rollouts can be replayed\.$"):
        replaying(context)
    with pytest.raises(ConfigError, match=r"^sources.replay.steps: got 0, must be at least 1\.$"):
        Replay(source="write", advantage=CENTRED, steps=0)


def rated(**fields):
    return write(rewards=[Function(fn=lambda completions: [float(len(c)) for c in completions])], **fields)


def slow_logprobs(net, prompt, response):
    """log p of every response token, one forward per token over its prefix."""
    found = []
    for place, token in enumerate(response):
        logits = net.model(input_ids=torch.tensor([[*prompt, *response[:place]]])).logits[0, -1]
        found.append(float(logits.log_softmax(-1)[token].detach()))
    return found


@pytest.mark.usefixtures("double")
def test_the_ratio_of_replayed_rows_is_now_over_then_and_that_of_fresh_rows_is_one(monkeypatch):
    sources = {"write": rated(batch_size=2), "past": Replay(source="write", advantage=CENTRED, batch_size=2, steps=1)}
    objectives = {"fresh": GRPO(source="write"), "old": GRPO(source="past", clip_low=1.0, clip_high=1e9)}
    trainer = game(learners={"policy": policy(learning_rate=1e-2)}, sources=sources, objectives=objectives, adversaries={})
    trainer.start()
    then = copy.deepcopy(trainer.learners["policy"].network)
    trainer.training_step()
    now, seen = copy.deepcopy(trainer.learners["policy"].network), []
    spy(monkeypatch, before=lambda runtime, rows: seen.append(rows))
    logs = trainer.training_step()

    ratios, gaps = [], []
    for g in trainer.context.items["past"]:
        for r in g.rollouts:
            assert r.policy_version == 0  # one update ago
            behaviour = slow_logprobs(then, g.prompt_ids, r.response_ids)
            assert r.sampler_logprobs == pytest.approx(behaviour, abs=1e-9)
            moved = [a - b for a, b in zip(slow_logprobs(now, g.prompt_ids, r.response_ids), behaviour, strict=True)]
            ratios += [math.exp(gap) for gap in moved]
            gaps += moved
    assert max(map(abs, gaps)) > 1e-2  # the policy has moved
    assert logs["old/ratio"] == pytest.approx(sum(ratios) / len(ratios), abs=1e-9)
    # E_old[k3] at x = log p_old - log p: exp(-x) - 1 + x.
    assert logs["old/approx_kl"] == pytest.approx(sum(math.exp(gap) - 1 - gap for gap in gaps) / len(gaps), abs=1e-9)
    # One update per draw: rows of the current draw need no old log-probabilities, replayed ones keep theirs.
    assert logs["fresh/ratio"] == 1.0
    assert seen[0]["write"].old_logprobs is None
    assert torch.equal(seen[0]["past"].old_logprobs, seen[0]["past"].sampler_logprobs)
    # Whole groups: the advantages are what they were at the time, the reward less the mean of its group of three.
    lengths = torch.tensor([[float(len(r.text)) for r in g.rollouts] for g in trainer.context.items["past"]])
    target = seen[0]["past"].tokens.target
    expected = ((lengths - lengths.mean(1, keepdim=True)).flatten()[:, None] * target).double()
    assert torch.allclose(seen[0]["past"].advantages, expected, rtol=0, atol=1e-9)


def test_several_updates_per_draw_annotate_fresh_rows_and_keep_what_replayed_rows_brought(monkeypatch):
    sources = {"write": rated(), "past": Replay(source="write", advantage=CENTRED)}
    objectives = {"fresh": GRPO(source="write"), "old": GRPO(source="past")}
    trainer = game(learners={"policy": policy(epochs=2)}, sources=sources, objectives=objectives, adversaries={})
    seen = []
    spy(monkeypatch, before=lambda runtime, rows: seen.append(rows))
    trainer.train(progress=False)
    for rows in seen:
        assert torch.equal(rows["past"].old_logprobs, rows["past"].sampler_logprobs)
        # Sampled in this step: annotated by the trainer, which agrees with the sampler up to single precision.
        assert rows["write"].old_logprobs is not rows["write"].sampler_logprobs
        assert torch.allclose(rows["write"].old_logprobs.double(), rows["write"].sampler_logprobs.double(), rtol=0, atol=1e-5)


# ------------------------------------------------------------------------------------------------------ trajectories


def offline(data, net=None, **fields):
    context = Scripted(net=net or network())
    runtime = Trajectories(**{"data": data, "advantage": CENTRED, "batch_size": 2, **fields}).start(context, "past")
    return runtime, context


def advantages(runtime, context, estimator=CENTRED):
    """{text: advantage of its tokens}."""
    items = runtime.draw(0, 0)
    rows = runtime.rows(items, context.encoder("policy"))
    values, _ = estimator(rows, None, lambda x: x)
    each = (values.sum(1) / rows.tokens.target.sum(1)).tolist()
    return dict(zip([r.text for g in items for r in g.rollouts], each, strict=True))


ROWS = [
    {"prompt": "a :", "response": "b", "reward": 1},
    {"prompt": "c :", "response": "d", "reward": 0.5},
    {"prompt": "a :", "response": "c", "reward": 0},
    {"prompt": "a :", "response": "d e", "reward": 0.0},
    {"prompt": "a :", "response": "f", "reward": 0},
]


def test_trajectories_of_a_prompt_are_a_group_and_their_advantages_are_those_of_its_rewards():
    # Prompt "a :" has the rewards (1, 0, 0, 0): mean 1/4. Against the mean of the other three: 1 - 0 and 0 - 1/3. "c :" stands alone.
    found = advantages(*offline(ROWS))
    assert found == pytest.approx({"b": 3 / 4, "c": -1 / 4, "d e": -1 / 4, "f": -1 / 4, "d": 0.0}, abs=1e-6)
    found = advantages(*offline(ROWS), LeaveOneOut())
    assert found == pytest.approx({"b": 1.0, "c": -1 / 3, "d e": -1 / 3, "f": -1 / 3, "d": 0.0}, abs=1e-6)


def test_a_list_of_rewards_is_summed_and_a_group_column_goes_before_the_prompt():
    data = [
        {"question": "a :", "answer": "b", "scores": [1, 0.5], "trial": 1},
        {"question": "a :", "answer": "c", "scores": [0, 0.5], "trial": 1},
        {"question": "a :", "answer": "d", "scores": [0, 0.25], "trial": 2},
        {"question": "a :", "answer": "e", "scores": [1, 0.75], "trial": 2},
    ]
    columns = {"reward": "scores", "group": "trial", "response": "answer"}
    # MetricAccumulator (1.5, 0.5) and (0.25, 1.75): means 1 and 1.
    assert advantages(*offline(data, columns=columns)) == pytest.approx({"b": 0.5, "c": -0.5, "d": -0.75, "e": 0.75}, abs=1e-6)
    wrong = [*data, {"question": "b :", "answer": "e", "scores": [1, 0], "trial": 2}]
    with pytest.raises(ConfigError, match=r"^sources.past: row '5' is in group '2' with another prompt; a group answers one prompt\.$"):
        offline(wrong, columns=columns)


def test_trajectories_read_a_file_and_limit_whole_groups(tmp_path):
    file = tmp_path / "tried.jsonl"
    file.write_text("".join(json.dumps({**row, "prompt": f"{p} :"}) + "\n" for p in "abcdef" for row in ROWS[2:]))
    runtime, _ = offline(str(file), limit=4, batch_size=4)
    drawn = runtime.draw(0, 0)
    assert len(set(names(drawn))) == 4
    assert all([r.text for r in g.rollouts] == ["c", "d e", "f"] for g in drawn)
    assert names(offline(str(file), limit=4, batch_size=4)[0].draw(0, 0)) == names(drawn)
    assert len({tuple(names(offline(str(file), limit=4, batch_size=4, seed=s)[0].draw(0, 0))) for s in range(4)}) > 1


def test_logprobs_of_the_file_are_the_old_policy_and_stand_at_their_tokens():
    # "b c" and its end are three tokens, "d" and its end two; a cut response has no end.
    data = [
        {"prompt": "a :", "response": "b c", "reward": 1, "logprobs": [-1, -2, -0.5]},
        {"prompt": "a :", "response": "d", "reward": 0, "logprobs": [-3, -0.25]},
        {"prompt": "a :", "response": "d", "reward": 0, "logprobs": [-4], "finished": False},
    ]
    runtime, context = offline(data, batch_size=1, temperature=0.5)
    encoder = context.encoder("policy")
    rows = runtime.rows(runtime.draw(0, 0), encoder)
    assert isinstance(rows, RolloutRows)
    assert rows.temperature == 0.5
    assert rows.finished.tolist() == [True, True, False]
    start = len(encoder.prompt("a :"))
    assert [row[start:].tolist() for row in rows.old_logprobs] == [[-1, -2, -0.5], [-3, -0.25, 0], [-4, 0, 0]]
    assert not rows.old_logprobs[:, :start].any()
    assert rows.tokens.ids[1, start:].tolist() == [*encoder.response("d"), encoder.pad_id]
    assert rows.tokens.target.sum(1).tolist() == [3, 2, 1]


WRONG = {
    "logprobs": ([{**ROWS[0], "logprobs": [-1, -2, -3]}], r"row '1' has 3 logprobs for a response of 2 tokens, its end included; .*"),
    "some logprobs": ([{**ROWS[0], "logprobs": [-1, -2]}, ROWS[1]], r"1 of 2 rows have no logprobs; give them to every row, or to none"),
    "text for logprobs": ([{**ROWS[0], "logprobs": "low"}], r"row '1': logprobs: 'low' given; finite numbers are expected"),
    "no reward": ([{"prompt": "a :", "response": "b"}], r"row '1' has no reward; name its column with columns: {reward: ...}"),
    "a reward that is nan": ([{**ROWS[0], "reward": math.nan}], r"row '1': reward: \[nan\] given; finite numbers are expected"),
    "other rewards": ([{**ROWS[0], "reward": [1, 2]}, ROWS[1]], r"some rows have 2 rewards and others do not; .*"),
    "no response": ([{"prompt": "a :", "reward": 1}], r"row '1' has no response; name its column with columns: {response: ...}"),
    "empty": ([], r"the data is empty"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_file_that_cannot_be_learned_from_is_a_sentence(case):
    data, sentence = WRONG[case]
    with pytest.raises(ConfigError, match=rf"^sources.past: {sentence}\.$"):
        offline(data)
    with pytest.raises(ConfigError, match="Did you mean 'response'"):
        offline(ROWS, columns={"respose": "response"})


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("known", [True, False])
def test_offline_rewards_move_the_policy_by_the_ratio_to_whoever_sampled(known, monkeypatch):
    prompt, texts = "length 3 with red :", {"red blue red": 1.0, "blue blue blue": 0.0}
    data = [{"prompt": prompt, "response": t, "reward": r} | ({"logprobs": [-0.5] * 4} if known else {}) for t, r in texts.items()]
    sources = {"past": Trajectories(data=data, advantage=CENTRED, batch_size=1)}
    objectives = {"policy": GRPO(source="past", clip_low=1.0, clip_high=1e9)}
    args = TrainingArguments(max_steps=3)
    learners = {"policy": policy(learning_rate=1e-2, epochs=2)}
    trainer = game(learners=learners, sources=sources, objectives=objectives, adversaries={}, args=args)
    encoder = trainer.model.encoder
    before, ratios = copy.deepcopy(trainer.model), []
    spy(monkeypatch, before=lambda runtime, rows: ratios.append(slow(runtime.network)))

    def slow(net):
        responses = [encoder.response(t) for t in texts]
        now = [v for r in responses for v in slow_logprobs(net, encoder.prompt(prompt), r)]
        return torch.tensor(now)

    history = trainer.train(progress=False)
    # Two updates per draw: at the first the ratio is 1 where nobody said who sampled, at the second it has moved.
    for step, entry in enumerate(history):
        first, second = ratios[2 * step : 2 * step + 2]
        then = torch.full_like(first, -0.5) if known else first
        expected = ((first - then).exp().mean() + (second - then).exp().mean()) / 2
        assert entry["policy/ratio"] == pytest.approx(float(expected), abs=1e-9)
        assert entry["past/reward"] == 0.5
    gain = [sum(slow_logprobs(trainer.model, encoder.prompt(prompt), encoder.response(t))) for t in texts]
    start = [sum(slow_logprobs(before, encoder.prompt(prompt), encoder.response(t))) for t in texts]
    assert gain[0] > start[0]
    assert gain[0] - start[0] > gain[1] - start[1]


def test_a_correction_has_nothing_to_correct_where_nobody_knows_who_sampled():
    prompt, texts = "length 3 with red :", {"red blue red": 1.0, "blue blue blue": 0.0}

    def losses(**fields):
        data = [{"prompt": prompt, "response": t, "reward": r} for t, r in texts.items()]
        sources = {"past": Trajectories(data=data, advantage=CENTRED, batch_size=1)}
        history = game(
            learners={"policy": policy()}, sources=sources, objectives={"policy": GRPO(source="past", **fields)}, adversaries={}
        ).train(progress=False)
        return [entry["policy/grad_norm"] for entry in history]

    # Weights 1 (a sampler's nan is taken to be the policy of now), and the ratio exactly 1 as without an annotation.
    assert losses(correction=Correction(mode="mask", low=0.99, high=1.01)) == pytest.approx(losses(), rel=1e-9)


# --------------------------------------------------------------------------------------------------------- rejection

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
    with pytest.raises(AdvalignError, match=rf"{field}: got 0, must be at least 1\.$"):
        Rejection(data="task:constraints", rewards=[Function(fn=len)], **{field: 0})


# ------------------------------------------------------------------------------------------------- what they share


def test_a_group_is_the_same_after_json():
    original = group("a :", version=4, offpolicy=True)
    original.baseline = 1 / 3
    again = from_json(json.loads(json.dumps(to_json(original))))
    assert again == without_verifier(original)
    assert again != original  # the verifier and the loose columns are gone, and nothing else


def test_every_source_has_its_section_and_what_is_shown_there_builds():
    page = (Path(plugins.__file__).parents[1] / "docs" / "sources.md").read_text(encoding="utf-8")
    shown = set()
    for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL):
        shown |= {plugins.kind_of(type(s)) for s in config.sections(yaml.safe_load(block))["sources"].values()}
    headings = set(re.findall(r"^## (\w+)$", page, re.MULTILINE))
    assert headings == shown == set(plugins.kinds("sources"))


def test_a_reward_that_follows_the_length_shows_in_the_log():
    """Rewards a + b log(length) have r = 1, minus that r = -1; one that does not vary has none. By hand: lengths 1, e, e², here 1, 2, 4
    (logs 0, 1, 2 times log 2) with rewards 0, 1, 0: covariance 0."""

    def group(lengths):
        rollouts = [Rollout(response_ids=[3] * n, sampler_logprobs=[0.0] * n, text="x", finished=True) for n in lengths]
        return [RolloutGroup(example=Example(prompt="p"), prompt_ids=[1], rollouts=rollouts)]

    for scores, expected in (([0.0, 1.0, 2.0], 1.0), ([3.0, 2.0, 1.0], -1.0), ([0.0, 1.0, 0.0], 0.0), ([1.0, 1.0, 1.0], None)):
        logs = score(group([1, 2, 4]), [Length(target=1)], [as_scorer(lambda groups, scores=scores: scores)], "write")
        assert logs.get("rewards/length/corr_length") == (None if expected is None else pytest.approx(expected, abs=1e-12))

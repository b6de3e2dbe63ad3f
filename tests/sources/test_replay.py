"""Past draws drawn again: which groups, how old, and with which ratio."""

import copy
import json
import math
from types import MappingProxyType

import pytest
import torch
from helpers.runs import game, policy, spy, write
from helpers.sources import Scripted, group, names, slow_logprobs

from advalign.advantages.group import Group
from advalign.errors import ConfigError
from advalign.interfaces import SourceRuntime
from advalign.objectives.grpo import GRPO
from advalign.rewards.function import Function
from advalign.sources.rejection import Rejection
from advalign.sources.replay import Replay

CENTRED = Group(scale="none")


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
    with pytest.raises(ConfigError, match=r"^sources.replay.steps: 0 given; a whole number of at least 1 is expected\.$"):
        Replay(source="write", advantage=CENTRED, steps=0)


def rated(**fields):
    return write(rewards=[Function(fn=lambda completions: [float(len(c)) for c in completions])], **fields)


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

"""Rollouts sampled in the background: what they are sampled from, how old they may be, and that they cost less time."""

import copy
import threading
import time

import pytest
import torch
from helpers.runs import DATA, policy, write

from advalign import Callback, Correction, Curriculum, Dynamic, Learner, Sampling, Stage, Trainer, TrainingArguments
from advalign.advantages.group import Group
from advalign.advantages.remax import ReMax
from advalign.engine import rng
from advalign.errors import ConfigError
from advalign.models import load
from advalign.objectives.grpo import GRPO
from advalign.objectives.sft import SFT
from advalign.rewards.function import Function
from advalign.rollout.hf import HF
from advalign.sources._ahead import RolloutQueue
from advalign.sources.demos import Demos
from advalign.sources.prompts import Prompts
from advalign.training.ahead import Background
from advalign.types import Example, RolloutGroup

SHORT = Sampling(max_new_tokens=4)


def brief(completions, **_):
    return [-float(len(c.split())) for c in completions]


class Watch(Callback):
    """Per step: the rollouts that were trained on, and the policy as it was before the step."""

    def __init__(self):
        self.groups, self.before = [], []

    def on_step(self, trainer, logs):
        self.groups.append(trainer.context.items["write"])
        self.before.append(copy.deepcopy(trainer.model))


def run(ahead, steps=4, learner=None, engine=None, callbacks=(), term=None, args=None, **fields):
    source = write(rewards=[Function(fn=brief)], sampling=SHORT, ahead=ahead, **fields)
    trainer = Trainer(
        learners={"policy": learner or policy(learning_rate=3e-3)},
        sources={"write": source},
        objectives={"policy": term or GRPO(source="write")},
        rollout=engine,
        callbacks=callbacks,
        args=args or TrainingArguments(max_steps=steps),
    )
    return trainer, trainer.train(progress=False)


def ids(groups):
    return [[r.response_ids for r in g.rollouts] for g in groups]


def test_without_it_no_thread_is_started_and_nothing_is_logged():
    trainer, history = run(0)
    assert trainer.context.background.worker is None
    assert not any("staleness" in name for line in history for name in line)


@pytest.mark.parametrize("ahead", [1, 3])
def test_it_changes_nothing_where_weights_do_not_move(ahead):
    """At learning rate 0 every copy is the policy: prompts, draws, rewards and losses are those of a run that waits."""
    seen, waited = Watch(), Watch()
    term = GRPO(source="write", correction=Correction())
    _, history = run(ahead, steps=5, learner=policy(learning_rate=0.0), callbacks=[seen], term=term)
    _, plain = run(0, steps=5, learner=policy(learning_rate=0.0), callbacks=[waited], term=term)
    assert [ids(g) for g in seen.groups] == [ids(g) for g in waited.groups]
    for line, other in zip(history, plain, strict=True):
        assert {k: v for k, v in line.items() if k in other} == other
        assert set(line) - set(other) == {"write/staleness"}


@pytest.mark.parametrize("ahead", [1, 2])
def test_the_rollouts_of_a_step_are_those_of_the_policy_so_many_steps_before(ahead):
    """Against the plain engine on the weights of that step, with the stream of the step that trains on them."""
    watch = Watch()
    trainer, history = run(ahead, steps=5, callbacks=[watch], learner=policy(learning_rate=3e-2))
    start = Trainer(learners={"policy": policy()}, sources={"chat": Demos(data=DATA)}, objectives={"a": SFT(source="chat")}).model
    after = [start, *watch.before]  # on_step comes when the step is over: after[s] is the policy before step s
    differ = 0
    for step, groups in enumerate(watch.groups):
        old = max(0, step - ahead)
        assert {r.policy_version for g in groups for r in g.rollouts} == {old}
        assert history[step]["write/staleness"] == step - old
        generator = rng.generator(trainer.args.seed, "rollout", "write", step)
        expected, fresh = (HF().generate(after[i], [g.example for g in groups], 3, SHORT, generator.clone_state()) for i in (old, step))
        assert ids(groups) == ids(expected)
        differ += ids(groups) != ids(fresh)
    assert differ > 2  # the weights of now would have written something else


def test_the_first_step_is_that_of_a_run_that_waits():
    (_, one), (_, none) = run(1, steps=2), run(0, steps=2)
    shared = set(none[0]) & set(one[0])
    assert len(shared) > 15
    assert {k: one[0][k] for k in shared} == {k: none[0][k] for k in shared}
    assert (one[1]["write/staleness"], one[0]["write/staleness"]) == (1, 0)


def test_two_runs_are_one():
    (a, first), (b, second) = run(1, steps=6), run(1, steps=6)
    assert first == second
    assert all(torch.equal(x, y) for x, y in zip(a.model.parameters(), b.model.parameters(), strict=True))


def test_age_is_counted_in_updates_and_bounded_in_steps():
    _, history = run(2, steps=5, learner=policy(epochs=2))
    assert [line["write/staleness"] for line in history] == [0, 2, 4, 4, 4]


def test_old_log_probabilities_are_the_trainer_s_of_now():
    """One update per draw: without `ahead` the ratio is known to be 1 and no pass is spent on it; with it the gap to the sampler is
    real, and nothing at the first step."""
    _, history = run(1, steps=3)
    gaps = [line["write/sampling/sampling_logp_difference/max"] for line in history]
    assert gaps[0] < 1e-6 < 1e-4 < min(gaps[1:])
    _, plain = run(0, steps=2)
    assert not any("sampling_logp" in name for name in plain[1])


def test_grpo_learns_from_old_rollouts_by_truncated_importance_weights():
    term = GRPO(source="write", correction=Correction(level="token", mode="truncate", high=2.0))
    _, history = run(2, steps=40, learner=policy(learning_rate=1e-2), term=term, group_size=8, batch_size=8)
    rewards = [line["write/reward"] for line in history]
    # brief: minus the number of words. An untrained policy writes nearly four of four.
    assert sum(rewards[:3]) / 3 < -2.5
    assert sum(rewards[-5:]) / 5 > -1.0


class Failing(HF):
    def generate(self, network, examples, n, sampling, generator):
        if threading.current_thread() is threading.main_thread():
            raise AssertionError("not in the background")
        Failing.calls += 1
        if Failing.calls == 3:
            raise FloatingPointError("the sampler's own words")
        return super().generate(network, examples, n, sampling, generator)


def test_what_the_engine_raises_comes_up_at_the_draw_that_needs_it():
    Failing.calls, watch = 0, Watch()
    with pytest.raises(FloatingPointError, match=r"^the sampler's own words$"):
        run(1, steps=5, engine=Failing(), callbacks=[watch])
    assert len(watch.groups) == 2  # the third draw is that of step 2


class Slow(HF):
    def generate(self, network, examples, n, sampling, generator):
        time.sleep(0.5)
        return super().generate(network, examples, n, sampling, generator)


class Working(Callback):
    def on_step(self, trainer, logs):
        time.sleep(0.5)


def test_sampling_and_updates_overlap():
    """Half a second each, six steps: 6 s one after the other; side by side 3 s, and the first sampling."""

    def seconds(ahead):
        source = write(rewards=[Function(fn=brief)], sampling=SHORT, ahead=ahead, batch_size=1, group_size=2)
        trainer = Trainer(
            learners={"policy": policy()},
            sources={"write": source},
            objectives={"policy": GRPO(source="write")},
            rollout=Slow(),
            callbacks=[Working()],
            args=TrainingArguments(max_steps=6),
        )
        trainer.start()
        start = time.perf_counter()
        trainer.train(progress=False)
        return time.perf_counter() - start

    assert seconds(1) < seconds(0) - 1.5


# ------------------------------------------------------------------------------------------------------- the queue alone


class Stream:
    def __init__(self):
        self.position, self.asked = 0, []

    def take(self):
        self.position += 1
        return [Example(prompt=str(self.position))]

    def ask(self, step, examples):
        self.asked.append((step, examples[0].prompt))
        return lambda: [RolloutGroup(example=e, prompt_ids=[1], rollouts=[]) for e in examples]

    def queue(self, bound, last=None):
        return RolloutQueue(bound, last, self.take, self.ask, lambda: {"position": self.position})


def test_prompts_keep_their_order_and_nothing_is_asked_beyond_the_end():
    stream = Stream()
    queue = stream.queue(2, last=5)
    served = [queue(step)[0].example.prompt for step in range(5)]
    assert served == list("12345")
    assert stream.asked == [(step, str(step + 1)) for step in range(5)]


def test_steps_that_are_left_out_lose_no_prompt_and_serve_nothing_old():
    """After step 0 steps 1 and 2 are asked for; the source is next read at step 7: their prompts are asked again, first."""
    stream = Stream()
    queue = stream.queue(2)
    assert [queue(s)[0].example.prompt for s in (0, 7, 8)] == ["1", "2", "3"]
    assert stream.asked[:5] == [(0, "1"), (1, "2"), (2, "3"), (7, "2"), (8, "3")]
    assert queue.jobs[9].submitted >= 7
    assert [queue(s)[0].example.prompt for s in (10, 11)] == ["4", "5"] or stream.position >= 5


def test_a_checkpoint_stands_before_the_oldest_prompts_nobody_was_trained_on():
    stream = Stream()
    queue = stream.queue(3)
    queue(0)
    queue(1)
    assert stream.position == 5
    assert queue.state_dict() == {"position": 2}


def test_a_resumed_run_trains_on_the_prompts_that_come_next(tmp_path):
    def prompts(steps, resume, folder):
        watch = Watch()
        source = write(rewards=[Function(fn=brief)], sampling=SHORT, ahead=2)
        trainer = Trainer(
            learners={"policy": policy()},
            sources={"write": source},
            objectives={"policy": GRPO(source="write")},
            callbacks=[watch_only(watch)],
            args=TrainingArguments(max_steps=steps, save_steps=3, output_dir=str(folder)),
        )
        trainer.train(progress=False, resume=resume)
        return [[g.example.prompt for g in groups] for groups in watch.groups]

    def watch_only(watch):
        watch.on_save = watch.on_evaluate = lambda *_: None
        return watch

    whole = prompts(6, False, tmp_path / "whole")
    first = prompts(3, False, tmp_path / "half")
    rest = prompts(6, True, tmp_path / "half")
    assert first + rest == whole
    assert len({tuple(p) for p in whole}) == 6


def test_a_copy_shares_a_frozen_base_and_is_used_again():
    pytest.importorskip("peft", reason="the package peft is not installed: no adapters")
    words = {"kind": "words"}
    network = load(
        "scratch:tiny?hidden_size=32",
        tokenizer=words,
        texts=["a b c"],
        max_length=16,
        options={"lora": {"r": 2, "target_modules": ["q_proj"]}},
    )
    seen = []

    class Engine(HF):
        def generate(self, network, *given):
            seen.append((network, [p.clone() for p in network.parameters()]))
            return super().generate(network, *given)

    background = Background(Engine())
    for version in range(2):
        for p in network.parameters():
            if p.requires_grad:
                p.data.add_(1.0)
        now = [p.clone() for p in network.parameters()]
        (group,) = background.submit(network, version, [Example(prompt="a b")], 1, SHORT, torch.Generator())()
        assert group.rollouts[0].policy_version == version
        assert all(torch.equal(a, b) for a, b in zip(seen[-1][1], now, strict=True))
    assert seen[0][0] is seen[1][0] is not network
    shared = [a is b for a, b in zip(seen[0][0].parameters(), network.parameters(), strict=True)]
    assert [not p.requires_grad for p in network.parameters()] == shared
    assert {True, False} == set(shared)


# ---------------------------------------------------------------------------------------------- with other options


def test_refills_are_sampled_by_the_policy_of_now():
    watch = Watch()
    _, history = run(1, steps=3, callbacks=[watch], dynamic=Dynamic(max_batches=3), group_size=2, batch_size=6)
    assert all(line["write/dynamic/batches"] >= 1 for line in history)
    versions = {r.policy_version for r in (r for g in watch.groups[2] for r in g.rollouts)}
    assert versions <= {1, 2}


def test_a_stage_that_reads_something_else_in_between():
    trainer = Trainer(
        learners={"policy": policy()},
        sources={"write": write(rewards=[Function(fn=brief)], sampling=SHORT, ahead=1), "chat": Demos(data=DATA, limit=8, batch_size=2)},
        objectives={"policy": GRPO(source="write"), "imitate": SFT(source="chat")},
        stages=[Stage(steps=2, objectives=("policy",)), Stage(steps=3, objectives=("imitate",)), Stage(steps=2, objectives=("policy",))],
    )
    history = trainer.train(progress=False)
    assert [line.get("write/staleness") for line in history] == [0, 1, None, None, None, 0, 1]


def test_what_is_said_and_what_is_refused():
    def notes(**fields):
        trainer = Trainer(
            learners={"policy": Learner(model="scratch:tiny")},
            sources={"write": write(rewards=[Function(fn=brief)], **fields)},
            objectives={"policy": GRPO(source="write")},
        )
        return trainer.notes()

    assert notes() == []
    resume, correct = notes(ahead=2)
    assert resume == "sources.write.ahead: what is sampled ahead is in no checkpoint, so a resumed run does not end with the same bits."
    assert correct.startswith("objectives.policy.correction: its rollouts were sampled by weights of up to 2 steps before; use correction:")
    given = {"data": DATA, "rewards": [Function(fn=brief)]}
    with pytest.raises(ConfigError, match=r"^sources\.prompts\.ahead: -1 given; a whole number of at least 0 is expected\.$"):
        Prompts(**given, advantage=Group(), ahead=-1)
    with pytest.raises(ConfigError, match=r"^sources\.prompts\.ahead: got 1, but curriculum .*; use ahead: 0\.$"):
        Prompts(**given, advantage=Group(), ahead=1, curriculum=Curriculum())
    with pytest.raises(ConfigError, match=r"^sources\.prompts\.ahead: got 1, but advantage .*; use ahead: 0\.$"):
        Prompts(**given, advantage=ReMax(), ahead=1)

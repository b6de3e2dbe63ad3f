"""What the source of prompts may do beside sampling: refill, demonstrations inside groups, a gate, KL in the reward, a curriculum."""

import math
import random
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.context import FakeContext
from helpers.runs import WORDS, chat, policy, spy, write

from advalign import Frozen, Learner, Trainer, TrainingArguments
from advalign.advantages.gae import GAE
from advalign.advantages.group import Group
from advalign.advantages.leave_one_out import LeaveOneOut
from advalign.advantages.remax import ReMax
from advalign.errors import ConfigError, RewardError
from advalign.functional import divergence
from advalign.interfaces import Reward
from advalign.objectives.dapo import DAPO
from advalign.objectives.dr_grpo import DrGRPO
from advalign.objectives.luffy import LUFFY
from advalign.objectives.ppo import PPO
from advalign.objectives.sft import SFT
from advalign.objectives.value import Value
from advalign.rewards.discriminator import Discriminator
from advalign.rewards.function import Function
from advalign.rewards.length import Length
from advalign.sources._options import Curriculum, Demonstrations, Dynamic, KLPenalty
from advalign.types import Example, Rollout, RolloutGroup, RolloutRows, Tokens


def even(completions, **_):
    return [float(len(c.split()) % 2 == 0) for c in completions]


def nothing(completions, **_):
    return [0.0] * len(completions)


class Scripted(FakeContext):
    """A context whose policy answers from a table: {prompt: list of answers}, the greedy one first."""

    def __init__(self, table):
        super().__init__()
        self.table, self.asked = table, []

    def random(self, *key):
        return random.Random(str((self.seed, *key)))

    def encoder(self, learner):
        return SimpleNamespace(response=lambda text: [ord(c) for c in text], truncation=SimpleNamespace(mode="left"))

    def generate(self, learner, examples, n, sampling, key):
        self.asked.append(tuple(e.prompt for e in examples))
        groups = []
        for e in examples:
            texts = self.table[e.prompt][:1] if sampling.temperature == 0 else self.table[e.prompt][:n]
            rollouts = [Rollout(response_ids=[1] * len(t), sampler_logprobs=[-1.0] * len(t), text=t, finished=True) for t in texts]
            groups.append(RolloutGroup(example=e, prompt_ids=[1], rollouts=rollouts))
        return groups


def numeric(completions, **_):
    return [float(c) for c in completions]


def source(tmp_path, table, **fields):
    """A started source over the prompts of a table, whose reward reads the answer as a number."""
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(f'{{"prompt": "{p}", "response": "{fields.pop("demo", "9")}"}}\n' for p in table))
    context = Scripted(table)
    config = write(**{"data": str(file), "rewards": [Function(fn=numeric)], "batch_size": 2, "group_size": 2, **fields})
    return config.start(context, "s"), context


# ------------------------------------------------------------------------------------------------ dynamic


def test_dynamic_sampling_refills_with_groups_that_teach(tmp_path):
    # Of four prompts one is informative (1, 0); an epoch of two batches of two meets it once.
    table = {"a": ["1", "1"], "b": ["0", "0"], "c": ["1", "0"], "d": ["0", "0"]}
    runtime, context = source(tmp_path, table, dynamic=Dynamic(max_batches=10))
    found = runtime.draw(0, 0)
    assert [g.example.prompt for g in found] == ["c", "c"]
    assert runtime.logs["dynamic/informative"] == 1.0
    assert 2 <= runtime.logs["dynamic/batches"] <= 4 == len(set("abcd"))
    assert len(context.asked) == runtime.logs["dynamic/batches"]
    # The fraction of groups without signal is that of the first batch, before anything was refilled.
    first = [len(set(table[p])) == 1 for p in context.asked[0]]
    assert runtime.logs["frac_reward_zero_std"] == sum(first) / 2


def test_dynamic_sampling_gives_up_and_says_so(tmp_path):
    runtime, context = source(tmp_path, {"a": ["1", "1"], "b": ["0", "0"]}, dynamic=Dynamic(max_batches=3))
    found = runtime.draw(0, 0)
    assert len(found) == 2
    assert len(context.asked) == 3
    assert runtime.logs["dynamic/informative"] == 0.0


def overlong(completions, **_):
    return [-len(c) / 10 for c in completions]


LONG = Length(max_length=3, buffer=3)  # a price of 1/3 per character of these answers
SAME, RIGHT = ["1", "1.0"], ["1", "0.0"]  # equally right at different lengths; one right and one wrong


@pytest.mark.parametrize(
    ("rewards", "dynamic", "kept"),
    [
        ([Function(fn=numeric), LONG], Dynamic(max_batches=6), {"right"}),
        ([LONG, Function(fn=numeric)], Dynamic(max_batches=6), {"right"}),
        ([LONG], Dynamic(max_batches=6), {"right", "same"}),  # there is no other reward
        ([Function(fn=numeric), LONG], Dynamic(max_batches=6, by=("function", "length")), {"right", "same"}),
        ([Function(fn=numeric), Function(fn=overlong)], Dynamic(max_batches=6, by=("function",)), {"right"}),
        ([Function(fn=numeric), Function(fn=overlong)], Dynamic(max_batches=6), {"right", "same"}),  # what a function prices is not known
    ],
)
def test_a_price_on_length_alone_makes_no_group_informative(tmp_path, rewards, dynamic, kept):
    table = {"right": RIGHT, "same": SAME, "equal": ["1", "1"], "none": ["0", "0"]}
    runtime, _ = source(tmp_path, table, rewards=rewards, dynamic=dynamic, batch_size=4)
    groups = runtime.draw(0, 0)
    assert {g.example.prompt for g in groups} == kept
    assert runtime.logs["dynamic/informative"] == 1.0


def test_a_group_whose_deciding_rewards_abstain_is_not_informative(tmp_path):
    table = {"a": ["1", "1.0"], "b": ["0", "1"]}
    unsure = Function(fn=lambda completions, prompts, **_: [math.nan if p == "a" else float(c) for p, c in zip(prompts, completions)])
    runtime, _ = source(tmp_path, table, rewards=[unsure, LONG], dynamic=Dynamic(max_batches=6), batch_size=2)
    assert {g.example.prompt for g in runtime.draw(0, 0)} == {"b"}


def test_a_reward_that_is_to_decide_must_exist(tmp_path):
    with pytest.raises(ConfigError, match=r"^sources\.s\.dynamic\.by: no reward 'fnction'\. Known: .* Did you mean 'function'"):
        source(tmp_path, {"a": RIGHT}, rewards=[Function(fn=numeric), LONG], dynamic=Dynamic(by=("fnction",)))


# ---------------------------------------------------------------------------------------- demonstrations, gate


def test_demonstrations_join_the_group_and_share_its_baseline(tmp_path):
    runtime, _ = source(tmp_path, {"a": ["0", "3"], "b": ["0", "0"]}, demonstrations=Demonstrations())
    found = runtime.draw(0, 0)
    for group in found:
        assert [r.offpolicy for r in group.rollouts] == [False, False, True]
        assert group.rollouts[2].response_ids == [ord("9")]
        assert group.rollouts[2].sampler_logprobs == [0.0]
        assert group.rollouts[2].rewards == [9.0]
    # Means are those of what the policy sampled: (0 + 3 + 0 + 0) / 4.
    assert runtime.logs["reward"] == 0.75


@pytest.mark.parametrize(("answers", "stays"), [(["0", "0"], "demonstration"), (["0", "1"], "samples"), (["1", "1"], "samples")])
def test_the_gate_keeps_one_side_by_the_solve_rate(tmp_path, answers, stays):
    # HPT with gate 0: no response solved -> imitate; otherwise reinforce.
    runtime, _ = source(tmp_path, {"a": answers, "b": answers}, demonstrations=Demonstrations(gate=0.0))
    for group in runtime.draw(0, 0):
        assert {r.offpolicy for r in group.rollouts} == {stays == "demonstration"}
    assert runtime.logs["gate/demonstrated"] == float(stays == "demonstration")


def test_a_higher_gate_imitates_more():
    group = RolloutGroup(example=Example(prompt="a"), prompt_ids=[1], rollouts=[
        *(Rollout(response_ids=[1], sampler_logprobs=[0.0], text="", finished=True) for _ in range(4)),
        Rollout(response_ids=[1], sampler_logprobs=[0.0], text="", finished=True, offpolicy=True),
    ])  # fmt: skip
    solved = [1.0, 0.0, 0.0, 0.0, 1.0]  # one of four: a rate of 1/4, not above a gate of 1/4
    assert Demonstrations(gate=0.0).choose(group, solved) == [0, 1, 2, 3]
    assert Demonstrations(gate=0.25).choose(group, solved) == [4]
    assert Demonstrations().choose(group, solved) == [0, 1, 2, 3, 4]


def test_luffy_and_hpt_learn_where_no_sample_is_rewarded():
    """On-policy gradients are exactly zero there; demonstrations in the group, or the gate, move the policy."""

    def moved(objectives, **fields) -> float:
        made = write(rewards=[Function(fn=only_demonstrations)], batch_size=2, **fields)
        trainer = Trainer(
            learners={"policy": policy()}, sources={"write": made}, objectives=objectives, args=TrainingArguments(max_steps=1)
        )
        before = {n: p.clone() for n, p in trainer.model.named_parameters()}
        trainer.train(progress=False)
        return sum(float((p.detach() - before[n]).abs().sum()) for n, p in trainer.model.named_parameters())

    assert moved({"policy": DrGRPO(source="write", length=6)}) == 0.0
    assert moved({"policy": LUFFY(source="write", length=6)}, demonstrations=Demonstrations()) > 0
    both = {"policy": DrGRPO(source="write", length=6), "imitate": SFT(source="write")}
    assert moved(both, demonstrations=Demonstrations(gate=0.0)) > 0


def everything(completions, **_):
    return [1.0] * len(completions)


def test_a_draw_without_demonstrations_teaches_imitation_nothing_and_stops_nothing():
    made = write(rewards=[Function(fn=everything)], batch_size=2, demonstrations=Demonstrations(gate=0.0))
    both = {"policy": DrGRPO(source="write", length=6), "imitate": SFT(source="write")}
    trainer = Trainer(learners={"policy": policy()}, sources={"write": made}, objectives=both, args=TrainingArguments(max_steps=1))
    before = [p.detach().clone() for p in trainer.model.parameters()]
    logs = trainer.train(progress=False)
    assert logs[0]["write/gate/demonstrated"] == 0.0
    assert logs[0]["imitate/loss"] == 0.0
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


def only_demonstrations(prompts, completions, **_):
    """1 for a text of the length that was asked for with the word that was asked for; an untrained sample is never that here."""
    asked = [p.split() for p in prompts]
    return [float(len(c.split()) == int(p[1]) and p[3] in c.split()) for p, c in zip(asked, completions, strict=True)]


# -------------------------------------------------------------------------------------------- greedy baseline


def test_remax_subtracts_the_reward_of_the_greedy_answer(tmp_path):
    runtime, _ = source(tmp_path, {"a": ["2", "5"], "b": ["1", "0"]}, advantage=ReMax())
    found = runtime.draw(0, 0)
    assert {g.example.prompt: g.baseline for g in found} == {"a": 2.0, "b": 1.0}
    assert [len(r.rewards) for g in found for r in g.rollouts] == [1, 1, 1, 1]


# --------------------------------------------------------------------------------------------- KL in the reward


def rollout_rows() -> RolloutRows:
    g = torch.Generator().manual_seed(0)
    target = torch.tensor([[False, True, True, False], [False, True, True, True]])
    tokens = Tokens(ids=torch.zeros(2, 4, dtype=torch.long), mask=target, target=target, group=torch.arange(2), key=torch.arange(2))
    old, ref = (-torch.rand(2, 4, generator=g, dtype=torch.float64) for _ in range(2))
    return RolloutRows(
        tokens=tokens, rewards=torch.tensor([[1.0], [0.0]], dtype=torch.float64), advantages=torch.zeros(2, 4), sampler_logprobs=old,
        finished=torch.ones(2, dtype=torch.bool), old_logprobs=old, ref_logprobs=ref,
    )  # fmt: skip


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_penalty_per_token_or_summed(estimator):
    rows, target = rollout_rows(), rollout_rows().tokens.target
    penalty = KLPenalty(coef=0.3, estimator=estimator)
    tokens, logs = penalty.apply(rows, penalty.initial_state(), summed=False)
    want = -0.3 * divergence.ESTIMATORS[estimator](rows.old_logprobs, rows.ref_logprobs) * target
    torch.testing.assert_close(tokens.token_rewards, want, rtol=0, atol=1e-15)
    rowwise, _ = penalty.apply(rows, penalty.initial_state(), summed=True)
    torch.testing.assert_close(rowwise.rewards, torch.cat([rows.rewards, want.sum(1, keepdim=True)], 1), rtol=0, atol=1e-15)
    gap = ((rows.old_logprobs - rows.ref_logprobs) * target).sum(1).mean()
    assert logs == {"kl": pytest.approx(float(gap)), "kl_coef": 0.3}


def test_adaptive_coefficient_follows_the_target():
    # KL far above the target: error clipped to 0.2, two responses, horizon 10 -> coef * (1 + 0.2 * 2 / 10) = 1.04 coef
    rows = replace(rollout_rows(), ref_logprobs=rollout_rows().old_logprobs - 5.0)
    penalty = KLPenalty(coef=0.5, target=0.1, horizon=10.0)
    state = penalty.initial_state()
    _, logs = penalty.apply(rows, state, summed=True)
    assert logs["kl_coef"] == 0.5  # what this draw was priced with
    assert state["coef"] == pytest.approx(0.52)


def ppo(**fields) -> Trainer:
    learners = {"policy": policy(minibatches=2), "critic": policy(head="value")}
    sources = {"write": write(rewards=[Function(fn=even)], advantage=GAE(), kl=KLPenalty(target=0.5, horizon=100), **fields)}
    objectives = {"policy": PPO(source="write"), "critic": Value(source="write", learner="critic")}
    args = TrainingArguments(max_steps=3)
    return Trainer(learners=learners, sources=sources, objectives=objectives, frozen={"reference": Frozen()}, args=args)


def test_ppo_with_critic_reference_and_kl_runs_and_logs():
    logs = ppo().train(progress=False)
    assert logs[0]["write/kl"] == pytest.approx(0.0, abs=1e-12)  # the reference is the policy of the start
    assert abs(logs[-1]["write/kl"]) > 1e-6
    assert logs[-1]["write/kl_coef"] < logs[0]["write/kl_coef"]  # far below the target
    assert logs[-1]["write/sampling/sampling_logp_difference/max"] < 1e-6  # one model; sampled ones are kept in float32


def test_states_of_estimators_are_resumed(tmp_path):
    def run(steps, folder, resume=False):
        trainer = ppo()
        trainer.args = replace(trainer.args, max_steps=steps, output_dir=str(folder), save_steps=1)
        trainer.run_spec.stages[0] = replace(trainer.run_spec.stages[0], steps=steps)
        trainer.train(resume=resume, progress=False)
        return trainer

    whole = run(3, tmp_path / "whole")
    run(2, tmp_path / "cut")
    resumed = run(3, tmp_path / "cut", resume=True)
    assert whole.annotator.states["write"]["kl"]["coef"] == resumed.annotator.states["write"]["kl"]["coef"] != 0.05
    for (_, a), (_, b) in zip(whole.model.named_parameters(), resumed.model.named_parameters(), strict=True):
        assert torch.equal(a, b)


def test_leave_one_out_takes_the_summed_penalty():
    sources = {"write": write(rewards=[Function(fn=even)], advantage=LeaveOneOut(), kl=KLPenalty(coef=1.0))}
    trainer = Trainer(
        learners={"policy": policy(minibatches=2)}, sources=sources, objectives={"policy": DAPO(source="write")},
        frozen={"reference": Frozen()}, args=TrainingArguments(max_steps=2),
    )  # fmt: skip
    logs = trainer.train(progress=False)
    assert "write/kl" in logs[-1]


# ------------------------------------------------------------------------------------------------- curriculum


def test_curriculum_prefers_prompts_near_its_target(tmp_path):
    table = {"easy": ["1", "1"], "hard": ["0", "0"], "half": ["1", "0"], "other": ["0", "1"]}
    runtime, context = source(tmp_path, table, curriculum=Curriculum(width=0.1, floor=0.01, decay=0.0))
    for step in range(60):
        runtime.draw(step, 0)
    late = [p for asked in context.asked[20:] for p in asked]
    share = {p: late.count(p) / len(late) for p in table}
    assert share["half"] + share["other"] > 0.9
    assert runtime.stream.rates == {i: {"easy": 1.0, "hard": 0.0}.get(p, 0.5) for i, p in enumerate(table)}
    # weight at a distance of 5 widths: floor + e^-12.5
    assert runtime.stream.weight(0) == pytest.approx(0.01 + math.exp(-12.5))
    again, _ = source(tmp_path, table, curriculum=Curriculum(width=0.1, floor=0.01, decay=0.0))
    again.load_state_dict(runtime.state_dict())
    assert [g.example.prompt for g in again.draw(60, 0)] == [g.example.prompt for g in runtime.draw(60, 0)]


# -------------------------------------------------------------------------------------------------- refusals


def wrong_number(groups):
    return [1.0]


BAD = [
    (lambda: Dynamic(max_batches=0), "dynamic.max_batches: 0 given"),
    (lambda: Demonstrations(gate=1.5), "demonstrations.gate: 1.5 given"),
    (lambda: KLPenalty(estimator="k9"), "no estimator 'k9'"),
    (lambda: KLPenalty(coef=-1.0), "kl.coef: -1 given"),
    (lambda: Curriculum(width=0.0), "curriculum.width: 0 given"),
    (lambda: write(group_size=0), "sources.prompts.group_size: 0 given"),
    (
        lambda: Trainer(model=policy(), sources={"write": write(kl=KLPenalty(), rewards=[Function(fn=even)])},
                        objectives={"policy": PPO(source="write")}),
        "sources.write.kl: a KL penalty compares with the reference",
    ),
    (
        lambda: Trainer(model=policy(), sources={"write": write(advantage=GAE(), rewards=[Function(fn=even)])},
                        objectives={"policy": PPO(source="write")}),
        "GAE needs a critic",
    ),
    (
        lambda: Trainer(model=policy(), sources={"write": write(group_size=1, advantage=Group(), rewards=[Function(fn=even)])},
                        objectives={"policy": PPO(source="write")}),
        "sources.write.group_size: Group compares the responses of one prompt, and 1 response has nothing to compare with",
    ),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(BAD)))
def test_bad_options_are_one_sentence(number):
    build, sentence = BAD[number]
    with pytest.raises(ConfigError) as error:
        build()
    assert sentence in str(error.value)


@dataclass(frozen=True, kw_only=True)
class Endless(Reward):
    """A reward without bound."""

    value: Any = math.inf

    def start(self, context):
        return lambda groups: [self.value for g in groups for _ in g.rollouts]


@pytest.mark.parametrize(
    ("value", "weight", "shown"),
    [(math.inf, 1, "inf"), (-math.inf, 1, "-inf"), (1e39, 1, "1e\\+39"), (-1e30, 1e10, "-1e\\+30"), ([math.inf], 1, "inf")],
)
def test_a_reward_that_is_infinite_or_is_so_in_a_row_stops_the_run(value, weight, shown, tmp_path):
    """Rows hold rewards in float32, whose largest number is 3.4e38."""
    runtime, _ = source(tmp_path, {"a": ["1", "1"], "b": ["0", "0"]}, rewards=[Endless(value=value, weight=weight)])
    with pytest.raises(
        RewardError, match=rf"^sources.s: reward '.*Endless' gave {shown} for '.' \(weight .*\); give a finite number, of at "
    ):
        runtime.draw(0, 0)


def test_rewards_on_tokens_that_cancel_out_are_infinite(tmp_path):
    """inf - inf is nan, which would abstain."""
    runtime, _ = source(tmp_path, {"a": ["1 1", "1 1"]}, rewards=[Endless(value=[math.inf, -math.inf])])
    with pytest.raises(RewardError, match=r"Endless' gave inf for '1 1'"):
        runtime.draw(0, 0)


def test_two_rewards_of_one_kind_have_two_names(tmp_path):
    both = [Function(fn=numeric), Function(fn=nothing, weight=2.0)]
    runtime, _ = source(tmp_path, {"a": ["1", "3"], "b": ["1", "3"]}, rewards=both)
    runtime.draw(0, 0)
    assert runtime.logs["rewards/function/mean"] == 2.0
    assert runtime.logs["rewards/function_2/mean"] == 0.0
    assert runtime.logs["reward_std"] == pytest.approx((4 / 3) ** 0.5)  # of 1, 3, 1, 3 with ddof 1


def test_a_constant_reward_moves_nothing_and_is_logged():
    trainer = Trainer(
        model=Learner(model="scratch:tiny-gpt2?n_embd=32", tokenizer=WORDS, max_length=32),
        sources={"write": write(rewards=[Function(fn=nothing)])},
        objectives={"policy": PPO(source="write")},
        args=TrainingArguments(max_steps=1),
    )
    before = [p.clone() for p in trainer.model.parameters()]
    logs = trainer.train(progress=False)
    assert logs[0]["write/frac_reward_zero_std"] == 1.0
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


# ---------------------------------------------------------------------------------- rewards equal within rounding


@pytest.mark.parametrize(
    ("table", "constant"),
    [
        ([0.1, 0.1, 0.1], 1.0),  # their mean is 0.10000000000000002, and the standard deviation 1.5e-17
        ([0.1 + 0.2, 0.3, 0.3], 1.0),
        ([0.1, 0.1, 0.100001], 0.0),
        ([0.0, 0.0, 1e-6], 0.0),
    ],
)
def test_rewards_that_differ_by_rounding_are_equal(tmp_path, table, constant):
    answers = [repr(value) for value in table]
    fields = {"batch_size": 1, "group_size": 3, "dynamic": Dynamic(max_batches=2)}
    runtime, _ = source(tmp_path, {"a": answers}, **fields)
    runtime.draw(0, 0)
    assert runtime.logs["frac_reward_zero_std"] == constant
    assert runtime.logs["dynamic/informative"] == 1 - constant


# ------------------------------------------------------------------------------------ what a greedy baseline may be


def none_of_nine(completions, **_):
    return [None if c == "9" else float(c) for c in completions]


def test_a_prompt_whose_greedy_answer_has_no_reward_leaves_the_batch(tmp_path):
    class Greedy(Scripted):
        def generate(self, learner, examples, n, sampling, key):
            groups = super().generate(learner, examples, n, sampling, key)
            for group in groups:
                if sampling.temperature == 0 and group.example.prompt == "a":
                    group.rollouts[0].text = "9"
            return groups

    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    config = write(data=str(file), rewards=[Function(fn=none_of_nine)], batch_size=2, group_size=2, advantage=ReMax())
    runtime = config.start(Greedy({"a": ["2", "5"], "b": ["1", "0"]}), "s")
    groups = runtime.draw(0, 0)
    assert [(g.example.prompt, g.baseline) for g in groups] == [("b", 1.0)]
    assert runtime.logs["abstained_baselines"] == 1.0
    assert runtime.logs["abstained"] == 0.0


class Critic(Scripted):
    """A discriminator that reads an answer as its score."""

    def score(self, learner, prompts, texts, finished):
        return [float(text) for text in texts], 0


@pytest.mark.parametrize("normalize", ["batch", "running"])
def test_a_greedy_baseline_is_on_the_scale_of_the_rewards(tmp_path, normalize):
    # Sampled 2, 5, 1, 0: mean 2, standard deviation sqrt((0 + 9 + 1 + 4) / 3). Greedy: 2 and 1.
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    reward = Discriminator(learner="discriminator", normalize=normalize)
    config = write(data=str(file), rewards=[reward], batch_size=2, group_size=2, advantage=ReMax())
    runtime = config.start(Critic({"a": ["2", "5"], "b": ["1", "0"]}), "s")
    std = math.sqrt(14 / 3)
    groups = {g.example.prompt: g for g in runtime.draw(0, 0)}
    assert groups["a"].baseline == pytest.approx(0.0, abs=1e-12)
    assert groups["b"].baseline == pytest.approx(-1 / std, abs=1e-12)
    assert [r.rewards[0] - groups["a"].baseline for r in groups["a"].rollouts] == pytest.approx([0.0, 3 / std], abs=1e-12)
    assert runtime.scorers[0].running.number == (4 if normalize == "running" else 0)  # greedy answers are in no statistics


# ------------------------------------------------------------------------------------ a frozen copy that samples


def test_a_frozen_copy_samples_and_old_logprobs_are_its_own():
    sources = {"write": write(learner="before", rewards=[Function(fn=even)])}
    frozen = {"before": Frozen(refresh=10)}
    trainer = Trainer(
        learners={"policy": policy()}, sources=sources, objectives={"policy": DAPO(source="write")}, frozen=frozen,
        args=TrainingArguments(max_steps=3),
    )  # fmt: skip
    trainer.train(progress=False)
    step = trainer.next_step()
    step.context.items = {}
    rows, _ = step.rows("write", "policy")
    logits = trainer.frozen["before"].model(input_ids=rows.tokens.ids, attention_mask=rows.tokens.mask.long()).logits.log_softmax(2)
    want = logits[:, :-1].gather(2, rows.tokens.ids[:, 1:, None]).squeeze(2)
    target = rows.tokens.target[:, 1:]
    torch.testing.assert_close(rows.old_logprobs[:, 1:][target], want[target].detach().to(rows.old_logprobs.dtype), rtol=0, atol=1e-6)


# ------------------------------------------------------------------------------------------------ which critic


def two_critics(**sources):
    learners = {"other": policy(head="value"), "policy": policy(), "own": policy(head="value"), "second": policy()}
    rewards = [Function(fn=even)]
    sources = {
        "write": write(rewards=rewards, advantage=GAE()), "read": write(learner="second", rewards=rewards, advantage=GAE()), **sources
    }  # fmt: skip
    objectives = {
        "policy": DAPO(source="write"), "second": DAPO(source="read", learner="second"),
        "own": Value(source="write", learner="own"), "other": Value(source="read", learner="other"),
    }  # fmt: skip
    return {"learners": learners, "sources": sources, "objectives": objectives, "args": TrainingArguments(max_steps=1)}


def test_values_are_those_of_the_critic_that_is_trained_on_the_source():
    trainer = Trainer(**two_critics())
    trainer.start()
    for name in ("own", "other"):
        torch.nn.init.constant_(trainer.learners[name].network.scalar.bias, {"own": 3.0, "other": -7.0}[name])
        torch.nn.init.zeros_(trainer.learners[name].network.scalar.weight)
    step = trainer.next_step()
    step.context.items = {}
    for source, value in (("write", 3.0), ("read", -7.0)):
        rows, _ = step.rows(source, "policy")
        assert rows.values[rows.tokens.target].unique().tolist() == [value]


def test_two_critics_of_one_source_are_refused():
    sections = two_critics()
    sections["objectives"] |= {"both": Value(source="write", learner="other")}
    with pytest.raises(ConfigError, match=r"sources.write.advantage: its values may be those of learners other, own; train one critic"):
        Trainer(**sections)


# ------------------------------------------------------------------- a sampler that is updated before its rows are read


def test_old_logprobs_are_of_the_weights_that_sampled(monkeypatch):
    # `policy` is updated on demonstrations before `second` reads what it sampled: old_logprobs are still the sampler's own.
    read = {}
    spy(monkeypatch, before=lambda runtime, rows: read.update(rows) if runtime.name == "second" else None)
    learners = {"policy": policy(learning_rate=0.1), "second": policy()}
    sources = {"chat": chat(), "write": write(rewards=[Function(fn=even)])}
    objectives = {"imitate": SFT(source="chat"), "learn": DAPO(source="write", learner="second")}
    logs = Trainer(learners=learners, sources=sources, objectives=objectives, args=TrainingArguments(max_steps=1)).train(progress=False)
    rows = read["write"]
    target = rows.tokens.target
    torch.testing.assert_close(rows.old_logprobs[target], rows.sampler_logprobs[target], rtol=0, atol=1e-5)
    assert logs[0]["write/sampling/sampling_logp_difference/max"] < 1e-5

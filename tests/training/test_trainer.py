"""One training step: which learner is updated when, on which rows, scored by which discriminator, with which rewards."""

import copy
import math

import pytest
import torch
from helpers.runs import chat, discriminator, game, imitation, policy, spy, write

from advalign import Callback, Evaluation, Frozen, Sampling, TrainingArguments
from advalign.advantages.gae import GAE
from advalign.advantages.group import Group
from advalign.adversaries.pgd import PGD
from advalign.models.inference import score_texts
from advalign.objectives.dapo import DAPO
from advalign.objectives.dpo import DPO
from advalign.objectives.grpo import GRPO
from advalign.objectives.kl import KL
from advalign.objectives.sft import SFT
from advalign.objectives.value import Value
from advalign.rewards.function import Function
from advalign.sources.pairs import Pairs
from advalign.training.trainer import Trainer
from advalign.types import RolloutRows

# ------------------------------------------------------------------------------------------------ order and isolation


@pytest.mark.parametrize("order", [("policy", "discriminator"), ("discriminator", "policy")])
def test_a_reward_comes_from_the_discriminator_before_its_update(order):
    learners = {"policy": policy(minibatches=2, epochs=2), "discriminator": discriminator(updates=3)}
    trainer = game(learners={name: learners[name] for name in order})
    trainer.start()
    for step in range(2):
        before = copy.deepcopy(trainer.learners["discriminator"].network)
        trainer.training_step()
        groups = trainer.context.items["write"]
        rollouts = [r for g in groups for r in g.rollouts]
        assert len(rollouts) == 4 * 3
        # 2 minibatches x 2 epochs per step of the policy, 3 draws per step of the discriminator.
        assert {r.policy_version for r in rollouts} == {4 * step}
        assert {tuple(r.reward_versions) for r in rollouts} == {(3 * step,)}
        prompts = [g.example.prompt for g in groups for _ in g.rollouts]
        rows = [(prompt, r.text, r.finished) for prompt, r in zip(prompts, rollouts, strict=True)]
        rewards = torch.tensor([r.rewards[0] for r in rollouts], dtype=torch.float64)
        networks = (before, trainer.learners["discriminator"].network)
        scored_before, scored_after = (torch.tensor(score_texts(n, rows, 8192)).double() for n in networks)
        assert torch.allclose(rewards, scored_before, rtol=0, atol=1e-6)
        assert not torch.allclose(rewards, scored_after, rtol=0, atol=1e-4)
    assert [trainer.learners[name].version for name in ("policy", "discriminator")] == [8, 6]


def test_an_update_moves_one_learner_and_leaves_the_others_weights_and_gradients(monkeypatch):
    def state(network):
        return {n: (p.detach().clone(), None if p.grad is None else p.grad.clone()) for n, p in network.named_parameters()}

    def equal(a, b):
        same_grad = all((a[n][1] is None) == (b[n][1] is None) and (a[n][1] is None or torch.equal(a[n][1], b[n][1])) for n in a)
        return all(torch.equal(a[n][0], b[n][0]) for n in a) and same_grad

    moved, states = [], {}

    def before(runtime, rows):
        states.update({name: state(r.network) for name, r in trainer.learners.items()})

    def after(runtime, rows):
        moved.append((runtime.name, [name for name, r in trainer.learners.items() if not equal(states[name], state(r.network))]))

    trainer = game()
    trainer.start()
    spy(monkeypatch, before, after)
    trainer.training_step()
    trainer.training_step()
    assert moved == [("policy", ["policy"]), ("discriminator", ["discriminator"])] * 2


def test_the_discriminator_reads_real_perturbed_and_generated_rows(monkeypatch):
    draws = []
    spy(monkeypatch, before=lambda runtime, rows: draws.append(rows["contrast"]) if "contrast" in rows else None)
    trainer = game()
    trainer.train(progress=False)
    for rows in draws:
        assert torch.bincount(rows.kind, minlength=3).tolist() == [4, 4, 4]
        assert torch.equal(rows.labels, (rows.kind == 0).long())


# ----------------------------------------------------------------------------------------------- updates per draw


def test_one_update_per_draw_has_ratio_exactly_one_and_several_move_it():
    once = game().train(progress=False)
    assert [entry["policy/ratio"] for entry in once] == [1.0, 1.0]
    assert [entry["policy/clip_fraction"] for entry in once] == [0.0, 0.0]
    assert [entry["policy/approx_kl"] for entry in once] == [0.0, 0.0]
    spread = {"clip_low": 1e-4, "clip_high": 1e-4}
    for fields in ({"minibatches": 2}, {"epochs": 3}, {"updates": 2}):
        objectives = {"policy": GRPO(source="write", **spread)}
        several = game(learners={"policy": policy(**fields), "discriminator": discriminator()}, objectives=objectives).train(progress=False)
        assert all(entry["policy/ratio"] != 1.0 and entry["policy/approx_kl"] > 0 for entry in several), fields
        assert all(entry["policy/clip_fraction"] > 0 for entry in several), fields


def test_a_critic_in_front_does_not_take_the_policys_old_logprobs_away():
    # The critic makes one update per draw and builds the rows first; the policy makes two and needs old log-probabilities.
    sources = {"write": write(advantage=GAE(), rewards=[Function(fn=lambda completions: [float(len(c)) for c in completions])])}
    learners = {"critic": policy(head="value"), "policy": policy(epochs=2)}
    objectives = {"policy": GRPO(source="write"), "value": Value(source="write")}
    history = game(learners=learners, sources=sources, objectives=objectives).train(progress=False)
    assert all(entry["policy/ratio"] != 1.0 for entry in history)


def test_minibatches_keep_groups_and_pairs_whole_and_cover_the_draw(monkeypatch):
    minibatches = []
    spy(monkeypatch, before=lambda runtime, rows: minibatches.append(rows) if runtime.name == "policy" else None)
    trainer = Trainer(
        learners={"policy": policy(minibatches=3, epochs=2), "discriminator": discriminator()},
        sources={"write": write(batch_size=4), "taste": Pairs(data="task:constraints", limit=8, batch_size=5)},
        objectives={"policy": GRPO(source="write"), "prefer": DPO(source="taste")},
        frozen={"reference": Frozen()},
        args=TrainingArguments(max_steps=1),
    )
    trainer.train(progress=False)
    assert len(minibatches) == 3 * 2
    for epoch in (minibatches[:3], minibatches[3:]):
        for source, size, number in (("write", 3, 4), ("taste", 2, 5)):
            groups = [rows[source].tokens.group for rows in epoch]
            assert all(set(torch.bincount(g)[g.unique()].tolist()) == {size} for g in groups)
            assert sorted(torch.cat([g.unique() for g in groups]).tolist()) == list(range(number))  # each exactly once


# ---------------------------------------------------------------------------------- critics, references, other mixes


def test_gae_with_a_critic(monkeypatch):
    updates = []
    spy(monkeypatch, before=lambda runtime, rows: updates.append((runtime.name, rows["write"])))
    reward = Function(fn=lambda completions: [float(len(c.split())) for c in completions])
    trainer = game(
        learners={"policy": policy(), "critic": policy(head="value", learning_rate=1e-2)},
        sources={"write": write(rewards=[reward], advantage=GAE(lam=1.0, whiten=False))},
        objectives={"policy": DAPO(source="write"), "value": Value(source="write")},
        args=TrainingArguments(max_steps=8),
    )
    history = trainer.train(progress=False)
    for _, rows in updates:
        # With lambda = gamma = 1, A_t + V_t = sum of the rewards from t on = the response's reward, at every target token.
        expected = rows.rewards.sum(1, keepdim=True).double() * rows.tokens.target
        assert torch.allclose(rows.returns.double(), expected, atol=1e-5)
        assert torch.allclose((rows.advantages + rows.values).double() * rows.tokens.target, expected, atol=1e-5)
    assert [name for name, _ in updates[:2]] == ["policy", "critic"]
    assert history[-1]["value/error"] < 0.7 * history[0]["value/error"]  # the critic learns the mean reward


def test_dpo_starts_at_log_two_and_falls():
    sources = {"taste": Pairs(data="task:constraints", limit=4, batch_size=4)}
    trainer = imitation(6, sources=sources, objectives={"prefer": DPO(source="taste")}, frozen={"reference": Frozen()})
    history = trainer.train(progress=False)
    # The policy is the reference at first, so every margin is 0 and the loss -log sigmoid(0).
    assert history[0]["prefer/loss"] == pytest.approx(math.log(2), abs=1e-9)
    assert history[0]["prefer/rewards/margins"] == pytest.approx(0, abs=1e-9)
    assert history[-1]["prefer/loss"] < 0.67
    assert history[-1]["prefer/rewards/accuracies"] == 1.0


def test_dapo_with_kl_to_the_reference():
    objectives = {"policy": DAPO(source="write"), "near": KL(source="write", coef=0.1)}
    history = game(objectives=objectives, frozen={"reference": Frozen()}, args=TrainingArguments(max_steps=3)).train(progress=False)
    assert history[0]["near/k3"] == pytest.approx(0, abs=1e-9)  # nothing has moved yet
    assert history[2]["near/k3"] > 0


def test_a_strong_kl_holds_the_policy_near_the_reference():
    def distance(coef):
        objectives = {"policy": GRPO(source="write"), "near": KL(source="write", coef=coef)}
        sources = {"write": write(rewards=[Function(fn=lambda completions: [float(c.count("red")) for c in completions])])}
        learners = {"policy": policy(learning_rate=3e-3)}
        sections = {"frozen": {"reference": Frozen()}, "args": TrainingArguments(max_steps=8)}
        return game(learners=learners, sources=sources, objectives=objectives, **sections).train(progress=False)[-1]["near/k3"]

    assert distance(10.0) < 0.7 * distance(1e-6)


# --------------------------------------------------------------------------------------------- rewards that abstain


def test_an_abstaining_reward_removes_the_row_and_is_counted(monkeypatch):
    draws = []
    spy(monkeypatch, before=lambda runtime, rows: draws.append(rows["write"]))
    calls = []

    def reward(completions):
        calls.append(len(completions))
        return [None if i in (0, 1, 2, 4) else float(i) for i in range(len(completions))]  # all of group 0, one of group 1

    trainer = game(sources={"write": write(rewards=[Function(fn=reward)])}, objectives={"policy": GRPO(source="write")})
    history = trainer.train(progress=False)
    assert calls == [12, 12]
    assert [entry["write/abstained"] for entry in history] == [4.0, 4.0]
    for rows in draws:
        assert isinstance(rows, RolloutRows)
        assert rows.rewards[:, 0].tolist() == [3, 5, 6, 7, 8, 9, 10, 11]
        assert torch.bincount(rows.tokens.group).tolist() == [2, 3, 3]
        # Centred among those that remain: (3, 5) -> (-1, 1).
        first = rows.advantages[:2].sum(1) / rows.tokens.target[:2].sum(1)
        assert first.tolist() == pytest.approx([-1, 1], abs=1e-6)


def test_several_rewards_are_summed_by_weight(monkeypatch):
    draws = []
    spy(monkeypatch, before=lambda runtime, rows: draws.append(rows["write"]))
    one, two = ([float(i) for i in range(12)], [float(i % 3) for i in range(12)])
    rewards = [Function(fn=lambda completions: one), Function(fn=lambda completions: two, weight=-2.0)]
    sources = {"write": write(rewards=rewards, advantage=Group(scale="none"))}
    game(sources=sources, objectives={"policy": GRPO(source="write")}, args=TrainingArguments(max_steps=1)).train(progress=False)
    rows = draws[0]
    assert rows.rewards.tolist() == [[a, -2 * b] for a, b in zip(one, two, strict=True)]
    # In every group the sums are (a, a + 1 - 2, a + 2 - 4): centred 1, 0, -1.
    means = rows.advantages.sum(1) / rows.tokens.target.sum(1)
    assert means.tolist() == pytest.approx([1, 0, -1] * 4, abs=1e-5)


# ------------------------------------------------------------------------------------------ around the step


def test_evaluations_callbacks_and_gradient_measures(tmp_path):
    class Watch(Callback):
        def __init__(self):
            self.events = []

        def on_step(self, trainer, logs):
            self.events.append(("step", trainer.step))

        def on_evaluate(self, trainer, logs):
            self.events.append(("evaluate", trainer.step, sorted(logs)))

        def on_save(self, trainer, path):
            self.events.append(("save", path.rsplit("/", 1)[1]))

    watch = Watch()
    held = Evaluation(data="task:constraints", number=3, samples=2, sampling=Sampling(max_new_tokens=4))
    args = TrainingArguments(max_steps=3, eval_steps=2, save_steps=2, measure_every=2, output_dir=str(tmp_path))
    objectives = {"imitate": SFT(source="chat"), "robust": SFT(source="chat", view="pgd")}
    sections = {"objectives": objectives, "adversaries": {"pgd": PGD(steps=1)}, "evaluations": {"held": held}}
    history = imitation(**sections, args=args, callbacks=[watch]).train(progress=False)
    per_length = [f"held/completions/{name}" for name in ("clipped_ratio", "max_length", "mean_length", "min_length")]
    curve = [f"held/entropy/token_{k}" for k in (1, 2, 4)]  # nearly every response of an untrained model takes all four tokens
    others = ("accuracy", "coverage", "distinct_1", "distinct_2", "entropy", "maj@2", "nll", "pass@1", "pass@2", "unique", "unique/overall")
    names = sorted([*per_length, *curve, *(f"held/{n}" for n in others)])
    assert watch.events == [
        ("step", 1), ("evaluate", 2, names), ("step", 2), ("save", "checkpoint-2"), ("evaluate", 3, names), ("step", 3),
    ]  # fmt: skip
    assert ["held/accuracy" in entry for entry in history] == [False, True, True]
    assert ["cosine/imitate~robust" in entry for entry in history] == [True, False, True]  # steps 0 and 2
    assert 0 < history[1]["held/entropy"] <= math.log(len(chat_vocabulary()))


def chat_vocabulary():
    return imitation().model.encoder.tokenizer.get_vocab()


def test_training_learns_and_is_a_function_of_the_seed():
    def losses(seed):
        args = TrainingArguments(max_steps=10, seed=seed)
        return [e["imitate/loss"] for e in imitation(args=args, sources={"chat": chat(limit=4)}).train(progress=False)]

    first = losses(0)
    assert first == losses(0)
    assert first != losses(1)
    assert first[-1] < first[0] - 0.3

"""A discriminator on held-out rows: numbers by hand, discriminators whose scores are known, and fresh ones that can or cannot learn."""

import itertools
import math
import random

import pytest
import torch
from helpers.rollout import TextEngine
from helpers.runs import DATA, SHORT, discriminator, game, policy, same, weights

from advalign import TrainingArguments, config
from advalign.errors import ConfigError
from advalign.tasks.constraints import Constraints
from advalign.training import discriminator_evaluation, discriminator_probe
from advalign.training.discriminator_evaluation import (
    DiscriminatorEvaluation,
    DiscriminatorProbe,
    discrimination_metrics,
    held_out_rows,
    length_correlations,
)
from advalign.training.discriminator_probe import untrained_network

# ------------------------------------------------------------------------------------------------------- by hand

#                     real        perturbed    generated, two per example
SCORES = torch.tensor([2.0, -1.0, -3.0, -1.0, 1.0, -2.0, 0.0, 9.0], dtype=torch.float64)
KINDS = torch.tensor([0, 0, 1, 1, 2, 2, 2, 2])
EXAMPLES = torch.tensor([0, 1, 0, 1, 0, 0, 1, 1])


def test_every_number_by_hand():
    logs = discrimination_metrics(SCORES, KINDS, EXAMPLES, bins=1)
    # Real: 2 is right, -1 wrong. Perturbed: both below 0. Generated: 1 and 9 wrong, -2 right, 0 half.
    kinds = {"real": 1 / 2, "perturbed": 1, "generated": 1.5 / 4}
    assert {k: logs[f"accuracy/{k}"] for k in kinds} == kinds
    assert logs["accuracy"] == pytest.approx((1 / 2 + (1 + 1.5 / 4) / 2) / 2)
    # Real {2, -1} above perturbed {-3, -1}: three of four pairs, the fourth a tie. Above generated {1, -2, 0, 9}: 2 beats three,
    # -1 beats one: 4 of 8.
    assert logs["auc/perturbed"] == 3.5 / 4
    assert logs["auc/generated"] == 4 / 8
    assert logs["auc"] == (3.5 / 4 + 4 / 8) / 2
    # Inside an example. Perturbed: 2 > -3, -1 = -1. Generated: 2 > 1, 2 > -2, -1 < 0, -1 < 9.
    assert logs["pair_accuracy/perturbed"] == 1.5 / 2
    assert logs["pair_accuracy/generated"] == 2 / 4
    assert logs["pair_accuracy"] == (1.5 / 2 + 2 / 4) / 2
    # Signed scores. Real mean 1/2; perturbed mean 2; generated mean -2.
    assert logs["margin"] == pytest.approx((1 / 2 + (2 - 2) / 2) / 2)
    assert logs["saturation"] == 1 / 8  # only 9 is beyond 8
    # One bin: |mean sigmoid, every kind weighing a third, - 1/3|.
    d = SCORES.sigmoid()
    assert logs["ece"] == pytest.approx(abs(float(d[:2].mean() + d[2:4].mean() + d[4:].mean()) / 3 - 1 / 3))


def test_more_samples_of_the_same_change_nothing_but_counts_of_rows():
    again = torch.tensor([*range(8), *range(4, 8)])
    first, larger = (discrimination_metrics(SCORES[i], KINDS[i], EXAMPLES[i], bins=3) for i in (torch.arange(8), again))
    assert {k: v for k, v in larger.items() if k != "saturation"} == pytest.approx({k: v for k, v in first.items() if k != "saturation"})


def test_order_changes_nothing_and_a_shift_only_what_has_a_threshold():
    first = discrimination_metrics(SCORES, KINDS, EXAMPLES, bins=3)
    for seed in range(3):
        order = torch.randperm(8, generator=torch.Generator().manual_seed(seed))
        assert discrimination_metrics(SCORES[order], KINDS[order], EXAMPLES[order], bins=3) == pytest.approx(first)
    # What Bradley-Terry leaves open: a constant. Areas, pairs and (real and others having equal weight) the margin do not see it.
    moved = discrimination_metrics(SCORES - 4, KINDS, EXAMPLES, bins=3)
    free = [k for k in first if k.startswith(("auc", "pair_accuracy", "margin"))]
    assert len(free) == 7
    assert {k: moved[k] for k in free} == pytest.approx({k: first[k] for k in free})
    assert moved["accuracy"] != first["accuracy"]


def test_correlations_by_hand():
    lengths = torch.tensor([1.0, 1.0, 50.0, 60.0, 1.0, 2.0, 4.0, 8.0], dtype=torch.float64)
    logs = length_correlations(3 * lengths.log() + 1, lengths, KINDS)
    assert logs == pytest.approx({"corr_length": 1.0, "corr_length/generated": 1.0})
    # Real texts are short and liked, generated ones long and disliked, all alike inside their kind but for two: score and log length are
    # (1, 0) (1, 0) (0, 1) (0, 1) (1, 1) (0, 1) in units: r = cov / (std std) over these six; inside generated ones length is constant.
    s = torch.tensor([1.0, 1, 0, 0, 0, 0, 1, 0], dtype=torch.float64)
    long = torch.tensor([1.0, 1, 1, 1, 2, 2, 2, 2], dtype=torch.float64)
    logs = length_correlations(s, long, KINDS)
    # mean s = 1/2, mean l = 2/3 (in units of log 2): cov = 1/6 - 1/3 = -1/6; var s = 1/4, var l = 2/9: r = -1/6 / sqrt(1/18) = -1/sqrt 2
    assert logs == {"corr_length": pytest.approx(-(2**-0.5))}


# ------------------------------------------------------------------------------- discriminators whose scores are known


def another(example, i):
    """A further demonstration of the same example: real, but for its name."""
    return Constraints().demonstrate(example, random.Random(f"{i}/{example.prompt}"))


def whole(**fields):
    defaults = {"data": DATA, "number": 12, "perturb": Constraints(), "sampler": "policy", "samples": 3, "sampling": SHORT}
    return DiscriminatorEvaluation(**{**defaults, **fields})


def evaluated(evaluation, rollout=None, **sections):
    return {k.removeprefix("held/"): v for k, v in game(evaluations={"held": evaluation}, rollout=rollout, **sections).evaluate().items()}


def test_who_knows_the_rule_is_right_and_who_knows_nothing_is_a_coin(monkeypatch):
    def right(prompt, text):
        """The rule, read off the prompt: "length 4 with pink without gold :", with an inserted slot perhaps."""
        words, slots = text.split(), prompt.split()[2:-1]
        held = [(word in words) == (slot == "with") for slot, word in zip(slots[::2], slots[1::2], strict=True)]
        return len(words) == int(prompt.split()[1]) and all(held)

    def knows(network, rows, budget):
        return [4.0 if right(prompt, text) else -4.0 for prompt, text, _ in rows]

    monkeypatch.setattr(discriminator_evaluation, "score_texts", knows)
    engine = TextEngine(lambda e, i: "red red red red red red red red red")
    logs = evaluated(whole(), engine)
    for name in ("accuracy", "auc", "pair_accuracy"):
        for suffix in ("", "/perturbed", "/generated"):
            assert logs[name + suffix] == 1
    assert logs["margin"] == 4
    # Responses that are right cannot be told by the rule: a coin on those, still all of the perturbed ones.
    logs = evaluated(whole(), TextEngine(another))
    assert (logs["pair_accuracy/generated"], logs["pair_accuracy/perturbed"]) == (1 / 2, 1)
    assert (logs["accuracy/generated"], logs["accuracy/perturbed"], logs["accuracy"]) == (0, 1, (1 + 1 / 2) / 2)
    # One that is always sure of the same is a coin too, whatever that is and however many samples there are.
    for constant in (-5.0, 0.0, 5.0):
        monkeypatch.setattr(discriminator_evaluation, "score_texts", lambda network, rows, budget, c=constant: [c] * len(rows))
        logs = evaluated(whole(), engine)
        assert (logs["accuracy"], logs["auc"], logs["pair_accuracy"], logs["margin"]) == (1 / 2, 1 / 2, 1 / 2, 0)


def test_one_that_scores_length_is_told_apart(monkeypatch):
    monkeypatch.setattr(discriminator_evaluation, "score_texts", lambda network, rows, budget: [float(len(t.split())) for _, t, _ in rows])
    logs = evaluated(whole(), TextEngine(lambda e, i: " ".join(["red"] * (2 * i + 2))))
    assert logs["corr_length"] > 0.9
    assert logs["corr_length/generated"] > 0.9


def test_rows_are_the_same_every_time_and_perturbed_prompts_are_violated():
    trainer = game(evaluations={})
    trainer.start()
    first, again = (held_out_rows(whole(), trainer.rollout_engine, trainer.context) for _ in range(2))
    assert first == again
    assert [row[3] for row in first] == [0] * 12 + [1] * 12 + [2] * 36
    assert [row[1] for row in first[:12]] == [row[1] for row in first[12:24]]  # the same text
    assert all(a[0] != b[0] for a, b in zip(first[:12], first[12:24], strict=True))  # under another prompt
    assert {row[0] for row in first[24:]} == {row[0] for row in first[:12]}
    other = held_out_rows(whole(seed=1), trainer.rollout_engine, trainer.context)
    assert {row[0] for row in other[:12]} != {row[0] for row in first[:12]}


# --------------------------------------------------------------------------------------------------- the fresh one


def test_a_probe_finds_what_can_be_told_and_only_that():
    probe = DiscriminatorProbe(learning_rate=3e-3, steps=40)
    fields = {"number": 24, "samples": 1, "perturb": None, "probe": probe}
    # The policy says one word over and over, which no demonstration does: any discriminator can learn that.
    easy = evaluated(whole(**fields), TextEngine(lambda e, i: "red red red red red"))
    assert easy["probe/train_accuracy"] == 1
    assert easy["probe/accuracy"] == 1
    # Other demonstrations of the same prompts. What is learned on one half is then memory, and worth nothing on the other: 24 rows,
    # each right with 1/2, are 0.83 or more together in 1 of 1000 cases.
    hard = evaluated(whole(**fields), TextEngine(another))
    assert hard["probe/accuracy"] < 0.8


@pytest.mark.parametrize("shared", [False, True], ids=["own model", "adapter on the policy's base"])
def test_a_fresh_one_is_described_like_the_learner_and_shares_no_trained_weight(shared):
    pytest.importorskip("peft") if shared else None
    lora = {"lora": {"r": 2, "target_modules": ["c_attn"]}}
    learners = {"policy": policy(options=lora), "discriminator": discriminator(model="learner:policy", options=lora)} if shared else {}
    trainer = game(args=TrainingArguments(max_steps=1), **({"learners": learners} if shared else {}))
    trainer.start()
    old = trainer.learners["discriminator"].network
    with torch.no_grad():
        for p in old.parameters():
            if p.requires_grad:
                p.fill_(7.0)
    new = untrained_network(trainer.context, "discriminator", seed=0)
    trained = [n for n, p in new.named_parameters() if p.requires_grad]
    assert trained == [n for n, p in old.named_parameters() if p.requires_grad]
    assert trained
    assert all(float((new.get_parameter(n).detach() - 7).abs().max()) > 1 for n in trained)
    assert (new.pooling, new.encoder.bidirectional) == (old.pooling, old.encoder.bidirectional)
    row = [("length 3 with red without blue :", "red green red", True, 0, 0)]
    assert (
        new.encoder.scored_pairs(*[[x] for x in row[0][:3]]).ids.tolist()
        == old.encoder.scored_pairs(*[[x] for x in row[0][:3]]).ids.tolist()
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_that_are_not_finite_have_no_accuracy(bad, monkeypatch):
    """Comparisons with nan are numbers, and the sign of nan is 0: a discriminator without numbers would look like one that cannot tell."""
    for module in (discriminator_evaluation, discriminator_probe):
        monkeypatch.setattr(module, "score_texts", lambda network, rows, budget: [bad, *(0.5 for _ in rows[1:])])
    fields = {"number": 4, "samples": 1, "perturb": None, "probe": DiscriminatorProbe(learning_rate=1e-3, steps=1)}
    logs = evaluated(whole(**fields), TextEngine(another))
    assert {"accuracy", "auc", "ece", "probe/accuracy", "probe/train_accuracy"} <= logs.keys()
    assert all(map(math.isnan, logs.values()))


def test_an_evaluation_leaves_the_run_as_it_was():
    trainer = game(evaluations={"held": whole(number=4, probe=DiscriminatorProbe(learning_rate=1e-3, steps=2))})
    trainer.start()
    networks = [runtime.network for runtime in trainer.learners.values()]
    for network in networks:
        network.train()
    before, state = [weights(n) for n in networks], torch.get_rng_state()
    first = trainer.evaluate()
    assert trainer.evaluate() == first
    assert all(same(a, weights(n)) for a, n in zip(before, networks, strict=True))
    assert torch.equal(state, torch.get_rng_state())
    assert all(n.training for n in networks)
    kinds = ("", "/perturbed", "/generated")
    expected = {f"held/{a}{b}" for a, b in itertools.product(("accuracy", "auc", "pair_accuracy"), kinds)}
    expected |= {f"held/{n}" for n in ("accuracy/real", "ece", "margin", "saturation", "probe/accuracy", "probe/train_accuracy")}
    assert expected <= set(first)
    assert set(first) - expected <= {"held/corr_length", "held/corr_length/generated"}


# ------------------------------------------------------------------------------------------- configured, and refused


def test_a_kind_in_yaml_is_the_class_and_no_kind_is_the_plain_one():
    from advalign import Evaluation

    described = {
        "judged": {"kind": "discriminator", "data": DATA, "perturb": "constraints", "sampler": "policy", "probe": {"learning_rate": 1e-3}},
        "plain": {"data": DATA, "samples": 2},
        "same": {"kind": "answers", "data": DATA, "samples": 2},
    }
    built = config.sections({"evaluations": described})["evaluations"]
    assert built["judged"] == DiscriminatorEvaluation(
        data=DATA, perturb=Constraints(), sampler="policy", probe=DiscriminatorProbe(learning_rate=1e-3)
    )
    assert built["plain"] == built["same"] == Evaluation(data=DATA, samples=2)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {"kind": "discriminate"},
            r"no kind of evaluations 'discriminate'\. Known: answers, discriminator\. Did you mean 'discriminator'\?",
        ),
        ({"kind": "discriminator"}, r"evaluations\.held: evaluations: a discriminator is evaluated on real and other rows; give perturb"),
        ({"kind": "discriminator", "sampler": "policy", "samples": 0}, r"samples: 0 given; a whole number of at least 1"),
        ({"kind": "discriminator", "perturb": "constraints", "probe": {"learning_rate": 0.1}}, r"give a sampler and a number of 4 or more"),
        (
            {"kind": "discriminator", "sampler": "policy", "probe": {"learning_rate": 0.1, "batch_size": 1}},
            r"batch_size: 1 given",
        ),
        (
            {"kind": "discriminator", "sampler": "policy", "probe": {"steps": 3}},
            r"evaluations\.held\.probe: DiscriminatorProbe needs learning_rate",
        ),
    ],
)
def test_refused_with_a_sentence(fields, sentence):
    with pytest.raises(ConfigError, match=sentence):
        config.sections({"evaluations": {"held": {"data": DATA, **fields}}})


def test_refused_where_a_learner_is_missing_or_is_no_scorer():
    with pytest.raises(ConfigError, match=r"evaluations\.held\.sampler: no learner 'polcy'\. Known: discriminator, policy\."):
        game(evaluations={"held": whole(sampler="polcy")})
    with pytest.raises(
        ConfigError, match=r"evaluations\.held\.learner: 'policy' has head 'policy', and a discriminator needs head: score\."
    ):
        evaluated(whole(learner="policy"))

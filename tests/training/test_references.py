"""Each learner is compared with its own reference; one that no objective trains is shared."""

import math

import pytest
import torch
from helpers.runs import DATA, SHORT, discriminator, policy, same, spy, weights

from advalign import Frozen, Stage, Trainer, TrainingArguments
from advalign.advantages import Group
from advalign.objectives import DPO, KL, KTO, SFT, Discriminate
from advalign.rewards import Length
from advalign.sources import Contrast, Demos, Feedback, Pairs, Prompts
from advalign.sources._options import KLPenalty

PAIRS = {"pairs": Pairs(data=DATA, batch_size=4, limit=8)}


def two(objectives=None, *, sources=None, steps=2, learners=None, reference=None, **sections):
    """Learners a and b with different weights, by default each with a DPO objective on the same pairs."""
    return Trainer(
        learners=learners or {"a": policy(options={"seed": 1}), "b": policy(options={"seed": 2})},
        sources=sources or PAIRS,
        objectives=objectives or {"first": DPO(source="pairs", learner="a"), "second": DPO(source="pairs", learner="b")},
        frozen={"reference": reference or Frozen(learner="a")},
        args=sections.pop("args", TrainingArguments(max_steps=steps)),
        **sections,
    )


def logprobs(network, rows):
    network.eval()
    with torch.no_grad():
        return torch.where(rows.tokens.target, network(rows.tokens, {"logprobs"}).logprobs, 0.0)


@pytest.mark.parametrize("owner", ["a", "b"])
def test_the_loss_of_every_learner_starts_at_log_2(owner):
    log = two(reference=Frozen(learner=owner)).train(progress=False)
    assert [log[0][f"{name}/loss"] for name in ("first", "second")] == pytest.approx([math.log(2)] * 2, abs=1e-12)
    assert all(abs(log[1][f"{name}/loss"] - math.log(2)) > 1e-6 for name in ("first", "second"))


def test_a_second_learner_changes_nothing_for_the_first():
    alone = two({"first": DPO(source="pairs", learner="a")}, learners={"a": policy(options={"seed": 1})})
    together = two()
    alone.train(progress=False)
    together.train(progress=False)
    assert same(weights(alone.model), weights(together.model))
    assert list(alone.frozen) == ["reference"]
    assert sorted(together.frozen) == ["reference", "reference_b"]


def test_adapters_on_one_base_have_the_base_as_reference():
    """Untrained adapters add nothing, so both references are the base; a trained one's reference is not moved."""
    lora = {"lora": {"r": 2}}
    trainer = two(learners={"a": policy(options=lora), "b": policy(model="learner:a", tokenizer=None, options=lora)}, steps=3)
    log = trainer.train(progress=False)
    assert log[0]["second/loss"] == pytest.approx(math.log(2), abs=1e-12)
    for name in ("a", "b"):
        assert any(p.requires_grad and p.abs().sum() > 0 for n, p in trainer.learners[name].network.named_parameters() if "lora_B" in n)
    assert sorted(trainer.frozen) == ["reference", "reference_b"]


def test_a_reference_of_what_no_objective_trains_is_shared():
    """`base` is loaded only to be compared with: both learners start apart from it."""
    learners = {name: policy(options={"seed": seed}) for seed, name in enumerate(("base", "a", "b"))}
    trainer = two(learners=learners, reference=Frozen(learner="base"), steps=1)
    log = trainer.train(progress=False)
    assert all(abs(log[0][f"{name}/loss"] - math.log(2)) > 1e-3 for name in ("first", "second"))
    assert list(trainer.frozen) == ["reference"]


def test_a_copy_given_under_the_name_of_a_learner_s_reference_is_used():
    """b is compared with a, on purpose."""
    trainer = Trainer(
        learners={"a": policy(options={"seed": 1}), "b": policy(options={"seed": 2})},
        sources=PAIRS,
        objectives={"first": DPO(source="pairs", learner="a"), "second": DPO(source="pairs", learner="b")},
        frozen={"reference": Frozen(learner="a"), "reference_b": Frozen(learner="a")},
        args=TrainingArguments(max_steps=1),
    )
    log = trainer.train(progress=False)
    assert log[0]["first/loss"] == pytest.approx(math.log(2), abs=1e-12)
    assert abs(log[0]["second/loss"] - math.log(2)) > 1e-3


def rollouts(**fields):
    return Prompts(
        data=DATA, batch_size=2, group_size=2, sampling=SHORT, rewards=[Length()], advantage=Group(), **{"learner": "a", **fields}
    )


@pytest.mark.parametrize("penalty", [None, KLPenalty(coef=0.1)])
def test_learners_that_share_rollouts_read_their_own_reference(monkeypatch, penalty):
    """a samples; both learners keep near their reference on the same rollouts. A penalty in the reward is the sampler's distance."""
    references, differences = {}, {"a": [], "b": []}

    def compare(runtime, rows):
        reference = references.setdefault(runtime.name, trainer.learners[runtime.name].frozen_copy(moving=False))
        differences[runtime.name].append((rows["write"].ref_logprobs - logprobs(reference, rows["write"])).abs().max().item())

    spy(monkeypatch, before=compare)
    trainer = two(
        {"near a": KL(source="write", learner="a"), "near b": KL(source="write", learner="b")},
        sources={"write": rollouts(kl=penalty)},
        steps=3,
    )
    log = trainer.train(progress=False)
    assert len(differences["a"]) == len(differences["b"]) == 3
    assert max(differences["a"] + differences["b"]) < 1e-12
    assert log[0]["near a/k3"] == pytest.approx(0.0, abs=1e-12)
    assert log[0]["near b/k3"] == pytest.approx(0.0, abs=1e-12)
    if penalty is not None:
        assert log[0]["write/kl"] == pytest.approx(0.0, abs=1e-12)


def test_a_penalty_is_the_sampler_s_distance_whoever_else_reads_the_rollouts():
    """b alone is trained on what a samples with a penalty in the reward; `reference` is b's."""
    trainer = two(
        {"near b": KL(source="write", learner="b"), "imitate": SFT(source="chat", learner="a")},
        sources={"write": rollouts(kl=KLPenalty(coef=0.1)), "chat": Demos(data=DATA, batch_size=4, limit=8)},
        reference=Frozen(learner="b"),
    )
    log = trainer.train(progress=False)
    assert log[0]["write/kl"] == pytest.approx(0.0, abs=1e-12)
    assert log[0]["near b/k3"] == pytest.approx(0.0, abs=1e-12)
    assert sorted(trainer.frozen) == ["reference", "reference_a"]


def test_feedback_has_the_anchor_of_its_own_reference():
    source = {
        "judged": Feedback(data=[{"prompt": "a b", "response": w, "label": y} for w, y in (("c", 1), ("d", 0), ("e", 1))], batch_size=3)
    }
    trainer = two({"first": KTO(source="judged", learner="a"), "second": KTO(source="judged", learner="b")}, sources=source, steps=1)
    log = trainer.train(progress=False)
    assert log[0]["second/loss"] == pytest.approx(log[0]["first/loss"], abs=1e-12)  # sigmoid(0) for each


@pytest.mark.parametrize("reference", [Frozen(learner="a", ema=0.5), Frozen(learner="a", refresh=2)])
def test_they_move_as_the_reference_does(reference):
    trainer = two(reference=reference, steps=2)
    trainer.train(progress=False)
    a, b = (trainer.copies.specs[name] for name in ("reference", "reference_b"))
    assert (a.ema, a.refresh) == (b.ema, b.refresh) == (reference.ema, reference.refresh)
    assert (a.learner, b.learner) == ("a", "b")
    moved = two(reference=reference, steps=3)
    moved.train(progress=False)
    for name in ("reference", "reference_b"):
        assert not same(weights(trainer.frozen[name]), weights(moved.frozen[name]))


def test_a_resumed_run_has_the_references_of_a_whole_one(tmp_path):
    whole = two(steps=4)
    whole.train(progress=False)
    for steps, resume in ((2, False), (4, True)):
        args = TrainingArguments(max_steps=4, save_steps=2, output_dir=str(tmp_path / "run"))
        part = two(args=args, stages=[Stage(steps=steps, name="train")])
        part.train(progress=False, resume=resume)
    assert all(same(weights(whole.frozen[name]), weights(part.frozen[name])) for name in ("reference", "reference_b"))
    assert all(same(weights(whole.learners[name].network), weights(part.learners[name].network)) for name in ("a", "b"))


def test_learners_that_read_no_reference_have_none():
    trainer = two(
        {"first": DPO(source="pairs", learner="a"), "tell": Discriminate(source="contrast", learner="d")},
        sources=PAIRS
        | {"contrast": Contrast(real="chat", sampled="write", batch_size=4), "chat": Demos(data=DATA, batch_size=4), "write": rollouts()},
        learners={"a": policy(), "d": discriminator()},
    )
    assert list(trainer.run_spec.frozen) == ["reference"]

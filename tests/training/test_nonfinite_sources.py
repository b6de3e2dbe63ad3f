"""Numbers that are not finite, put in at every point of a game where one can arise: what is trained on, carried, followed and saved stays
finite, and the log says where they were."""

import math

import pytest
import torch
from helpers.runs import game, policy, same, weights, write

from advalign import Follow, Frozen, Gate
from advalign.advantages.gae import GAE
from advalign.advantages.role_ema import RoleEMA
from advalign.errors import RewardError
from advalign.models.inference import score_texts
from advalign.objectives.discriminate import Discriminate
from advalign.objectives.grpo import GRPO
from advalign.objectives.sft import SFT
from advalign.objectives.value import Value
from advalign.rewards.discriminator import Discriminator as DiscriminatorReward
from advalign.rewards.length import Length
from advalign.sources._options import KLPenalty
from advalign.training import annotate, context, evaluate
from advalign.training.schedule import Stage, Timeline, Until
from advalign.types import Losses

BAD = [math.nan, math.inf, -math.inf]


def finite_state(trainer):
    """Whether everything that a checkpoint holds, of learners and copies, is finite."""
    runtimes, state = trainer.learners.values(), [trainer.annotator.states, trainer.timeline.state_dict()]
    state += [s.state_dict() for s in trainer.context.sources.values()]
    networks = [*(r.network for r in runtimes), *trainer.frozen.values()]
    tensors = [x for n in networks for x in n.state_dict().values()]
    tensors += [x for r in runtimes for moments in r.optimizer.state_dict()["state"].values() for x in moments.values()]
    return all(x.isfinite().all() for x in tensors) and all(map(math.isfinite, numbers(state)))


def numbers(value):
    if isinstance(value, dict):
        return [x for entry in value.values() for x in numbers(entry)]
    if isinstance(value, list | tuple):
        return [x for entry in value for x in numbers(entry)]
    return [value] if isinstance(value, float) else []


class Loss:
    """Makes the losses of an objective bad in one row of one step."""

    def __init__(self, monkeypatch, cls, value, step=1):
        real, self.calls = cls.losses, 0

        def losses(objective, rows, views):
            result = real(objective, rows, views)
            self.calls += 1
            if self.calls != step:
                return result
            return Losses(
                result.values.masked_fill(torch.arange(len(result.values)).view(-1, *[1] * (result.values.ndim - 1)) == 1, value),
                result.metrics,
            )

        monkeypatch.setattr(cls, "losses", losses)


@pytest.mark.parametrize("value", BAD)
def test_a_skipped_update_of_one_player_leaves_the_other_where_it_would_be(value, monkeypatch):
    """The discriminator's update of step 1 is skipped: the policy's step 1 is that of an undisturbed game, the second rewards with the
    discriminator as it was, and all counters agree."""
    undisturbed = game()
    undisturbed.start()
    undisturbed.training_step()
    with monkeypatch.context() as patch:
        Loss(patch, Discriminate, value)
        trainer = game()
        trainer.start()
        before = weights(trainer.learners["discriminator"].network)
        logs = trainer.training_step()
    assert logs["discriminator/num_nonfinite_updates"] == 1
    assert "objectives.discriminator has loss" in logs["discriminator/nonfinite"]
    assert "(sources.contrast: row 1)" in logs["discriminator/nonfinite"]
    assert math.isnan(logs["discriminator/accuracy"])
    assert "policy/num_nonfinite_updates" not in logs
    assert same(before, weights(trainer.learners["discriminator"].network))
    assert same(weights(undisturbed.model), weights(trainer.model))
    assert trainer.learners["policy"].version == 1
    assert trainer.learners["discriminator"].version == 0
    rates = [t.learners["discriminator"].scheduler.last_epoch for t in (undisturbed, trainer)]
    assert rates == [1, 1]
    logs = trainer.training_step()
    assert trainer.learners["discriminator"].version == 1
    assert all(map(math.isfinite, numbers(logs)))
    assert finite_state(trainer)


@pytest.mark.parametrize("value", BAD)
def test_scores_of_a_discriminator(value, monkeypatch):
    """One of twelve responses has a score that is not finite: it abstains, and the running mean and the policy do not see it."""
    real = score_texts

    def spoiled(network, rows, budget):
        return [value if i == 1 else score for i, score in enumerate(real(network, rows, budget))]

    monkeypatch.setattr(context, "score_texts", spoiled)
    reward = DiscriminatorReward(learner="discriminator", normalize="running", length="residual")
    trainer = game(sources={**game().config["sources"], "write": write(rewards=[reward])})
    trainer.start()
    logs = trainer.training_step()
    assert logs["write/num_nonfinite_scores"] >= 1
    assert logs["write/abstained"] == logs["write/num_nonfinite_scores"]
    assert trainer.learners["policy"].version == 1
    assert finite_state(trainer)
    monkeypatch.setattr(context, "score_texts", lambda network, rows, budget: [value] * len(rows))
    with pytest.raises(RewardError, match=r"learner 'discriminator' scored all 12 responses as nan or infinite"):
        trainer.training_step()


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("column", ["old_logprobs", "ref_logprobs", "values"])
def test_columns_of_a_draw(column, value, monkeypatch):
    """The update is skipped, and names the row; a baseline and an adaptive coefficient that are carried on are those from before."""
    real, need = annotate.columns, {"old_logprobs": "logprobs", "ref_logprobs": "logprobs", "values": "values"}[column]

    def spoiled(network, rows, needs, *arguments):
        result = real(network, rows, needs, *arguments)
        is_reference = network is trainer.frozen.get("reference")
        if bad[0] and need in result and (column == "ref_logprobs") == is_reference:
            place = int(rows.tokens.target[2].nonzero()[0])
            result[need] = result[need].clone()
            result[need][2, place] = value
        return result

    monkeypatch.setattr(annotate, "columns", spoiled)
    bad = [True]
    kl = KLPenalty(target=1.0)
    advantage = GAE() if column == "values" else RoleEMA()
    source = write(rewards=[Length(max_length=6, buffer=3)], kl=None if column == "values" else kl, advantage=advantage)
    learners = {"policy": policy(), "critic": policy(head="value")} if column == "values" else {"policy": policy()}
    objectives = {"policy": GRPO(source="write")} | ({"value": Value(source="write", learner="critic")} if column == "values" else {})
    trainer = game(
        learners=learners,
        sources={"write": source},
        adversaries={},
        objectives=objectives,
        frozen={"mean": Frozen(ema=0.5)} | ({} if column == "values" else {"reference": Frozen()}),
    )
    trainer.start()
    before = weights(trainer.model)
    logs = trainer.training_step()
    assert logs["policy/num_nonfinite_updates"] == 1
    assert logs["write/num_nonfinite_rows"] >= 1
    assert "row 2 of example 'constraints/" in logs["policy/nonfinite"]
    assert same(before, weights(trainer.model))
    assert finite_state(trainer)
    bad[0] = False
    logs = trainer.training_step()
    assert "policy/num_nonfinite_updates" not in logs
    assert math.isfinite(logs["policy/loss"])
    assert trainer.learners["policy"].version == 1
    assert finite_state(trainer)


@pytest.mark.parametrize("value", BAD)
def test_what_follows_a_metric(value):
    """A gate, a followed number and `until`: the metric of one step is not finite, then missing; nothing moves, and no mean is spoiled."""
    follow = {"adversaries.pgd.radius": Follow(metric="g", target=2.0, start=0.1)}
    stages = [Stage(steps=9, until=Until(metric="g", above=5.0)), Stage(steps=9)]
    timeline = Timeline(stages, follow, {"policy": Gate(metric="g", above=5.0, smoothing=0.5)})
    timeline.observe(1, {"g": 1.0})
    state = timeline.state_dict()
    timeline.observe(2, {"g": value})
    timeline.observe(3, {})
    assert timeline.state_dict() == state
    assert not timeline.is_skipping("policy")
    assert timeline.place(3) == (0, 0)


def test_a_followed_number_without_bound_stays_a_number():
    follow = Follow(metric="g", target=2.0, start=1.0, rate=1000.0)
    value = 1.0
    for _ in range(5):
        value = follow.next_value(value, 0.0)
    assert math.isfinite(value)
    assert value > 1e300


@pytest.mark.parametrize("value", BAD)
def test_a_view_that_is_bad_in_one_row(value, monkeypatch):
    """The row's loss under attack: the policy's update is skipped and names the view; the rate goes on, the average stays."""
    Loss(monkeypatch, SFT, value, step=2)  # 1 is the ascent, 2 the final pass
    trainer = game(frozen={"mean": Frozen(ema=0.5)})
    trainer.start()
    logs = trainer.training_step()
    assert "objectives.robust (view pgd) has loss" in logs["policy/nonfinite"]
    assert "sources.chat: row 1 of example 'constraints/" in logs["policy/nonfinite"]
    assert trainer.learners["policy"].version == 0
    assert trainer.learners["discriminator"].version == 1
    assert finite_state(trainer)


@pytest.mark.parametrize("value", BAD)
def test_an_evaluated_classifier_without_numbers_has_no_accuracy(value, monkeypatch):
    """argmax of nan is a class."""
    from helpers.networks import network

    from advalign.types import Example

    net = network("classifier")
    logits = torch.zeros(2, net.num_classes)
    logits[0] = value
    monkeypatch.setattr(evaluate, "_column", lambda *arguments: logits)
    assert math.isnan(evaluate.accuracy(net, [Example(prompt="a b", id="0", label=0), Example(prompt="b", id="1", label=1)], 100))

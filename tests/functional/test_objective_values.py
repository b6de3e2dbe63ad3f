"""Numbers and behaviour of single objectives, by hand."""

import math
from dataclasses import replace

import pytest
import torch

from advalign.errors import ConfigError
from advalign.objectives.classify import Classify
from advalign.objectives.consistency import Consistency
from advalign.objectives.dapo import DAPO
from advalign.objectives.discriminate import Discriminate
from advalign.objectives.dpo import DPO
from advalign.objectives.entropy import Entropy
from advalign.objectives.grpo import GRPO
from advalign.objectives.kl import KL
from advalign.objectives.sft import SFT
from advalign.objectives.value import Value
from advalign.types import DemoRows, Distribution, LabelRows, Outputs, PairRows, RolloutRows, Tokens


def tokens(target, group=None) -> Tokens:
    target = torch.tensor(target).bool()
    b = len(target)
    mask = target | (torch.arange(target.shape[1]) == 0)
    group = torch.arange(b) if group is None else torch.tensor(group)
    return Tokens(ids=torch.zeros(target.shape, dtype=torch.long), mask=mask, target=target, group=group, key=torch.arange(b))


def t(x, grad=False):
    return torch.tensor(x, dtype=torch.float64, requires_grad=grad)


def rollouts(target, advantages, **kwargs) -> RolloutRows:
    b = len(target)
    defaults = {
        "rewards": torch.zeros(b, 1),
        "sampler_logprobs": torch.zeros(b, len(target[0])),
        "finished": torch.ones(b, dtype=torch.bool),
    }
    return RolloutRows(**{**defaults, "tokens": tokens(target), "advantages": t(advantages), **kwargs})


def total(term, rows, **views):
    w = term.weights(rows)
    return (w.values / w.count * term.losses(rows, views).values).sum()


def mean(losses, name):
    values, weight = losses.metrics[name]
    return float((values * weight).sum() / weight.sum())


TWO = [[0, 1, 1, 1], [0, 1, 0, 0]]


def test_sft_weightings():
    # nll (1, 2, 3) and (10): token mean 16/4, sequence mean (2 + 10)/2; the metric stays per token
    rows, outputs = DemoRows(tokens=tokens(TWO)), Outputs(logprobs=t([[0, -1, -2, -3], [0, -10, 0, 0]]))
    assert float(total(SFT(source="s"), rows, clean=outputs)) == 4.0
    sequence = SFT(source="s", weighting="sequence")
    assert float(total(sequence, rows, clean=outputs)) == 6.0
    assert mean(sequence.losses(rows, {"clean": outputs}), "nll") == 4.0


def test_classify():
    # logits (log 3, 0), label 0: -log(3/4); (0, 0), label 1: log 2, argmax 0 is wrong
    rows = LabelRows(tokens=tokens([[0, 0], [0, 0]]), labels=torch.tensor([0, 1]))
    outputs = Outputs(class_logits=t([[math.log(3), 0.0], [0.0, 0.0]]))
    assert float(total(Classify(source="s"), rows, clean=outputs)) == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)
    assert mean(Classify(source="s").losses(rows, {"clean": outputs}), "accuracy") == 0.5


@pytest.mark.parametrize("cls", [GRPO, DAPO])
def test_first_update_is_weighted_reinforce(cls):
    # no old_logprobs: ratio exactly 1, so d loss / d logprob = -weight A / count
    rows = rollouts(TWO, [[0, 1, 1, 1], [0, -2, 0, 0]])
    logprobs = t([[0, -1.0, -2, -3], [0, -1, 0, 0]], grad=True)
    total(cls(source="s"), rows, clean=Outputs(logprobs=logprobs)).backward()
    want = {GRPO: [[0, -1 / 6, -1 / 6, -1 / 6], [0, 1, 0, 0]], DAPO: [[0, -1 / 4, -1 / 4, -1 / 4], [0, 2 / 4, 0, 0]]}[cls]
    torch.testing.assert_close(logprobs.grad, t(want), rtol=0, atol=1e-15)


def test_clip_higher_keeps_what_grpo_clips():
    # ratio 1.25 with A = 1: above 1.2, below 1.28
    rows = rollouts([[0, 1]], [[0.0, 1.0]], old_logprobs=t([[0.0, -1.0]]))
    outputs = {"clean": Outputs(logprobs=t([[0.0, -1.0 + math.log(1.25)]]))}
    assert mean(GRPO(source="s").losses(rows, outputs), "clip_fraction") == 1.0
    dapo = DAPO(source="s").losses(rows, outputs)
    assert mean(dapo, "clip_fraction") == 0.0
    assert mean(dapo, "ratio") == pytest.approx(1.25)
    assert mean(dapo, "approx_kl") == pytest.approx(0.25 - math.log(1.25))  # r - 1 - log r


def test_overlong_filtering_leaves_loss_and_count():
    # the truncated first row (3 tokens) goes: count 1, not 4
    rows = rollouts(TWO, [[0, 1, 1, 1], [0, -2, 0, 0]], finished=torch.tensor([False, True]))
    w = DAPO(source="s", mask_truncated=True).weights(rows)
    assert float(w.count) == 1
    assert w.values.tolist() == [[0] * 4, [0, 1, 0, 0]]
    assert float(DAPO(source="s").weights(rows).count) == 4


@pytest.mark.parametrize("cls", [GRPO, DAPO])
def test_view_ratio_needs_dual_clip_and_is_then_bounded(cls):
    with pytest.raises(ConfigError, match=r"ratio: 'view' is ill-conditioned without dual clip"):
        cls(source="s", view="pgd", ratio="view")
    # Attacked ratio e^3 = 20 of a disliked token: loss 20 alone, 3 with dual clip; without old_logprobs the base is the clean view.
    rows = rollouts([[0, 1]], [[0.0, -1.0]])
    clean, pgd = Outputs(logprobs=t([[0.0, -4.0]])), Outputs(logprobs=t([[0.0, -1.0]]))
    assert float(total(cls(source="s", view="pgd", ratio="view", dual_clip=3.0), rows, clean=clean, pgd=pgd)) == 3.0
    # The default weighs the attacked likelihood with the clean ratio 1: -(1)(-1)(-1) = -1.
    assert float(total(cls(source="s", view="pgd"), rows, clean=clean, pgd=pgd)) == -1.0


def test_kl_default_has_the_gradient_of_k2_and_the_value_of_k3():
    rows = rollouts([[0, 1]], [[0.0, 0.0]], ref_logprobs=t([[0.0, -2.0]]))
    logprobs = t([[0.0, -1.5]], grad=True)
    loss = total(KL(source="s"), rows, clean=Outputs(logprobs=logprobs))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(math.exp(-0.5) - 0.5)  # exp(-d) - 1 + d at d = 1/2
    assert logprobs.grad.tolist() == [[0.0, 0.5]]


def test_entropy_is_maximised():
    entropy = t([[0.0, 1.0, 3.0]], grad=True)
    loss = total(Entropy(source="s", coef=0.1), rollouts([[0, 1, 1]], [[0.0, 0, 0]]), clean=Outputs(entropy=entropy))
    loss.backward()
    assert float(loss.detach()) == -2.0  # coef belongs to the engine
    assert entropy.grad.tolist() == [[0.0, -0.5, -0.5]]


def test_dpo_at_the_reference_is_log_two_with_slope_half_beta():
    logprobs = t([[0, -1.0, -1.0], [0, -2.0, 0]], grad=True)
    rows = PairRows(tokens=tokens([[0, 1, 1], [0, 1, 0]]), ref_logprobs=logprobs.detach())
    loss = total(DPO(source="s", beta=0.4), rows, clean=Outputs(logprobs=logprobs))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(math.log(2))
    torch.testing.assert_close(logprobs.grad, t([[0, -0.2, -0.2], [0, 0.2, 0]]), rtol=0, atol=1e-15)


def test_value_takes_the_worse_of_free_and_clipped():
    # V_old 0, clip 0.5. V = 2, G = 2: free 0, held (0.5 - 2)^2 = 2.25; V = 0.3, G = 1: 0.49 both ways; V = -1, G = 1: free 4, held 2.25
    rows = rollouts([[0, 1, 1, 1]], [[0.0] * 4], values=t([[0.0] * 4]), returns=t([[0.0, 2, 1, 1]]))
    values = t([[0.0, 2.0, 0.3, -1.0]], grad=True)
    term = Value(source="s")
    assert term.learner == "critic"
    loss = total(term, rows, clean=Outputs(values=values))
    loss.backward()
    assert float(loss.detach()) == pytest.approx((2.25 + 0.49 + 4) / 2 / 3)
    torch.testing.assert_close(values.grad, t([[0, 0, -0.7 / 3, -2 / 3]]), rtol=0, atol=1e-15)
    assert mean(term.losses(rows, {"clean": Outputs(values=values)}), "clip_fraction") == pytest.approx(1 / 3)
    with pytest.raises(ConfigError, match=r"source 's' estimates no returns"):
        term.weights(replace(rows, returns=None))


def test_consistency_stop_decides_who_moves():
    rows = LabelRows(tokens=tokens([[0, 0]]), labels=torch.tensor([0]))
    for stop in (False, True):
        clean, pgd = t([[1.0, 0.0]], grad=True), t([[0.0, 0.5]], grad=True)
        term = Consistency(source="s", view="pgd", divergence="kl", stop=stop)
        total(term, rows, clean=Outputs(class_logits=clean), pgd=Outputs(class_logits=pgd)).backward()
        assert (clean.grad is None) == stop
        # d KL(p || softmax z) / dz = softmax(z) - p
        torch.testing.assert_close(pgd.grad, pgd.detach().softmax(1) - clean.detach().softmax(1), rtol=0, atol=1e-15)


def test_consistency_of_tokens_stops_too():
    rows = DemoRows(tokens=tokens([[0, 1, 1]]))
    for stop in (False, True):
        clean, pgd = (torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
        outputs = {name: Outputs(distribution=Distribution(hidden=x, head=lambda h: h)) for name, x in (("clean", clean), ("pgd", pgd))}
        total(Consistency(source="s", view="pgd", output="tokens", stop=stop), rows, **outputs).backward()
        assert (clean.grad is None or float(clean.grad.abs().sum()) == 0.0) == stop
        assert float(pgd.grad.abs().sum()) > 0


def test_consistency_refusals():
    with pytest.raises(ConfigError, match=r"'clean' is also `against`"):
        Consistency(source="s")
    with pytest.raises(ConfigError, match=r"'classes' cannot read DemoRows; use 'tokens'"):
        Consistency(source="s", view="pgd").weights(DemoRows(tokens=tokens(TWO)))


def judged() -> tuple[LabelRows, Outputs]:
    rows = LabelRows(tokens=tokens([[0, 0]] * 4, group=[0, 0, 0, 1]), labels=torch.tensor([1, 0, 0, 1]), kind=torch.tensor([0, 1, 2, 0]))
    return rows, Outputs(scores=t([1.0, -9.0, 2.0, -1.0]))


def test_discriminate_metrics():
    # right: rows 0 (1 > 0) and 1 (-9 < 0); wrong: 2 and 3. margin: (1 + 9 - 2 - 1) / 4. Nobody is corrupted.
    rows, outputs = judged()
    losses = Discriminate(source="s").losses(rows, {"clean": outputs})
    assert {name: mean(losses, name) for name in losses.metrics} == pytest.approx(
        {
            "accuracy": 0.5,
            "margin": 1.75,
            "saturation": 0.25,
            "score/real": 0.0,  # (1 - 1) / 2
            "score/other": -3.5,  # (-9 + 2) / 2
            "accuracy/real": 0.5,
            "accuracy/perturbed": 1.0,
            "accuracy/generated": 0.0,
            "accuracy/corrupted": math.nan,
        },
        nan_ok=True,
    )


def test_discriminate_bce_and_its_smoothing():
    # 0.9 softplus(-1) + 0.1 softplus(1), softplus(-9), softplus(2), 0.9 softplus(1) + 0.1 softplus(-1)
    def softplus(x):
        return math.log1p(math.exp(x))

    rows, outputs = judged()
    want = softplus(-1) + softplus(1) + softplus(-9) + softplus(2)  # the two real rows mirror each other
    assert float(total(Discriminate(source="s"), rows, clean=outputs)) == pytest.approx(want / 4)


def test_discriminate_pairs_within_a_group():
    # pairs (0, 1) and (0, 2): 10 apart the right way, 1 the wrong way; row 3 is alone and is judged by nobody
    rows, outputs = judged()
    term = Discriminate(source="s", loss="bradley_terry")
    assert term.bundle == "group"
    assert float(term.weights(rows).count) == 2
    want = (math.log1p(math.exp(-10)) + math.log1p(math.e)) / 2
    assert float(total(term, rows, clean=outputs)) == pytest.approx(want)
    assert mean(term.losses(rows, {"clean": outputs}), "accuracy") == 0.5

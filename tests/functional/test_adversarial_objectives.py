"""MART, CAT, CAPO, LAT, what its adversary climbs, and circuit breakers: by hand, by slow loops, by finite differences, at their limits."""

import math
from dataclasses import replace

import pytest
import torch
from helpers.networks import labels, learner, network, pairs, update
from torch.autograd import gradcheck

from advalign.adversaries.noise import Noise
from advalign.adversaries.pgd import PGD
from advalign.errors import ConfigError
from advalign.functional import adversarial
from advalign.interfaces import PerturbationContext
from advalign.models import heads
from advalign.models.sharing import frozen_copy
from advalign.objectives.capo import CAPO
from advalign.objectives.cat import CAT
from advalign.objectives.circuit_breaker import CircuitBreaker
from advalign.objectives.classify import Classify
from advalign.objectives.consistency import Consistency
from advalign.objectives.lat import LAT
from advalign.objectives.mart import MART
from advalign.objectives.target import TargetString as Target
from advalign.types import DemoRows, Distribution, LabelRows, Outputs, PairRows, Tokens


def t(x, grad=False):
    return torch.tensor(x, dtype=torch.float64, requires_grad=grad)


def tokens(target, ids=None, mask=None) -> Tokens:
    target = torch.tensor(target).bool()
    b, width = target.shape
    mask = target | (torch.arange(width) == 0) if mask is None else torch.tensor(mask).bool()
    ids = torch.zeros(b, width, dtype=torch.long) if ids is None else torch.tensor(ids)
    return Tokens(ids=ids, mask=mask, target=target, group=torch.arange(b) // 2, key=torch.arange(b))


def total(term, rows, **views):
    w = term.weights(rows)
    return (w.values / w.count * term.losses(rows, views).values).sum()


def mean(term, rows, name, **views):
    values, weight = term.losses(rows, views).metrics[name]
    return float((values * weight).sum() / weight.sum())


def slope(f, x, step=1e-6):
    """Central differences of a scalar function, entry by entry."""
    gradient = torch.zeros_like(x)
    for i in range(x.numel()):
        for sign in (1, -1):
            moved = x.detach().clone().flatten()
            moved[i] += sign * step
            gradient.view(-1)[i] += sign * float(f(moved.view_as(x))) / (2 * step)
    return gradient


# ------------------------------------------------------------------------------------------------ pure functions


def test_leaky_is_continuous_and_keeps_a_thousandth_of_the_slope_below_its_cutoff():
    # cutoff -5: -3 stays, -7 becomes -5 - 0.002
    x = t([-3.0, -7.0], grad=True)
    y = adversarial.leaky(x, at=-5.0, slope=0.001)
    assert y.tolist() == pytest.approx([-3.0, -5.002], abs=1e-15)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.tolist() == [1.0, 0.001]
    assert float(adversarial.leaky(t([-5 - 1e-12]), at=-5.0, slope=0.001)) == pytest.approx(-5.0, abs=1e-12)


def test_odds_of_a_loop_and_by_finite_differences():
    logits, ids = torch.randn(4, 5, dtype=torch.float64, requires_grad=True), torch.tensor([0, 4, 2, 2])
    logp, log1m = adversarial.odds(logits, ids)
    for row, i in enumerate(ids.tolist()):
        weights = [math.exp(z) for z in logits[row].tolist()]
        p = weights[i] / sum(weights)
        assert float(logp[row].detach()) == pytest.approx(math.log(p), abs=1e-14)
        assert float(log1m[row].detach()) == pytest.approx(math.log(1 - p), abs=1e-14)
    assert gradcheck(lambda z: adversarial.odds(z, ids), logits)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_gradient_of_unlikelihood_is_bounded_where_p_is_one(dtype):
    # z = (100, 0, 0): 1 - p = 2 exp(-100), which float32 rounds to 0. d -log(1 - p) / dz = (p, -p/2, -p/2).
    logits = torch.tensor([[100.0, 0.0, 0.0]], dtype=dtype, requires_grad=True)
    loss = adversarial.unlikelihood(*adversarial.odds(logits, torch.tensor([0])), cutoff=-5.0)
    loss.sum().backward()
    assert float(loss.detach()) == pytest.approx(100 - math.log(2), rel=1e-6)
    assert logits.grad.tolist() == [[1.0, -0.5, -0.5]]


def test_unlikelihood_leaves_alone_what_is_unlikely():
    # p = 1/2: log 2. log p = -6 < -5: nothing, and no gradient.
    logp = t([math.log(0.5), -6.0], grad=True)
    loss = adversarial.unlikelihood(logp, torch.log1p(-logp.exp()), cutoff=-5.0)
    assert loss.tolist() == pytest.approx([math.log(2), 0.0])
    (gradient,) = torch.autograd.grad(loss.sum(), logp)
    assert gradient.tolist() == pytest.approx([1.0, 0.0])  # p / (1 - p)


# ----------------------------------------------------------------------------------------------------------- MART


def mart_by_hand(clean, attacked, labels, weight):
    """The equation, one row and one class at a time."""
    losses = []
    for z, other, y in zip(clean.tolist(), attacked.tolist(), labels.tolist(), strict=True):
        p, q = ([math.exp(v) / sum(map(math.exp, row)) for v in row] for row in (z, other))
        rival = max(q[k] for k in range(len(q)) if k != y)
        divergence = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        losses.append(-math.log(q[y]) - math.log(1 - rival) + weight * divergence * (1 - p[y]))
    return losses


def labelled(labels):
    return LabelRows(tokens=tokens([[0, 0]] * len(labels)), labels=torch.tensor(labels))


def test_mart_of_two_classes():
    # p = (1/4, 3/4), p' = (1/2, 1/2), y = 0: -log 1/2 - log(1 - 1/2) + 5 (1/4 log 1/2 + 3/4 log 3/2) (3/4)
    rows, term = labelled([0]), MART(source="s", view="pgd")
    outputs = {"clean": Outputs(class_logits=t([[0.0, math.log(3)]])), "pgd": Outputs(class_logits=t([[0.7, 0.7]]))}
    apart = math.log(0.5) / 4 + 3 * math.log(1.5) / 4
    assert float(total(term, rows, **outputs)) == pytest.approx(2 * math.log(2) + 5 * apart * 3 / 4, abs=1e-14)
    assert mean(term, rows, "boosted", **outputs) == pytest.approx(2 * math.log(2))
    assert mean(term, rows, "divergence", **outputs) == pytest.approx(apart)


def test_mart_is_its_equation_and_so_is_its_gradient():
    generator = torch.Generator().manual_seed(3)
    clean, attacked = (torch.randn(6, 4, generator=generator, dtype=torch.float64) * 2 for _ in range(2))
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    value, *_ = adversarial.mart(clean, attacked, labels, weight=6.0)
    assert value.tolist() == pytest.approx(mart_by_hand(clean, attacked, labels, 6.0), abs=1e-13)
    for moving, at in (("clean", clean), ("attacked", attacked)):
        logits = {"clean": clean, "attacked": attacked}
        leaf = at.clone().requires_grad_()
        adversarial.mart(**logits | {moving: leaf}, labels=labels, weight=6.0)[0].sum().backward()
        want = slope(lambda x, b=logits, m=moving: sum(mart_by_hand(**b | {m: x}, labels=labels, weight=6.0)), at)
        torch.testing.assert_close(leaf.grad, want, rtol=0, atol=1e-7)


def test_mart_without_an_attack_is_the_boosted_cross_entropy():
    # p' = p: the divergence and its gradient are 0, whatever its weight. And it grows with the attack alone.
    z = torch.randn(3, 4, dtype=torch.float64)
    for weight in (0.0, 5.0, 100.0):
        clean, attacked = z.clone().requires_grad_(), z.clone().requires_grad_()
        losses, boosted, apart = adversarial.mart(clean, attacked, torch.tensor([0, 1, 2]), weight=weight)
        losses.sum().backward()
        assert apart.abs().max() < 1e-15
        torch.testing.assert_close(losses, boosted, rtol=0, atol=1e-13)
        assert clean.grad.abs().max() < 1e-13


def test_mart_stays_finite_where_the_attack_has_won_completely():
    # p'_y = exp(-200): -log p'_y = 200, and the rival's 1 - p'_k = exp(-200) too. float32.
    logits = torch.tensor([[0.0, 200.0]], requires_grad=True)
    loss = adversarial.boosted_cross_entropy(logits, torch.tensor([0]))
    loss.sum().backward()
    assert float(loss.detach()) == 400.0
    assert logits.grad.tolist() == [[-2.0, 2.0]]


def test_mart_refusals():
    with pytest.raises(ConfigError, match=r"'clean' is also `against`; name an adversary"):
        MART(source="s")
    with pytest.raises(ConfigError, match=r"mart.weight: -1 given"):
        MART(source="s", view="pgd", weight=-1.0)


# ------------------------------------------------------------------------------------- pairs: CAT, CAPO, LAT, target


TWO = [[0, 1, 1, 0], [0, 1, 1, 1]]  # chosen with two tokens, rejected with three


def test_cat_above_its_cutoffs_is_half_the_difference():
    # CE(chosen) = (1 + 2)/2 = 1.5 > 0.5, -CE(rejected) = -(1 + 2 + 3)/3 = -2 > -5: 0.5 * 1.5 - 0.5 * 2
    logprobs = t([[0, -1.0, -2.0, 0], [0, -1.0, -2.0, -3.0]], grad=True)
    rows, term = PairRows(tokens=tokens(TWO)), CAT(source="s")
    loss = total(term, rows, clean=Outputs(logprobs=logprobs))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(-0.25)
    torch.testing.assert_close(logprobs.grad, t([[0, -1 / 4, -1 / 4, 0], [0, 1 / 6, 1 / 6, 1 / 6]]), rtol=0, atol=1e-15)
    assert [mean(term, rows, f"{m}/{s}", clean=Outputs(logprobs=logprobs)) for m in ("nll", "cut") for s in ("chosen", "rejected")] == [
        1.5, 2.0, 0.0, 0.0,
    ]  # fmt: skip


def test_cat_beyond_its_cutoffs_keeps_a_thousandth():
    # CE(chosen) = 0.3: 0.5 + .001 (0.3 - 0.5); -CE(rejected) = -8: -5 + .001 (-8 + 5)
    logprobs = t([[0, -0.2, -0.4, 0], [0, -8.0, -8.0, -8.0]], grad=True)
    rows, term = PairRows(tokens=tokens(TWO)), CAT(source="s")
    loss = total(term, rows, clean=Outputs(logprobs=logprobs))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.5 * (0.5 - 0.0002) + 0.5 * (-5 - 0.003))
    torch.testing.assert_close(logprobs.grad, 1e-3 * t([[0, -1 / 4, -1 / 4, 0], [0, 1 / 6, 1 / 6, 1 / 6]]), rtol=0, atol=1e-17)
    assert mean(term, rows, "cut/chosen", clean=Outputs(logprobs=logprobs)) == 1.0
    assert mean(term, rows, "cut/rejected", clean=Outputs(logprobs=logprobs)) == 1.0


def test_cat_cuts_every_pair_by_itself():
    # One rejected answer at -2, one at -8: their mean is -5, so a cutoff of the batch would not act on the second.
    target = [*TWO, *TWO]
    logprobs = t([[0, -1.0, -1.0, 0], [0, -2.0, -2.0, -2.0], [0, -1.0, -1.0, 0], [0, -8.0, -8.0, -8.0]], grad=True)
    total(CAT(source="s", toward_weight=0.0), PairRows(tokens=tokens(target)), clean=Outputs(logprobs=logprobs)).backward()
    assert logprobs.grad[1].sum() == pytest.approx(0.25)
    assert logprobs.grad[3].sum() == pytest.approx(0.25e-3)


def test_capo_by_hand():
    # means: chosen -1.5 against -2, rejected -2 against -1: d = 0.5 - (-1) = 1.5; (1.5 - 2)^2 with beta 1/4
    rows = PairRows(tokens=tokens(TWO), ref_logprobs=t([[0, -2.0, -2.0, 0], [0, -1.0, -1.0, -1.0]]))
    logprobs = t([[0, -1.0, -2.0, 0], [0, -1.0, -2.0, -3.0]], grad=True)
    loss = total(CAPO(source="s"), rows, clean=Outputs(logprobs=logprobs))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.25)
    # 2 (d - 2) = -1, times 1/2 per chosen token and -1/3 per rejected one
    torch.testing.assert_close(logprobs.grad, t([[0, -0.5, -0.5, 0], [0, 1 / 3, 1 / 3, 1 / 3]]), rtol=0, atol=1e-15)


def test_capo_stops_at_the_cutoff_and_starts_at_four():
    # The third rejected token is at -9 < -5: no gradient. Where policy and reference agree, d = 0: (1 / (2 beta))^2 = 4, whatever they say.
    logprobs = t([[0, -1.0, -7.0, 0], [0, -1.0, -2.0, -9.0]], grad=True)
    rows, term = PairRows(tokens=tokens(TWO), ref_logprobs=logprobs.detach()), CAPO(source="s")
    loss = total(term, rows, clean=Outputs(logprobs=logprobs))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(4.0, abs=1e-14)
    # 2 (0 - 2) = -4: chosen tokens -4/2 each, also the one at -7, which is no harmful one; rejected 4/3 each but the last
    torch.testing.assert_close(logprobs.grad, t([[0, -2.0, -2.0, 0], [0, 4 / 3, 4 / 3, 0]]), rtol=0, atol=1e-14)
    assert mean(term, rows, "cut/rejected", clean=Outputs(logprobs=logprobs)) == pytest.approx(1 / 3)


def distributed(probabilities, grad=False):
    """Outputs whose next-token distribution over two words gives word 0, which every token is, these probabilities."""
    p = t(probabilities)
    hidden = torch.stack([p.log(), torch.log1p(-p)], 2).requires_grad_(grad)
    return Outputs(distribution=Distribution(hidden=hidden, head=lambda h: h), logprobs=p.log()), hidden


def test_lat_by_hand():
    # CE(chosen) = log 2 (p = 1/2 twice). rejected: p = 3/4 -> log 4, p = 1/2 -> log 2, p = e^-6 is cut: (log 8 + 0)/3, three tokens counted
    rows, term = PairRows(tokens=tokens(TWO)), LAT(source="s")
    outputs, hidden = distributed([[0.5] * 4, [0.5, 0.75, 0.5, math.exp(-6)]], grad=True)
    loss = total(term, rows, clean=outputs)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(8) / 3, abs=1e-14)
    assert mean(term, rows, "log1mp/rejected", clean=outputs) == pytest.approx(math.log(2))
    assert mean(term, rows, "nll/chosen", clean=outputs) == pytest.approx(math.log(2))
    # d -log(1 - p) / dz = (p, -p), over 3 tokens and halved; d CE / dz = (p - 1, 1 - p), over 2 tokens and halved
    assert hidden.grad[1, :, 0].tolist() == pytest.approx([0, 0.75 / 6, 0.5 / 6, 0.0])
    assert hidden.grad[0, :, 0].tolist() == pytest.approx([0, -0.5 / 4, -0.5 / 4, 0.0])
    torch.testing.assert_close(hidden.grad.sum(2), torch.zeros(2, 4, dtype=torch.float64), rtol=0, atol=1e-15)


def test_without_away_lat_needs_no_distribution():
    rows, (outputs, _) = PairRows(tokens=tokens(TWO)), distributed([[0.5] * 4, [0.25] * 4])
    alone, combined = LAT(source="s", away_weight=0.0), LAT(source="s", away_weight=1e-300)
    assert (alone.reads["clean"], combined.reads["clean"]) == ({"logprobs"}, {"distribution"})
    assert float(total(alone, rows, clean=outputs)) == pytest.approx(float(total(combined, rows, clean=outputs)), abs=1e-15)


def test_what_the_adversary_climbs_is_minus_the_defence_of_the_swapped_pair():
    # Defence: likely chosen, unlikely rejected. Attack: likely rejected, unlikely chosen, climbed.
    p = torch.rand(2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tolist()
    rows, swapped = PairRows(tokens=tokens(TWO)), PairRows(tokens=tokens(TWO[::-1]))
    weights = {"toward_weight": 0.7, "away_weight": 0.4}
    climbed = total(Target(source="s", **weights), rows, clean=distributed(p)[0])
    assert float(climbed) == pytest.approx(-float(total(LAT(source="s", **weights), swapped, clean=distributed(p[::-1])[0])), abs=1e-14)
    defence = total(LAT(source="s", **weights), rows, clean=distributed(p)[0])
    assert float(total(Target(source="s", wanted="chosen", **weights), rows, clean=distributed(p)[0])) == pytest.approx(-float(defence))


def test_odds_of_a_model_in_chunks_and_in_bfloat16():
    # In bfloat16 1 - p has three digits; from logits in float32 it is as good as the logits are.
    rows = tokens(TWO, ids=[[0, 1, 2, 0], [0, 3, 0, 1]])
    head = torch.randn(6, 5, dtype=torch.float64) * 3
    hidden = torch.randn(2, 4, 5, dtype=torch.float64)
    at_once = heads.odds(Distribution(hidden=hidden, head=lambda h: h @ head.t()), rows)
    pieces = heads.odds(Distribution(hidden=hidden, head=lambda h: h @ head.t()), rows, chunk=2)
    for a, b in zip(at_once, pieces, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-14, atol=0)
        assert float(a[~rows.target].abs().sum()) == 0.0
    torch.testing.assert_close(at_once[0].exp() + at_once[1].exp(), torch.where(rows.target, 1.0, 2.0).double(), rtol=0, atol=1e-14)
    low = Distribution(hidden=hidden.bfloat16(), head=lambda h: h @ head.bfloat16().t())
    logp, log1m = heads.odds(low, rows)
    assert log1m.dtype == torch.float32
    torch.testing.assert_close(logp.exp() + log1m.exp(), torch.where(rows.target, 1.0, 2.0), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: CAT(source="s", slope=-0.1), "cat.slope: -0.1 given"),
        (lambda: CAT(source="s", away_cutoff=1.0), "cat.away_cutoff: 1 given; a number at most 0, or -.inf"),
        (lambda: CAPO(source="s", beta=0.0), "capo.beta: 0 given"),
        (lambda: CAPO(source="s", cutoff=1.0), "capo.cutoff: 1 given"),
        (lambda: LAT(source="s", away_weight=-1.0), "lat.away_weight: -1 given"),
        (lambda: Target(source="s", wanted="choosen"), "no side of a pair 'choosen'. Known: chosen, rejected. Did you mean 'chosen'"),
    ],
)
def test_refusals(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


def test_the_adversary_of_cat_makes_the_harmful_answer_likelier_and_both_answers_share_its_prompt():
    """The inner objective has a positive coef and is climbed: CE(harmful) falls. One delta of the prompt serves both rows of a pair."""
    net = network().eval()
    inner = Target(source="harm", view="pgd")
    pgd = PGD(radius=2.0, steps=5, share="group", where="prompt", inner=inner)
    terms = {"clean": CAT(source="harm", coef=1e-9), "cat": CAT(source="harm", view="pgd")}
    _, logs = update(learner(net), terms, {"harm": pairs(net)}, {"pgd": pgd})
    assert logs["cat/nll/rejected"] < logs["clean/nll/rejected"] - 0.05
    expected = replace(pgd, inner=replace(inner, wanted="chosen"))
    _, other = update(learner(net), terms, {"harm": pairs(net)}, {"pgd": expected})
    assert other["cat/nll/chosen"] < min(logs["cat/nll/chosen"], other["clean/nll/chosen"]) - 0.05


# ----------------------------------------------------------------------------------------------- circuit breakers


def test_circuit_breaker_by_hand():
    # One row, two tokens, two layers. cos: layer 0: (1, 0) against (1, 0) = 1 and against (-1, 0) = -1 -> 0;
    # layer 2: (3, 4) against (4, 3) = 24/25, against (0, 5) = 4/5. Means over layers (0.98, 0.4), over tokens 0.69.
    rows = DemoRows(tokens=tokens([[0, 1]]))
    hidden = {"layer:0": t([[[1.0, 0.0], [1.0, 0.0]]]), "layer:2": t([[[3.0, 4.0], [3.0, 4.0]]])}
    before = {"layer:0": t([[[1.0, 0.0], [-1.0, 0.0]]]), "layer:2": t([[[4.0, 3.0], [0.0, 5.0]]])}
    outputs = {"clean": Outputs(hidden=hidden), "reference": Outputs(hidden=before)}
    term = CircuitBreaker(source="s", layers=(0, 2))
    assert float(total(term, rows, **outputs)) == pytest.approx(0.69)
    assert mean(term, rows, "cosine", **outputs) == pytest.approx((0.98 - 0.1) / 2, abs=1e-7)  # not cut at 0
    # distances: (0, 2) and (sqrt 2, sqrt(9 + 1)); of the response, which is the second token, (2 + sqrt 10)/2
    retain = CircuitBreaker(source="s", role="retain", layers=(0, 2))
    assert float(total(retain, rows, **outputs)) == pytest.approx((0 + 2 + math.sqrt(2) + math.sqrt(10)) / 4)
    assert float(total(replace(retain, where="response"), rows, **outputs)) == pytest.approx((2 + math.sqrt(10)) / 2)
    assert float(total(replace(retain, where="prompt"), rows, **outputs)) == pytest.approx(math.sqrt(2) / 2)


def test_circuit_breaker_gradients():
    generator = torch.Generator().manual_seed(0)
    hidden, original = (torch.randn(4, 3, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert gradcheck(lambda h: adversarial.rerouted(h, original.detach()), hidden)
    assert gradcheck(lambda h: adversarial.displaced(h, original.detach()), hidden)
    # Orthogonal or beyond: nothing to do. At the original: nothing to pull back, and not nan.
    away = t([[-1.0, 0.0]], grad=True)
    adversarial.rerouted(away, t([[1.0, 0.0]])).sum().backward()
    assert away.grad.tolist() == [[0.0, 0.0]]
    same = t([[1.0, 2.0]], grad=True)
    adversarial.displaced(same, t([[1.0, 2.0]])).sum().backward()
    assert same.grad.tolist() == [[0.0, 0.0]]


def test_padding_does_not_dilute_what_is_retained():
    # The released code averages over padded zeros as well: half of this row is padding, and its loss would be half.
    term, losses = CircuitBreaker(source="s", role="retain", layers=(0,)), []
    for width in (2, 4):
        rows = DemoRows(tokens=tokens([[0, 1, 0, 0][:width]], mask=[[1, 1, 0, 0][:width]]))
        ones = torch.ones(1, width, 4)
        outputs = {"clean": Outputs(hidden={"layer:0": ones}), "reference": Outputs(hidden={"layer:0": 0 * ones})}
        losses.append(float(total(term, rows, **outputs)))
    assert losses == [2.0, 2.0]  # ||(1, 1, 1, 1)||


def test_an_adapter_that_does_nothing_yet_has_cosine_one_reroutes_one_and_retains_zero():
    """The published check: at the start h = h_ref, so L_s = 1, L_r = 0 with zero gradient; the first gradient comes from rerouting."""
    net = network(options={"lora": {"r": 2, "lora_alpha": 4, "target_modules": ["c_attn"]}}).eval()
    before = frozen_copy(net)
    rows = DemoRows(tokens=net.encoder.demos(["a b :", "c :"], ["d e", "f g h"]))
    for role, want in (("reroute", 1.0), ("retain", 0.0)):
        term = CircuitBreaker(source="s", role=role, layers=(0, 1))
        outputs = {view: n(rows.tokens, term.reads[view]) for view, n in (("clean", net), ("reference", before))}
        loss = total(term, rows, **outputs)
        assert float(loss.detach()) == pytest.approx(want, abs=1e-12)
        assert mean(term, rows, "cosine", **outputs) == pytest.approx(1.0, abs=1e-6)
        net.zero_grad()
        loss.backward()
        moved = sum(float(p.grad.abs().sum()) for p in net.parameters() if p.grad is not None)
        assert moved == pytest.approx(0.0, abs=1e-12)  # cos is at its maximum, too: what breaks the tie is the noise of training
    for p in net.parameters():
        if p.requires_grad:
            p.data.add_(torch.randn_like(p) * 0.1)
    term = CircuitBreaker(source="s", layers=(0, 1))
    outputs = {view: n(rows.tokens, term.reads[view]) for view, n in (("clean", net), ("reference", before))}
    assert float(total(term, rows, **outputs).detach()) < 0.999


def test_circuit_breaker_refusals():
    with pytest.raises(ConfigError, match=r"no role 'rerout'. Known: reroute, retain. Did you mean 'reroute'"):
        CircuitBreaker(source="s", role="rerout")
    with pytest.raises(ConfigError, match=r"'reference' is also `against`"):
        CircuitBreaker(source="s", view="reference")
    with pytest.raises(ConfigError, match=r"layers: \(\) given; at least 1 entry is expected"):
        CircuitBreaker(source="s", layers=())


def test_mart_of_two_classes_without_its_divergence_is_twice_the_cross_entropy():
    # The rival of y is the other class, and 1 - p_k = p_y: both halves are -log p_y.
    z, rows = torch.randn(3, 2, dtype=torch.float64), labelled([0, 1, 1])
    outputs = {"clean": Outputs(class_logits=z), "pgd": Outputs(class_logits=z)}
    alone = float(total(Classify(source="s"), rows, **outputs))
    assert float(total(MART(source="s", view="pgd", weight=0.0), rows, **outputs)) == pytest.approx(2 * alone, abs=1e-14)


# ------------------------------------------------------------- consistency as SMART, ALUM, TRADES and R3F use it


@pytest.mark.parametrize("divergence", ["kl", "symmetric_kl", "js", "mse"])
def test_an_attack_of_radius_zero_changes_nothing(divergence):
    """Radius 0: the attacked view is the clean one, the term is 0 and has no gradient; whatever its weight, training is the plain one."""
    net = network("classifier")
    rows = {"s": labels(net)}
    alone, _ = update(learner(net), {"clean": Classify(source="s")}, rows)
    smooth = Consistency(source="s", view="pgd", divergence=divergence, coef=100.0)
    combined, logs = update(learner(net), {"clean": Classify(source="s"), "smooth": smooth}, rows, {"pgd": PGD(radius=0.0, steps=1)})
    assert abs(logs["smooth/loss"]) < 1e-15
    torch.testing.assert_close(combined, alone, rtol=0, atol=1e-13)


def test_trades_is_its_equation():
    # CE(f(x), y) + 6 KL(p(x) || p(x')), one row and one class at a time
    clean, attacked = (torch.randn(5, 3, dtype=torch.float64) for _ in range(2))
    y = [0, 1, 2, 0, 1]
    want = 0.0
    for z, other, label in zip(clean.tolist(), attacked.tolist(), y, strict=True):
        p, q = ([math.exp(v) / sum(map(math.exp, row)) for v in row] for row in (z, other))
        want += (-math.log(p[label]) + 6 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))) / 5
    rows, outputs = labelled(y), {"clean": Outputs(class_logits=clean), "pgd": Outputs(class_logits=attacked)}
    robust = Consistency(source="s", view="pgd", divergence="kl", coef=6.0)
    assert float(total(Classify(source="s"), rows, **outputs) + robust.coef * total(robust, rows, **outputs)) == pytest.approx(
        want, abs=1e-13
    )


def test_r3f_in_expectation():
    """z ~ U(-e, e): symKL = z' H z + O(e^3), H = W' (diag p - p p') W, so its mean is e^2 / 3 trace(H) (`r3f.yaml`)."""
    radius, dim, number = 1e-3, 4, 20_000  # tokens of 200 rows, each a draw of its own
    weight, h = torch.randn(3, dim, dtype=torch.float64), torch.randn(dim, dtype=torch.float64)
    noise = Noise(distribution="uniform_cube", ball="Linf", relative_to="absolute", radius=radius)
    context = PerturbationContext(
        shapes={"embedding": (100, dim)},
        allowed=torch.ones(200, 100, dtype=torch.bool),
        radius=radius,
        dtype=torch.float64,
        generators=[torch.Generator().manual_seed(i) for i in range(200)],
    )
    z = noise.ask(noise.start(context))["embedding"].add.reshape(number, dim)
    p = (weight @ h).softmax(0)
    curvature = weight.t() @ (p.diag() - p[:, None] * p) @ weight
    rows, term = labelled([0] * number), Consistency(source="s", view="noise")
    outputs = {"clean": Outputs(class_logits=(weight @ h).expand(number, 3)), "noise": Outputs(class_logits=(h + z) @ weight.t())}
    assert float(total(term, rows, **outputs)) == pytest.approx(radius**2 / 3 * float(curvature.trace()), rel=0.03)

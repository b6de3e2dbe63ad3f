"""KL estimators by exact enumeration of a small distribution, and divergences against the sums of their definitions."""

import math

import pytest
import torch

from advalign.functional import divergence as dv

Z = torch.tensor([0.3, -1.2, 0.8, 0.1], dtype=torch.float64)
REF = torch.tensor([-0.5, 0.4, 0.2, 1.0], dtype=torch.float64)


def expected(estimator, values_only):
    """E_{y ~ p} of an estimator; its gradient with respect to logits holds the samples fixed, as a loss does."""
    z = Z.clone().requires_grad_()
    logp, ref = z.log_softmax(0), REF.log_softmax(0)
    total = (logp.detach().exp() * estimator(logp, ref)).sum()
    return total.detach() if values_only else torch.autograd.grad(total, z)[0]


def closed(backward):
    z = Z.clone().requires_grad_()
    logp, ref = z.log_softmax(0), REF.log_softmax(0)
    kl = (logp.exp() * (logp - ref)).sum() if backward else (ref.exp() * (ref - logp)).sum()
    return kl.detach(), torch.autograd.grad(kl, z)[0]


@pytest.mark.parametrize("name", ["k1", "k3", "k3+"])
def test_unbiased_estimators(name):
    torch.testing.assert_close(expected(dv.ESTIMATORS[name], True), closed(True)[0], rtol=0, atol=1e-15)


def test_gradients_in_expectation():
    # k1: none at all. k2 and k3+: KL(p || ref). k3: KL(ref || p), the other direction.
    torch.testing.assert_close(expected(dv.k1, False), torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-15)
    torch.testing.assert_close(expected(dv.k2, False), closed(True)[1], rtol=0, atol=1e-15)
    torch.testing.assert_close(expected(dv.k3_straight, False), closed(True)[1], rtol=0, atol=1e-15)
    torch.testing.assert_close(expected(dv.k3, False), closed(False)[1], rtol=0, atol=1e-15)


def test_k3_by_hand_and_without_overflow():
    # d = log 2: 1/2 - 1 + log 2; d = -1000 is clamped to -20
    d = torch.tensor([math.log(2), -1000.0, 0.0], dtype=torch.float64)
    got = dv.k3(d, torch.zeros(3, dtype=torch.float64))
    assert got.tolist() == pytest.approx([math.log(2) - 0.5, math.exp(20) - 21, 0.0], rel=1e-14)


P, Q = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64)


def slow_kl(a, b):
    return sum(x * math.log(x / y) for x, y in zip(a.tolist(), b.tolist(), strict=True))


def test_divergences_are_their_sums_and_ignore_a_shift_of_logits():
    m = (P + Q) / 2
    want = {"kl": slow_kl(P, Q), "symmetric_kl": slow_kl(P, Q) + slow_kl(Q, P), "js": (slow_kl(P, m) + slow_kl(Q, m)) / 2}
    for name, value in want.items():
        got = dv.BETWEEN[name](P.log()[None] + 7.0, Q.log()[None] - 3.0)
        assert float(got) == pytest.approx(value, abs=1e-14)


def test_js_of_disjoint_distributions_is_log_two():
    far = torch.tensor([[60.0, -60.0]], dtype=torch.float64)
    assert float(dv.js(far, -far)) == pytest.approx(math.log(2), abs=1e-12)


def test_mse_sees_a_shift_of_logits():
    assert dv.mse(P[None], P[None] + 2.0).tolist() == pytest.approx([4.0])


@pytest.mark.parametrize("name", sorted(dv.BETWEEN))
def test_zero_and_flat_at_equality(name):
    # the reason why an adversary that climbs a divergence must not start at zero
    p = Z[None].clone().requires_grad_()
    value = dv.BETWEEN[name](p, Z[None].clone())
    (slope,) = torch.autograd.grad(value.sum(), p)
    assert float(value.detach().abs().max()) < 1e-15
    assert float(slope.abs().max()) < 1e-15


def excluded(*columns):
    """Three rows of random logits, -inf in these columns."""
    z = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(len(columns)))
    z[:, list(columns)] = -torch.inf
    return z.requires_grad_()


@pytest.mark.parametrize("kind", dv.BETWEEN)
def test_what_both_exclude_is_skipped(kind):
    """Values and gradients are those of the logits without these columns."""
    p, q = excluded(4, 5), (excluded(4, 5).detach() + 0.3 * torch.arange(6)).requires_grad_()
    value = dv.BETWEEN[kind](p, q)
    small_p, small_q = (z.detach()[:, :4].requires_grad_() for z in (p, q))
    right = dv.BETWEEN[kind](small_p, small_q)
    torch.testing.assert_close(value, right)
    for mine, theirs in zip(torch.autograd.grad(value.sum(), (p, q)), torch.autograd.grad(right.sum(), (small_p, small_q)), strict=True):
        torch.testing.assert_close(mine[:, :4], theirs)
        assert not mine[:, 4:].any()


def test_what_one_excludes_is_infinite_in_one_direction():
    """As torch.distributions: KL(p || q) with p = 0 < q is finite, with q = 0 < p infinite; Jensen-Shannon is finite both ways."""
    p, q = excluded(5), torch.zeros(3, 6, dtype=torch.float64, requires_grad=True)
    categorical = [torch.distributions.Categorical(logits=z) for z in (p, q)]
    torch.testing.assert_close(dv.kl(p, q), torch.distributions.kl_divergence(*categorical))
    assert dv.kl(q, p).isposinf().all()
    assert dv.symmetric_kl(p, q).isposinf().all()
    middle = (p.softmax(-1) + q.softmax(-1)) / 2
    right = sum(torch.special.xlogy(x, x / middle).sum(-1) for x in (p.softmax(-1), q.softmax(-1))) / 2
    js = dv.js(p, q)
    torch.testing.assert_close(js, right)
    assert all(g.isfinite().all() for g in torch.autograd.grad(js.sum() + dv.kl(p, q).sum(), (p, q)))

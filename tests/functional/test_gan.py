"""Discriminator losses: values by hand, and the optimum of each against its closed form log p/q."""

import math

import pytest
import torch

from advalign.errors import ConfigError
from advalign.functional import gan, weights

P, Q = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)
EVERYTHING = torch.ones(6, dtype=torch.bool)


def random(number):
    return torch.randn(number, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def slope(loss):
    """Gradient of the expected loss with respect to the scores of three outcomes, drawn from P (real) and Q (other)."""

    def at(scores):
        s = scores.clone().requires_grad_()
        twice, labels = torch.cat([s, s]), torch.tensor([1, 1, 1, 0, 0, 0])
        return torch.autograd.grad(loss(twice, labels), s)[0]

    return at


def test_bce_optimum_is_the_log_ratio():
    at = slope(lambda s, y: (torch.cat([P, Q]) * gan.bce(s, y)).sum())
    assert float(at((P / Q).log()).abs().max()) < 1e-15
    assert float(at(torch.zeros(3, dtype=torch.float64)).abs().max()) > 0.01


def test_one_sided_smoothing_moves_the_optimum_but_not_the_fixed_point():
    # D = (1 - e) p / (p + q): with q = p constant; the score of something only real stays at log((1 - e) / e)
    e = 0.1
    d = (1 - e) * P / (P + Q)
    at = slope(lambda s, y: (torch.cat([P, Q]) * gan.bce(s, y, label_smoothing=e)).sum())
    assert float(at((d / (1 - d)).log()).abs().max()) < 1e-15
    s = torch.tensor([math.log(0.9 / 0.1)], dtype=torch.float64, requires_grad=True)
    (flat,) = torch.autograd.grad(gan.bce(s, torch.tensor([1]), label_smoothing=e).sum(), s)
    assert abs(float(flat)) < 1e-15
    # one-sided: the target of other rows stays 0
    assert gan.bce(torch.zeros(1, dtype=torch.float64), torch.tensor([0]), label_smoothing=e).item() == pytest.approx(math.log(2))


def test_hinge_by_hand():
    scores, labels = torch.tensor([0.5, 2.0, 0.5, -2.0]), torch.tensor([1, 1, 0, 0])
    assert gan.hinge(scores, labels).tolist() == [0.5, 0.0, 1.5, 0.0]


def test_least_squares_optimum_is_bounded_and_its_sign_is_that_of_the_log_ratio():
    # d/ds [p (s - 1)^2 + q (s + 1)^2] / 2 = p (s - 1) + q (s + 1) = 0  =>  s = (p - q) / (p + q)
    best = (P - Q) / (P + Q)
    at = slope(lambda s, y: (torch.cat([P, Q]) * gan.least_squares(s, y)).sum())
    assert float(at(best).abs().max()) < 1e-15
    torch.testing.assert_close(best, torch.tanh((P / Q).log() / 2), rtol=0, atol=1e-15)
    assert gan.least_squares(torch.tensor([3.0, 3.0]), torch.tensor([1, 0])).tolist() == [2.0, 8.0]


def test_wasserstein_is_half_the_difference_of_means_however_many_rows_a_side_has():
    scores, labels = random(7), torch.tensor([1, 0, 0, 1, 0, 0, 0])
    w = weights.by_side(labels, torch.zeros(7, dtype=torch.long), torch.ones(7, dtype=torch.bool))

    def loss(s):
        return float((w.values / w.count * gan.wasserstein(s, labels)).sum())

    assert loss(scores) == pytest.approx(float(scores[labels == 0].mean() - scores[labels == 1].mean()) / 2, abs=1e-15)
    assert loss(scores + 100) == pytest.approx(loss(scores), abs=1e-12)  # else the bias of the head would run away


def test_sides_weigh_the_same_in_every_group():
    labels, group = torch.tensor([1, 0, 0, 1, 0, 1]), torch.tensor([0, 0, 0, 1, 1, 2])
    w = weights.by_side(labels, group, EVERYTHING)
    assert w.values.tolist() == [1 / 2, 1 / 4, 1 / 4, 1 / 2, 1 / 2, 0]  # row 5 is alone
    assert float(w.count) == 2
    gone = torch.tensor([True, True, False, True, False, True])
    assert weights.by_side(labels, group, gone).values.tolist() == [1 / 2, 1 / 2, 0, 0, 0, 0]


def test_relativistic_is_the_loop_over_groups_and_blind_to_a_constant_per_group():
    scores, labels, group = random(6), torch.tensor([1, 0, 0, 1, 0, 1]), torch.tensor([0, 0, 0, 1, 1, 2])
    losses, lead = gan.relativistic(scores, labels, group, EVERYTHING)
    s = scores.tolist()
    # group 0: real row 0 against the mean of 1 and 2; each of these against row 0. Group 1: rows 3 and 4. Row 5 is alone.
    want = [s[0] - (s[1] + s[2]) / 2, s[0] - s[1], s[0] - s[2], s[3] - s[4], s[3] - s[4], 0.0]
    assert lead.tolist() == pytest.approx(want, abs=1e-15)
    assert losses.tolist() == pytest.approx([*(math.log1p(math.exp(-x)) for x in want[:5]), 0.0], abs=1e-15)
    shifted, _ = gan.relativistic(scores + torch.tensor([3.0, -5.0, 2.0])[group], labels, group, EVERYTHING)
    torch.testing.assert_close(shifted, losses, rtol=0, atol=1e-14)
    # With one row on each side it is Bradley-Terry.
    pairs = gan.bradley_terry(scores[3:5], labels[3:5], group[3:5], EVERYTHING[:2])[0]
    torch.testing.assert_close(losses[3:5], pairs, rtol=0, atol=1e-15)


def test_relativistic_gradient_is_the_one_derived_by_hand_and_vanishes_where_both_sides_are_alike():
    # L = [E_p softplus(m_q - s) + E_q softplus(s - m_p)] / 2, m_p = E_p s, m_q = E_q s. With a = sigmoid(m_q - s), b = sigmoid(s - m_p):
    # 2 dL/ds(x) = -p a + q E_p[a] + q b - p E_q[b]. Ten rows a side stand for P = (5, 3, 2) / 10 and Q = (2, 2, 6) / 10.
    def rows(distribution):
        return torch.arange(3).repeat_interleave((10 * distribution).round().long())

    def gradient(s, q):
        s = s.clone().requires_grad_()
        labels, group = torch.tensor([1] * 10 + [0] * 10), torch.zeros(20, dtype=torch.long)
        everything = torch.ones(20, dtype=torch.bool)
        w = weights.by_side(labels, group, everything)
        losses, _ = gan.relativistic(s[torch.cat([rows(P), rows(q)])], labels, group, everything)
        return torch.autograd.grad((w.values / w.count * losses).sum(), s)[0]

    s = random(3)
    a, b = ((Q * s).sum() - s).sigmoid(), (s - (P * s).sum()).sigmoid()
    derived = (-P * a + Q * (P * a).sum() + Q * b - P * (Q * b).sum()) / 2
    torch.testing.assert_close(gradient(s, Q), derived, rtol=0, atol=1e-15)
    constant = torch.full((3,), 1.7, dtype=torch.float64)
    assert float(gradient(constant, P).abs().max()) < 1e-15
    assert float(gradient(constant, Q).abs().max()) > 0.1


def test_slope_penalties_by_hand():
    # Row 0: |(3, 0, 4)| = 5 over its two tokens, the third is padding; row 1: zero.
    input_gradients = torch.zeros(2, 3, 2, dtype=torch.float64)
    input_gradients[0, 0, 0], input_gradients[0, 1, 1], input_gradients[0, 2] = 3.0, 4.0, 100.0
    input_gradients.requires_grad_()
    mask = torch.tensor([[True, True, False], [True, True, True]])
    squares = gan.squared_norms(input_gradients, mask)
    assert squares.tolist() == [25.0, 0.0]
    for options, values in [
        ({"target": 0.0}, [12.5, 0.0]),
        ({"target": 1.0}, [16.0, 1.0]),
        ({"target": 1.0, "one_sided": True}, [16.0, 0.0]),
        ({"target": 7.0}, [4.0, 49.0]),
        ({"target": 7.0, "one_sided": True}, [0.0, 0.0]),
    ]:
        got = gan.gradient_penalty(squares, **options)
        assert got.tolist() == pytest.approx(values, abs=1e-12)
        (g,) = torch.autograd.grad(got.sum(), input_gradients, retain_graph=True)
        assert bool(g.isfinite().all())  # the norm has no derivative at 0
        assert float(g[0, 2].abs().sum()) == 0.0
    # d (|g| - 1)^2 = 2 (|g| - 1) g / |g|: at |g| = 5 that is 8/5 g
    (g,) = torch.autograd.grad(gan.gradient_penalty(squares, target=1.0).sum(), input_gradients)
    torch.testing.assert_close(g[0, :2], 1.6 * input_gradients[0, :2].detach(), rtol=0, atol=1e-14)


def test_bradley_terry_sums_to_the_loop_over_pairs():
    scores = torch.tensor([0.3, -1.0, 2.0, 0.5, 0.1, -0.7], dtype=torch.float64, requires_grad=True)
    labels, group = torch.tensor([1, 0, 0, 1, 0, 1]), torch.tensor([0, 0, 0, 1, 1, 2])
    losses, won = gan.bradley_terry(scores, labels, group, EVERYTHING)
    w = weights.matched(labels, group, EVERYTHING)
    pairs = [(0, 1), (0, 2), (3, 4)]  # row 5 is alone
    loop = sum(torch.nn.functional.softplus(scores[j] - scores[i]) for i, j in pairs) / 3
    mine = (w.values / w.count * losses).sum()
    torch.testing.assert_close(mine, loop, rtol=0, atol=1e-15)
    torch.testing.assert_close(*[torch.autograd.grad(x, scores, retain_graph=True)[0] for x in (mine, loop)], rtol=0, atol=1e-15)
    # won: 0.3 > -1.0, 0.3 < 2.0, 0.5 > 0.1
    assert won.tolist() == [0.5, 1.0, 0.0, 1.0, 1.0, 0.0]


def test_bradley_terry_optimum_is_the_log_ratio_plus_anything():
    # E over real a ~ P, other b ~ Q: rows are the 9 pairs, each a group of its own
    a, b = torch.cartesian_prod(torch.arange(3), torch.arange(3)).unbind(1)
    labels, group = torch.tensor([1, 0]).repeat(9), torch.arange(9).repeat_interleave(2)

    def expected(s):
        losses, _ = gan.bradley_terry(torch.stack([s[a], s[b]], 1).flatten(), labels, group, torch.ones(18, dtype=torch.bool))
        return (P[a] * Q[b] * losses[0::2]).sum()

    for shift in (0.0, 5.0):
        s = ((P / Q).log() + shift).requires_grad_()
        assert float(torch.autograd.grad(expected(s), s)[0].abs().max()) < 1e-15


def test_uncounted_rows_meet_nobody():
    labels, group = torch.tensor([1, 0, 0]), torch.zeros(3, dtype=torch.long)
    counted = torch.tensor([True, True, False])
    scores = torch.tensor([0.0, 1.0, 50.0], dtype=torch.float64)
    losses, _ = gan.bradley_terry(scores, labels, group, counted)
    assert losses.tolist() == pytest.approx([math.log1p(math.e), math.log1p(math.e), 0.0])


def test_reward_forms_at_the_best_discriminator():
    # s = log p/q: D = p / (p + q)
    s, d = (P / Q).log(), P / (P + Q)
    want = {"logit": (P / Q).log(), "-log(1-D)": -(1 - d).log(), "log D": d.log(), "D": d}
    assert set(want) == set(gan.FORMS)
    for form, value in want.items():
        torch.testing.assert_close(gan.reward(s, form=form), value, rtol=0, atol=1e-15)


@pytest.mark.parametrize(("form", "divergence"), [("logit", "kl"), ("-log(1-D)", "js")])
def test_policy_gradient_with_a_frozen_best_reward_descends_a_divergence(form, divergence):
    # -E_q[r] with r frozen has the gradient of KL(q || p) for the logit, of 2 JS(p, q) for -log(1 - D)
    z = torch.tensor([0.4, -0.3, 0.2], dtype=torch.float64, requires_grad=True)
    q = z.softmax(0)
    r = gan.reward((P / q.detach()).log(), form=form)
    (mine,) = torch.autograd.grad(-(q * r).sum(), z, retain_graph=True)
    m = (P + q) / 2
    closed = {"kl": (q * (q / P).log()).sum(), "js": (P * (P / m).log()).sum() + (q * (q / m).log()).sum()}
    (want,) = torch.autograd.grad(closed[divergence], z)
    torch.testing.assert_close(mine, want, rtol=0, atol=1e-14)


def test_unknown_form_names_the_nearest():
    with pytest.raises(ConfigError, match=r"no form 'logits'.*Did you mean 'logit'"):
        gan.reward(P, form="logits")

"""Discriminator losses: values by hand, and the optimum of each against its closed form log p/q."""

import math

import pytest
import torch

from advalign.errors import ConfigError
from advalign.functional import gan, weights

P, Q = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)
EVERYTHING = torch.ones(6, dtype=torch.bool)


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

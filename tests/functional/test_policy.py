"""Ratios and clipped surrogates: every branch by hand, gradients, clamps."""

import math

import pytest
import torch

from advalign.functional import policy, ratios


def t(*x, grad=False):
    return torch.tensor(x, dtype=torch.float64, requires_grad=grad)


# low 0.2, high 0.3. (ratio, advantage) -> loss -min(r A, clip(r) A), and its gradient with respect to r
CASES = [
    (1.0, 2.0, -2.0, -2.0),
    (1.5, 2.0, -2.6, 0.0),  # 1.3 * 2, clipped above
    (0.5, 2.0, -1.0, -2.0),  # moved away from a liked token: not clipped
    (0.5, -1.0, 0.8, 0.0),  # 0.8 * 1, clipped below
    (1.5, -1.0, 1.5, 1.0),  # a disliked token became likely: unbounded
    (1.5, 0.0, 0.0, 0.0),
]


@pytest.mark.parametrize(("r", "a", "loss", "slope"), CASES)
def test_clipped_surrogate_branches(r, a, loss, slope):
    ratio = t(r, grad=True)
    out = policy.clipped_surrogate(ratio, t(a), low=0.2, high=0.3)
    out.sum().backward()
    assert abs(out.item() - loss) < 1e-15
    assert abs(ratio.grad.item() - slope) < 1e-15


def test_dual_clip_bounds_disliked_tokens_only():
    # c = 3: r = 5, A = -2 gives 10 without and 6 with; r = 2 gives 4 both ways; liked tokens are untouched.
    ratio, advantages = t(5.0, 2.0, 5.0, grad=True), t(-2.0, -2.0, 1.0)
    single_clip = policy.clipped_surrogate(ratio, advantages, low=0.2, high=0.2)
    dual = policy.clipped_surrogate(ratio, advantages, low=0.2, high=0.2, dual_clip=3.0)
    assert single_clip.tolist() == [10.0, 4.0, -1.2]
    assert dual.tolist() == [6.0, 4.0, -1.2]
    dual.sum().backward()
    assert ratio.grad.tolist() == [0.0, 2.0, 0.0]


def test_binds_is_where_the_gradient_vanishes():
    grid = torch.cartesian_prod(torch.linspace(0.3, 2.0, 35, dtype=torch.float64), t(-1.0, 0.5))
    ratio, advantages = grid[:, 0].clone().requires_grad_(), grid[:, 1]
    policy.clipped_surrogate(ratio, advantages, low=0.2, high=0.28).sum().backward()
    assert torch.equal(policy.clip_is_active(ratio.detach(), advantages, low=0.2, high=0.28) == 1, ratio.grad == 0)


def test_first_update_is_reinforce_whatever_the_clip():
    # r = 1 exactly: d loss / d log p = -A
    logprobs = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    advantages, target = torch.randn(2, 3, dtype=torch.float64), torch.tensor([[False, True, True], [False, True, False]])
    losses = policy.surrogate(logprobs, logprobs.detach(), advantages, target, low=1e-6, high=1e-6)
    losses.values.sum().backward()
    assert torch.equal(logprobs.grad, torch.where(target, -advantages, 0.0))
    assert float(losses.metrics["approx_kl"][0].abs().sum()) == 0.0


def test_attacked_surrogate_weighs_the_attacked_likelihood_with_the_clean_ratio():
    # r = 2 is clipped to 1.28, r = 1/2 to 0.8: gradients are -1.28 A and -0.8 A, and none reaches the clean view.
    old, advantages = torch.zeros(1, 2, dtype=torch.float64), t(1.5, -3.0)[None]
    clean = torch.tensor([[math.log(2), math.log(0.5)]], dtype=torch.float64, requires_grad=True)
    attacked = torch.randn(1, 2, dtype=torch.float64, requires_grad=True)
    losses = policy.surrogate(clean, old, advantages, torch.ones(1, 2, dtype=torch.bool), low=0.2, high=0.28, attacked=attacked)
    losses.values.sum().backward()
    torch.testing.assert_close(attacked.grad, t(-1.28 * 1.5, 0.8 * 3.0)[None], rtol=0, atol=1e-15)
    assert clean.grad is None
    torch.testing.assert_close(losses.metrics["ratio"][0], t(2.0, 0.5)[None])


def test_approx_kl_in_expectation_is_kl_of_old_to_new():
    # sum_y p_old(y) k3(y) = KL(p_old || p), exactly
    old, new = t(0.2, 0.5, 0.3), t(0.4, 0.4, 0.2)
    target = torch.ones(1, 3, dtype=torch.bool)
    losses = policy.surrogate(new.log()[None], old.log()[None], torch.zeros(1, 3, dtype=torch.float64), target, low=0.2, high=0.2)
    estimate = (old * losses.metrics["approx_kl"][0][0]).sum()
    torch.testing.assert_close(estimate, (old * (old / new).log()).sum(), rtol=0, atol=1e-15)


def test_token_ratio_is_clamped_and_flat_beyond():
    new = t(0.5, 100.0, -100.0, grad=True)
    r = ratios.token(new, torch.zeros_like(new))
    r.sum().backward()
    torch.testing.assert_close(r, t(math.exp(0.5), math.exp(20), math.exp(-20)), rtol=1e-14, atol=0)
    torch.testing.assert_close(new.grad, t(math.exp(0.5), 0.0, 0.0), rtol=1e-14, atol=0)


def test_sequence_ratio_is_the_geometric_mean():
    # (2 * 8)^(1/2) = 4; what lies off target (nan) and an empty row do not matter
    new = torch.tensor([[float("nan"), math.log(2), math.log(8)], [0.0, 5.0, 5.0]], dtype=torch.float64)
    target = torch.tensor([[False, True, True], [False, False, False]])
    torch.testing.assert_close(ratios.sequence(new, torch.zeros(2, 3, dtype=torch.float64), target), t(4.0, 1.0))


def test_offpolicy_shaping_and_its_gradient_weight():
    # f = p / (p + 0.1); df / dlog p = 0.1 p / (p + 0.1)^2: largest at p = 0.1, where it is 1/4
    logp = t(0.1, 0.9, 1e-6).log().requires_grad_()
    f = ratios.offpolicy(logp, shape=0.1)
    f.sum().backward()
    torch.testing.assert_close(f, t(0.5, 0.9, 1e-6 / 0.100001), rtol=1e-12, atol=0)
    torch.testing.assert_close(logp.grad, t(0.25, 0.09, 1e-7 / 0.100001**2), rtol=1e-12, atol=0)

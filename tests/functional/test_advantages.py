"""Advantages: hand-derived groups, baselines, GAE by its sum and in its limits, gaps, whitening, two ranks, KL in the reward."""

import math

import pytest
import torch

from advalign.errors import ConfigError
from advalign.functional import advantages as adv


def t(*x):
    return torch.tensor(x, dtype=torch.float64)


def alone(x):
    return x


def test_group_with_std():
    # rewards (1, 0, 0, 0): mean 1/4, ddof-1 variance (9/16 + 3/16) / 3 = 1/4, std 1/2 -> (3/2, -1/2, -1/2, -1/2)
    got = adv.group_relative(t(1, 0, 0, 0), torch.zeros(4, dtype=torch.long), floor=1e-4)
    assert got.tolist() == [1.5, -0.5, -0.5, -0.5]


def test_groups_are_interleaved_and_numbered_anyhow():
    # group 7: (0, 2) -> std sqrt 2, +-1/sqrt 2; group -3: (5, 6) -> std 1/sqrt 2, +-(1/2) sqrt 2
    got = adv.group_relative(t(0, 5, 2, 6), torch.tensor([7, -3, 7, -3]), floor=1e-4)
    root = 1 / math.sqrt(2)
    torch.testing.assert_close(got, t(-root, -root, root, root), rtol=0, atol=1e-15)


def test_constant_and_single_groups_are_exactly_zero():
    # 0.1 three times: their floating mean is not 0.1, and 1e-17 / floor would be noise
    rewards, group = t(0.1, 0.1, 0.1, 5.0), torch.tensor([0, 0, 0, 1])
    for got in (
        adv.group_relative(rewards, group, floor=1e-12),
        adv.batch_relative(rewards, group, floor=1e-12, all_reduce=alone),
        adv.leave_one_out(rewards, group),
    ):
        assert got.tolist() == [0.0] * 4


def test_floor_is_a_floor_not_an_addend():
    # std 1/2 < floor 1: only centred; std 1/2 > floor 1e-4: the paper's formula to the last bit
    rewards, group = t(1, 0, 0, 0), torch.zeros(4, dtype=torch.long)
    assert adv.group_relative(rewards, group, floor=1.0).tolist() == adv.centred(rewards, group)[0].tolist() == [0.75, -0.25, -0.25, -0.25]


def test_batch_std_over_two_ranks():
    # ProcessGroup hold (0, 2) and (4, 10): mean 4, squares 16 + 4 + 0 + 36 = 56, ddof-1 std sqrt(56 / 3). Groups are centred locally.
    ranks = [t(0, 2), t(4, 10)]
    for rank, local in enumerate(ranks):
        calls = iter([torch.stack([t(4), t(16)]).squeeze(1), t(56).squeeze(0)])
        got = adv.batch_relative(local, torch.zeros(2, dtype=torch.long), floor=1e-4, all_reduce=lambda x, calls=calls: next(calls))
        half = (1.0, 3.0)[rank]
        torch.testing.assert_close(got, t(-half, half) / math.sqrt(56 / 3))


def test_leave_one_out_is_the_mean_of_the_others():
    rewards, group = t(3, 1, 2, 7, 9), torch.tensor([0, 0, 0, 1, 1])
    # 3 - (1 + 2) / 2, 1 - (3 + 2) / 2, 2 - (3 + 1) / 2; 7 - 9, 9 - 7
    torch.testing.assert_close(adv.leave_one_out(rewards, group), t(1.5, -1.5, 0, -2, 2), rtol=0, atol=1e-15)


def slow_gae(rewards, values, gamma, lam):
    """The double sum of the definition, for one row without gaps."""
    n = len(rewards)
    delta = [rewards[i] + gamma * (values[i + 1] if i + 1 < n else 0.0) - values[i] for i in range(n)]
    return [sum((gamma * lam) ** (j - i) * delta[j] for j in range(i, n)) for i in range(n)]


def test_gae_is_its_definition_on_the_target_tokens():
    g = torch.Generator().manual_seed(0)
    target = torch.tensor([[0, 1, 1, 1, 0, 0], [0, 0, 1, 0, 0, 1], [0, 1, 1, 0, 1, 1], [0, 0, 0, 0, 0, 0]]).bool()
    rewards, values = torch.randn(4, 6, generator=g, dtype=torch.float64), torch.randn(4, 6, generator=g, dtype=torch.float64)
    got, returns = adv.gae(rewards, values, target, gamma=0.9, lam=0.8)
    for b in range(4):
        on = target[b]
        want = t(*slow_gae(rewards[b, on].tolist(), values[b, on].tolist(), 0.9, 0.8))
        torch.testing.assert_close(got[b, on], want, rtol=0, atol=1e-14)
        torch.testing.assert_close(returns[b, on], want + values[b, on], rtol=0, atol=1e-14)
    assert float(got[~target].abs().sum()) == float(returns[~target].abs().sum()) == 0.0


def test_gae_limits():
    # gamma = lam = 1: returns are the rewards to go; lam = 0: returns are R_t + V_{t+1}
    target = torch.ones(1, 3, dtype=torch.bool)
    rewards, values = t(1, 2, 4)[None], t(10, 20, 30)[None]
    assert adv.gae(rewards, values, target, gamma=1.0, lam=1.0)[1].tolist() == [[7.0, 6.0, 4.0]]
    assert adv.gae(rewards, values, target, gamma=1.0, lam=0.0)[1].tolist() == [[21.0, 32.0, 4.0]]


def test_gae_limits_across_a_gap_with_a_discount():
    # Targets 1, 2, 5 with V (1/2, 3/10, 1/5), reward 1 at the end, gamma 9/10; tokens 3 and 4 are an observation.
    # TD(0), lam = 0: R_t + gamma V_next = (0.27, 0.18, 1).  Monte Carlo, lam = 1: gamma^k = (0.81, 0.9, 1).
    # Decaying at every POSITION instead, the Monte Carlo return of token 2 would be 0.9^3 = 0.729.
    target = torch.tensor([[0, 1, 1, 0, 0, 1]]).bool()
    rewards, values = t(9, 0, 0, 9, 9, 1)[None], t(9, 0.5, 0.3, 9, 9, 0.2)[None]
    for lam, want in ((0.0, t(0, 0.27, 0.18, 0, 0, 1)), (1.0, t(0, 0.81, 0.9, 0, 0, 1))):
        got, returns = adv.gae(rewards, values, target, gamma=0.9, lam=lam)
        torch.testing.assert_close(returns[0], want, rtol=0, atol=1e-15)
        torch.testing.assert_close(got[target], (want - values[0])[target[0]], rtol=0, atol=1e-15)


def test_gae_between_its_limits_is_the_weighted_mean_of_n_step_returns():
    # A^lam = (1 - lam) sum_{n >= 1} lam^(n - 1) A^(n), with A^(n) = sum_{k < n} gamma^k R + gamma^n V_n - V; beyond the end A^(n) is
    # the Monte Carlo one, whose weights add up to lam^(T - 1).   (arXiv:1506.02438, eq. 16, from the definition of the n-step estimates)
    g = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, 4, generator=g, dtype=torch.float64)
    gamma, lam, steps = 0.9, 0.7, 4
    estimates = []
    for n in range(1, steps + 1):
        tail = gamma**n * values[n] if n < steps else 0.0
        estimates.append(sum(gamma**k * rewards[k] for k in range(n)) + tail - values[0])
    want = sum((1 - lam) * lam ** (n - 1) * estimates[n - 1] for n in range(1, steps)) + lam ** (steps - 1) * estimates[-1]
    got, _ = adv.gae(rewards[None], values[None], torch.ones(1, 4, dtype=torch.bool), gamma=gamma, lam=lam)
    torch.testing.assert_close(got[0, 0], want, rtol=0, atol=1e-15)


def test_gae_ignores_a_gap_of_any_length():
    # The same three target tokens, with 0 or 5 observation tokens in between, get the same advantages.
    values, rewards = t(0.5, 0.3, 0.2), t(0, 0, 1)
    tight = adv.gae(rewards[None], values[None], torch.ones(1, 3, dtype=torch.bool), gamma=0.9, lam=0.5)[0][0]
    positions = torch.tensor([0, 6, 7])
    wide = torch.full((1, 8), 99.0, dtype=torch.float64)
    target = torch.zeros(1, 8, dtype=torch.bool)
    target[0, positions] = True
    r, v = wide.clone(), wide.clone()
    r[0, positions], v[0, positions] = rewards, values
    torch.testing.assert_close(adv.gae(r, v, target, gamma=0.9, lam=0.5)[0][0, positions], tight, rtol=0, atol=0)


def test_at_end_is_the_last_target_token():
    target = torch.tensor([[0, 1, 1, 0], [0, 1, 0, 1], [0, 0, 0, 0]]).bool()
    assert adv.at_end(t(5, 6, 7), target).tolist() == [[0, 0, 5, 0], [0, 0, 0, 6], [0, 0, 0, 0]]


def test_whiten_counts_target_tokens_alone():
    # on target (1, 3): mean 2, ddof-1 std sqrt 2
    target = torch.tensor([[False, True], [True, False]])
    got = adv.whiten(torch.tensor([[99.0, 1.0], [3.0, 99.0]], dtype=torch.float64), target, floor=1e-4, all_reduce=alone)
    root = 1 / math.sqrt(2)
    torch.testing.assert_close(got, torch.tensor([[0, -root], [root, 0]], dtype=torch.float64), rtol=0, atol=1e-15)


def test_whiten_a_single_token_is_zero():
    assert adv.whiten(t(5)[None], torch.ones(1, 1, dtype=torch.bool), floor=1e-4, all_reduce=alone).tolist() == [[0.0]]


def test_constant_groups_and_their_std():
    # (0.1, 0.1, 0.1): constant, std exactly 0. (1, 0, 0, 0): std 1/2. A group of one is constant.
    rewards, group = t(0.1, 0.1, 0.1, 1, 0, 0, 0, 5), torch.tensor([4, 4, 4, 2, 2, 2, 2, 9])
    assert adv.is_constant(rewards, group).tolist() == [True] * 3 + [False] * 4 + [True]
    assert adv.group_std(rewards, group).tolist() == [0.0] * 3 + [0.5] * 4 + [0.0]


def test_weighted_mean_is_the_baseline_of_least_weighted_squares():
    # (1 * 1 + 3 * 0 + 0 * 8) / 4 = 1/4; a group without weight has 0
    rewards, weights, group = t(1, 0, 8, 6, 7), t(1, 3, 0, 0, 0), torch.tensor([0, 0, 0, 1, 1])
    b = adv.weighted_mean(rewards, weights, group)
    assert b.tolist() == [0.25, 0.25, 0.25, 0.0, 0.0]

    def squares(shift):
        return float((weights * (rewards - b - shift) ** 2)[:3].sum())

    assert squares(0) < min(squares(0.01), squares(-0.01))


def test_soft_maximum_by_hand():
    # beta 1: log((e^0 + e^(log 3)) / 2) = log 2; beta 2 and rewards twice as far apart: twice that. A group of one is its own.
    three = math.log(3)
    got = adv.soft_maximum(t(0, three, 5), torch.tensor([0, 0, 1]), beta=1.0)
    torch.testing.assert_close(got, t(math.log(2), math.log(2), 5), rtol=0, atol=1e-15)
    got = adv.soft_maximum(t(0, 2 * three), torch.zeros(2, dtype=torch.long), beta=2.0)
    torch.testing.assert_close(got, t(2, 2) * math.log(2), rtol=0, atol=1e-15)


def test_soft_maximum_goes_from_the_mean_to_the_maximum():
    rewards, group = t(-3, 0.5, 2, 2.25), torch.zeros(4, dtype=torch.long)
    mean, variance = float(rewards.mean()), float(rewards.var(correction=0))
    values = [float(adv.soft_maximum(rewards, group, beta=b)[0]) for b in (1e-9, 0.1, 0.5, 2.0, 10.0, 1e8)]
    assert values == sorted(values, reverse=True)
    assert values[0] == pytest.approx(2.25, abs=1e-8)  # the maximum, less beta log 4
    assert values[-1] == pytest.approx(mean, abs=1e-7)
    # Second order: V = mean + variance / (2 beta) + O(1 / beta^2). A plain log of a mean of exponentials loses the term to rounding.
    assert (values[-1] - mean) * 2e8 == pytest.approx(variance, rel=1e-6)
    assert math.isfinite(float(adv.soft_maximum(rewards * 1e6, group, beta=1e-6)[0]))


def test_best_of_others():
    # a tie for the best: each of the two has the other; the third has them. A pair has each other. A group of one has itself.
    rewards, group = t(3, 1, 3, 5, 2, 7), torch.tensor([0, 0, 0, 1, 1, 2])
    assert adv.best_of_others(rewards, group).tolist() == [3, 3, 3, 2, 5, 7]
    g = torch.Generator().manual_seed(0)
    rewards = torch.randint(-3, 3, (20,), generator=g).double()  # many ties
    group = torch.randint(0, 4, (20,), generator=g)
    for i, got in enumerate(adv.best_of_others(rewards, group).tolist()):
        others = [float(rewards[j]) for j in range(20) if j != i and group[j] == group[i]]
        assert got == max(others)


def test_reward_to_go_skips_gaps_and_what_lies_off_target():
    target = torch.tensor([[0, 1, 1, 0, 0, 1]]).bool()
    # gamma 1/2, rewards 8, 4, 2 on targets 1, 2, 5: 8 + 2 + 1/2, 4 + 1, 2
    got = adv.reward_to_go(t(99, 8, 4, 99, 99, 2)[None], target, gamma=0.5)
    assert got.tolist() == [[0, 10.5, 5, 0, 0, 2]]


def test_per_token_adds_the_outcome_at_the_end():
    target = torch.tensor([[0, 1, 1, 0]]).bool()
    assert adv.per_token(t(5), None, target).tolist() == [[0, 0, 5, 0]]
    assert adv.per_token(t(5), t(0, 1, 2, 0)[None], target).tolist() == [[0, 1, 7, 0]]


def test_kl_rewards_by_hand():
    # p_old 1/2, p_ref 1/4: d = log 2. k1 = log 2, k2 = log^2 2 / 2, k3 = 1/2 - 1 + log 2. Off target even nan stays out.
    old, ref = t(math.log(0.5), math.log(0.5), math.nan)[None], t(math.log(0.25), math.log(0.5), 0)[None]
    target = torch.tensor([[True, True, False]])
    d = math.log(2)
    for name, want in (("k1", d), ("k2", d * d / 2), ("k3", d - 0.5)):
        got = adv.kl_rewards(old, ref, target, coef=0.1, estimator=name)
        torch.testing.assert_close(got, t(-0.1 * want, 0, 0)[None], rtol=0, atol=1e-16)


def test_kl_rewards_add_up_to_the_penalised_reward_of_the_response():
    # gamma = 1: the first token's reward to go is R - coef log(p_old(y) / p_ref(y))   (arXiv:1909.08593, eq. 2)
    g = torch.Generator().manual_seed(0)
    old, ref = torch.randn(2, 3, 5, generator=g, dtype=torch.float64)
    target = torch.tensor([[0, 1, 1, 0, 1]] * 3).bool()
    outcome = t(1, 0, -1)
    penalty = adv.kl_rewards(old, ref, target, coef=0.2, estimator="k1")
    got = adv.reward_to_go(adv.per_token(outcome, penalty, target), target, gamma=1.0)[:, 1]
    torch.testing.assert_close(got, outcome - 0.2 * ((old - ref) * target).sum(1), rtol=0, atol=1e-15)


def test_kl_rewards_are_numbers_and_name_their_estimators():
    old = t(-1.0)[None].requires_grad_()
    assert not adv.kl_rewards(old, t(-2.0)[None], torch.ones(1, 1, dtype=torch.bool), coef=1.0, estimator="k1").requires_grad
    with pytest.raises(ConfigError, match=r"kl_rewards.estimator: no estimator 'k4'. Known: k1, k2, k3"):
        adv.kl_rewards(old, old, torch.ones(1, 1, dtype=torch.bool), coef=1.0, estimator="k4")


def test_adaptive_coefficient_by_hand():
    def f(kl):
        return adv.adaptive_coefficient(0.5, kl, target=6.0, horizon=1000.0, num=100)

    assert f(6.0) == 0.5  # on target: unchanged
    assert f(6.6) == pytest.approx(0.5 * 1.01, abs=1e-15)  # 10 % above: 1 + 0.1 * 0.1
    assert f(3.0) == f(0.0) == pytest.approx(0.5 * 0.98, abs=1e-15)  # clipped at -0.2
    assert f(600.0) == pytest.approx(0.5 * 1.02, abs=1e-15)  # clipped at +0.2


def test_adaptive_coefficient_finds_the_target():
    # A policy whose divergence is 1 / coef settles where coef = 1 / target, from either side.
    for coef in (0.01, 10.0):
        for _ in range(2000):
            coef = adv.adaptive_coefficient(coef, 1 / coef, target=4.0, horizon=100.0, num=5)
        assert coef == pytest.approx(0.25, rel=1e-9)

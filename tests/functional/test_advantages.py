"""Advantages: hand-derived groups, GAE by its sum, gaps, whitening, two ranks."""

import math

import torch

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
    # Ranks hold (0, 2) and (4, 10): mean 4, squares 16 + 4 + 0 + 36 = 56, ddof-1 std sqrt(56 / 3). Groups are centred locally.
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


def test_gae_ignores_a_gap_of_any_length():
    # The same three target tokens, with 0 or 5 observation tokens in between, get the same advantages.
    values, rewards = t(0.5, 0.3, 0.2), t(0, 0, 1)
    tight = adv.gae(rewards[None], values[None], torch.ones(1, 3, dtype=torch.bool), gamma=0.9, lam=0.5)[0][0]
    where = torch.tensor([0, 6, 7])
    wide = torch.full((1, 8), 99.0, dtype=torch.float64)
    target = torch.zeros(1, 8, dtype=torch.bool)
    target[0, where] = True
    r, v = wide.clone(), wide.clone()
    r[0, where], v[0, where] = rewards, values
    torch.testing.assert_close(adv.gae(r, v, target, gamma=0.9, lam=0.5)[0][0, where], tight, rtol=0, atol=0)


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

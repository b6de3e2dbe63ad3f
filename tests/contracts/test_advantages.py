"""What every advantage estimator must do; adding a file to the folder adds it to the table."""

import math
import threading
from dataclasses import replace

import pytest
import torch

from advalign import plugins
from advalign.advantages.gae import GAE
from advalign.advantages.group import Group
from advalign.advantages.leave_one_out import LeaveOneOut
from advalign.errors import ConfigError
from advalign.types import RolloutRows, Tokens

TABLE = [*(cls() for cls in plugins.all("advantages")), Group(scale="batch"), Group(scale="none"), GAE(whiten=False)]
GROUPED = [a for a in TABLE if not a.needs_values]


def rows(num_groups: int = 3, size: int = 4, seed: int = 0) -> RolloutRows:
    g = torch.Generator().manual_seed(seed)
    b, t = num_groups * size, 7
    lengths = torch.randint(3, t + 1, (b,), generator=g)
    where = torch.arange(t)[None]
    mask, target = where < lengths[:, None], (where >= 2) & (where < lengths[:, None])
    tokens = Tokens(ids=torch.zeros(b, t, dtype=torch.long), mask=mask, target=target, group=torch.arange(b) // size, key=torch.arange(b))
    noise = torch.randn(3, b, t, generator=g, dtype=torch.float64)
    return RolloutRows(
        tokens=tokens,
        rewards=torch.randn(b, 2, generator=g, dtype=torch.float64),
        advantages=torch.zeros(b, t),
        sampler_logprobs=noise[0],
        finished=torch.ones(b, dtype=torch.bool),
        values=noise[1],
    )


def alone(x):
    return x


def names(estimator):
    return str(estimator)


@pytest.mark.parametrize("estimator", TABLE, ids=names)
def test_finite_and_zero_off_target(estimator):
    r = rows()
    advantages, returns = estimator(r, None, alone)
    for x in (advantages,) if returns is None else (advantages, returns):
        assert x.shape == r.tokens.ids.shape
        assert bool(x.isfinite().all())
        assert float(x[~r.tokens.target].abs().sum()) == 0.0
    assert float(advantages.abs().sum()) > 0


@pytest.mark.parametrize("estimator", TABLE, ids=names)
def test_order_of_rows_does_not_matter(estimator):
    r = rows()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(estimator(r.index(order), None, alone)[0], estimator(r, None, alone)[0][order], rtol=0, atol=1e-14)


@pytest.mark.parametrize("estimator", TABLE, ids=names)
def test_two_ranks_equal_one_process(estimator):
    r = rows(num_groups=3)
    halves = [torch.arange(0, 4), torch.arange(4, 12)]  # unequal, groups whole
    barrier, posted, found = threading.Barrier(2), {}, {}

    def rank(i):
        def all_reduce(x):
            posted[i] = x
            barrier.wait(timeout=20)
            total = posted[0] + posted[1]
            barrier.wait(timeout=20)
            return total

        found[i] = estimator(r.index(halves[i]), None, all_reduce)[0]

    threads = [threading.Thread(target=rank, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.testing.assert_close(torch.cat([found[0], found[1]]), estimator(r, None, alone)[0], rtol=0, atol=1e-13)


@pytest.mark.parametrize("estimator", GROUPED, ids=names)
def test_a_shift_of_a_prompts_rewards_changes_nothing(estimator):
    r = rows()
    if estimator == Group(scale="batch"):
        shift = torch.full((12,), 3.0, dtype=torch.float64)  # the batch std sees different shifts of different groups
    else:
        shift = torch.tensor([3.0, -7.0, 100.0], dtype=torch.float64).repeat_interleave(4)
    moved = replace(r, rewards=r.rewards + shift[:, None] / 2)
    torch.testing.assert_close(estimator(moved, None, alone)[0], estimator(r, None, alone)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("estimator", GROUPED, ids=names)
def test_equal_rewards_teach_nothing(estimator):
    r = rows()
    flat = replace(r, rewards=torch.full((12, 2), 0.05, dtype=torch.float64))
    assert float(estimator(flat, None, alone)[0].abs().sum()) == 0.0


@pytest.mark.parametrize("estimator", GROUPED, ids=names)
def test_rewards_are_summed_over_their_names(estimator):
    # rewards arrive weighted: (a, b) and (a + b, 0) are the same
    r = rows()
    merged = replace(r, rewards=torch.stack([r.rewards.sum(1), torch.zeros(12, dtype=torch.float64)], 1))
    assert torch.equal(estimator(merged, None, alone)[0], estimator(r, None, alone)[0])


def test_group_by_hand():
    # totals (1, 0, 0, 0): mean 1/4, ddof-1 std 1/2; of the batch (1, 0, 0, 0, 2, 2, 2, 2): mean 9/8, squares
    # 1/64 + 3 * 81/64 + 4 * 49/64 = 440/64, std sqrt(440/448)
    r = rows(num_groups=2)
    r = replace(r, rewards=torch.tensor([1.0, 0, 0, 0, 2, 2, 2, 2], dtype=torch.float64)[:, None])
    first = r.tokens.target.float().argmax(1)
    pick = (torch.arange(8), first)
    want = torch.tensor([1.5, -0.5, -0.5, -0.5, 0, 0, 0, 0], dtype=torch.float64)
    assert torch.equal(Group()(r, None, alone)[0][pick], want)
    torch.testing.assert_close(Group(scale="batch")(r, None, alone)[0][pick], want / 2 / math.sqrt(440 / 448), rtol=0, atol=1e-15)
    torch.testing.assert_close(LeaveOneOut()(r, None, alone)[0][pick], want * 2 / 3, rtol=0, atol=1e-15)  # 4/3 of the centred


def test_gae_puts_the_reward_at_the_end_and_adds_token_rewards():
    # gamma = lam = 1: the return of token t is the reward plus the token rewards from t on
    r = rows()
    per_token = torch.randn(12, 7, dtype=torch.float64) * r.tokens.target
    _, returns = GAE(lam=1.0)(replace(r, token_rewards=per_token), None, alone)
    for b in range(12):
        for i in r.tokens.target[b].nonzero().squeeze(1).tolist():
            assert float(returns[b, i]) == pytest.approx(float(r.rewards[b].sum() + per_token[b, i:].sum()), abs=1e-13)


def test_gae_whitens_after_the_returns():
    r = rows()
    plain, returns = GAE(whiten=False)(r, None, alone)
    white, same = GAE()(r, None, alone)
    on = r.tokens.target
    assert torch.equal(returns, same)
    assert abs(float(white[on].mean())) < 1e-14
    assert float(white[on].std()) == pytest.approx(1.0, abs=1e-14)
    torch.testing.assert_close(white[on] * plain[on].std() + plain[on].mean(), plain[on], rtol=0, atol=1e-14)


def test_refusals_are_sentences():
    with pytest.raises(ConfigError, match=r"advantages.gae: rows carry no values.*`value` objective"):
        GAE()(replace(rows(), values=None), None, alone)
    with pytest.raises(ConfigError, match=r"advantages.group.scale: no scale 'grup'.*Did you mean 'group'"):
        Group(scale="grup")
    with pytest.raises(ConfigError, match=r"advantages.group.floor: got 0.0, must be above 0"):
        Group(floor=0.0)
    with pytest.raises(ConfigError, match=r"advantages.gae.lam: got 1.5, must be between 0 and 1"):
        GAE(lam=1.5)

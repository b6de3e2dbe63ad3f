"""What every advantage estimator must do; adding a file to the folder adds it to the table."""

import math
import threading
from dataclasses import fields, replace

import pytest
import torch

from advalign import plugins
from advalign.advantages.best_of_group import BestOfGroup
from advalign.advantages.gae import GAE
from advalign.advantages.gdpo import GDPO
from advalign.advantages.gpg import GPG
from advalign.advantages.group import Group
from advalign.advantages.leave_one_out import LeaveOneOut
from advalign.advantages.max_rl import MaxRL
from advalign.advantages.opo import OPO
from advalign.advantages.pass_at_k import PassAtK
from advalign.advantages.reinforce_pp import ReinforcePP
from advalign.advantages.remax import ReMax
from advalign.advantages.role_ema import RoleEMA
from advalign.advantages.softmax_baseline import SoftmaxBaseline
from advalign.errors import ConfigError
from advalign.types import RolloutRows, Tokens, fit

VARIANTS = [
    Group(scale="batch"),
    Group(scale="none"),
    GAE(whiten=False),
    BestOfGroup(include_own=True),
    ReinforcePP(baseline="group", gamma=0.9),
    PassAtK(scale="group"),
    GPG(counted="rewards"),
    GDPO(whiten="tokens", weights=(2.0, 0.5)),
    GDPO(whiten="none"),
]
TABLE = [*(cls() for cls in plugins.all("advantages")), *VARIANTS]

# Group relative, unless it is said here why not. A new estimator is held to it.
ABSOLUTE = {
    "gae": "compares with a critic",
    "remax": "compares with the greedy response",
    "role_ema": "compares with earlier draws",
    "signed": "compares with a threshold",
}
RELATIVE = [a for a in TABLE if plugins.kind_of(type(a)) not in ABSOLUTE and a != ReinforcePP()]  # which compares with the whole draw

# Where only a shift common to ALL prompts leaves a relative estimator alone, or not even that.
COMMON_SHIFT = [Group(scale="batch")]
NO_SHIFT = [MaxRL(), GPG(counted="rewards")]  # both read where the zero of the reward lies


def rows(num_groups: int = 3, size: int = 4, seed: int = 0) -> RolloutRows:
    g = torch.Generator().manual_seed(seed)
    b, t = num_groups * size, 7
    lengths = torch.randint(3, t + 1, (b,), generator=g)
    positions = torch.arange(t)[None]
    mask, target = positions < lengths[:, None], (positions >= 2) & (positions < lengths[:, None])
    tokens = Tokens(ids=torch.zeros(b, t, dtype=torch.long), mask=mask, target=target, group=torch.arange(b) // size, key=torch.arange(b))
    noise = torch.randn(3, b, t, generator=g, dtype=torch.float64)
    return RolloutRows(
        tokens=tokens,
        rewards=torch.randn(b, 2, generator=g, dtype=torch.float64),
        advantages=torch.zeros(b, t),
        sampler_logprobs=noise[0],
        finished=torch.ones(b, dtype=torch.bool),
        values=noise[1],
        baseline=torch.randn(num_groups, generator=g, dtype=torch.float64).repeat_interleave(size),
        roles=torch.arange(b) % 2,
    )


def alone(x):
    return x


def names(estimator):
    return str(estimator)


def state_of(estimator):
    """What the trainer hands in before the first draw; moved off zero, where a moving baseline would be invisible."""
    state = estimator.initial_state()
    return None if state is None else {k: v + 0.25 for k, v in state.items()}


def call(estimator, draw, all_reduce=alone):
    return estimator(draw, state_of(estimator), all_reduce)


def cast(draw, dtype):
    """Every floating-point column of the rows in another precision."""
    columns = {f.name: getattr(draw, f.name) for f in fields(draw)}
    return replace(draw, **{k: x.to(dtype) for k, x in columns.items() if isinstance(x, torch.Tensor) and x.is_floating_point()})


@pytest.mark.parametrize("estimator", TABLE, ids=names)
def test_finite_and_zero_off_target(estimator):
    r = rows()
    advantages, returns = call(estimator, r)
    for x in (advantages,) if returns is None else (advantages, returns):
        assert x.shape == r.tokens.ids.shape
        assert bool(x.isfinite().all())
        assert float(x[~r.tokens.target].abs().sum()) == 0.0
    assert float(advantages.abs().sum()) > 0


@pytest.mark.parametrize("estimator", TABLE, ids=names)
def test_order_of_rows_does_not_matter(estimator):
    r = rows()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(call(estimator, r.index(order))[0], call(estimator, r)[0][order], rtol=0, atol=1e-13)


def two_ranks(estimator, r, halves):
    """Advantages of both halves, and the state each rank is left with; `all_reduce` adds up what both have posted."""
    barrier, posted, results, states = threading.Barrier(2), {}, {}, {}

    def rank(i):
        def all_reduce(x):
            posted[i] = x
            barrier.wait(timeout=20)
            total = posted[0] + posted[1]
            barrier.wait(timeout=20)
            return total

        states[i] = state_of(estimator)
        results[i] = estimator(r.index(halves[i]), states[i], all_reduce)[0]

    threads = [threading.Thread(target=rank, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return torch.cat([results[0], results[1]]), states


@pytest.mark.parametrize("estimator", TABLE, ids=names)
def test_two_ranks_equal_one_process(estimator):
    r = rows(num_groups=3)
    rewards = r.rewards.clone()
    rewards[4:8] = 0.0  # a constant group without reward: the ranks differ in every way to count rows
    r = replace(r, rewards=rewards)
    got, states = two_ranks(estimator, r, [torch.arange(0, 4), torch.arange(4, 12)])  # unequal, groups whole
    state = state_of(estimator)
    torch.testing.assert_close(got, estimator(r, state, alone)[0], rtol=0, atol=1e-13)
    assert states[0] == states[1]
    if state is not None:
        assert states[0] == pytest.approx(state, abs=1e-14)
        assert state != state_of(estimator)


def test_a_role_that_plays_on_one_rank_only():
    r = replace(rows(num_groups=2), roles=torch.tensor([0, 0, 0, 0, 1, 1, 0, 1]))
    _, states = two_ranks(RoleEMA(), r, [torch.arange(4), torch.arange(4, 8)])
    want = state_of(RoleEMA())
    RoleEMA()(r, want, alone)
    assert states[0] == states[1] == pytest.approx(want, abs=1e-14)


@pytest.mark.parametrize("estimator", TABLE, ids=names)
def test_padding_changes_nothing(estimator):
    r = rows()
    columns = {f.name: getattr(r, f.name) for f in fields(r)}
    wide = {k: fit(x, 10) for k, x in columns.items() if isinstance(x, torch.Tensor) and x.shape == r.tokens.ids.shape}
    got, _ = call(estimator, replace(r, tokens=r.tokens.fit(10), **wide))
    assert torch.equal(fit(got, 7), call(estimator, r)[0])
    assert float(got[:, 7:].abs().sum()) == 0.0


@pytest.mark.parametrize("estimator", TABLE, ids=names)
def test_what_lies_off_target_changes_nothing(estimator):
    r = rows()
    noise = torch.where(r.tokens.target, 0.0, 1e3)
    per_token = torch.randn(12, 7, dtype=torch.float64) * r.tokens.target
    clean, dirty = replace(r, token_rewards=per_token), replace(r, token_rewards=per_token + noise, values=r.values + noise)
    assert torch.equal(call(estimator, dirty)[0], call(estimator, clean)[0])


@pytest.mark.parametrize("estimator", TABLE, ids=names)
def test_rows_without_target_tokens(estimator):
    r = rows()
    target = r.tokens.target.clone()
    target[[1, 5]] = False
    got, _ = call(estimator, replace(r, tokens=replace(r.tokens, target=target)))
    assert bool(got.isfinite().all())
    assert float(got[~target].abs().sum()) == 0.0
    assert float(got.abs().sum()) > 0
    none, _ = call(estimator, replace(r, tokens=replace(r.tokens, target=torch.zeros_like(target))))
    assert float(none.abs().sum()) == 0.0


@pytest.mark.parametrize("estimator", TABLE, ids=names)
def test_off_policy_rows_take_part_like_any_other(estimator):
    r = rows()
    marked = replace(r, offpolicy=torch.arange(12) % 4 == 0)
    assert torch.equal(call(estimator, marked)[0], call(estimator, r)[0])


@pytest.mark.parametrize("estimator", TABLE, ids=names)
def test_single_precision_gives_the_same_in_single_precision(estimator):
    r = rows()
    got, _ = call(estimator, cast(r, torch.float32))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), call(estimator, r)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("estimator", TABLE, ids=names)
def test_rows_are_left_as_they_were(estimator):
    r, again = rows(), rows()
    call(estimator, r)
    for f in fields(r):
        x = getattr(r, f.name)
        assert not isinstance(x, torch.Tensor) or torch.equal(x, getattr(again, f.name))


@pytest.mark.parametrize("estimator", [a for a in RELATIVE if a not in NO_SHIFT], ids=names)
def test_a_shift_of_a_prompts_rewards_changes_nothing(estimator):
    r = rows()
    if estimator in COMMON_SHIFT:
        shift = torch.full((12,), 3.0, dtype=torch.float64)  # the batch std sees different shifts of different groups
    else:
        shift = torch.tensor([3.0, -7.0, 100.0], dtype=torch.float64).repeat_interleave(4)
    moved = replace(r, rewards=r.rewards + shift[:, None] / 2)
    torch.testing.assert_close(call(estimator, moved)[0], call(estimator, r)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("estimator", NO_SHIFT, ids=names)
def test_where_the_zero_of_the_reward_matters(estimator):
    # so that the exception above stays one; rewards from 1 upwards, some of them 0 before
    r = replace(rows(), rewards=torch.tensor([[1.0, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 0]], dtype=torch.float64).T)
    moved = replace(r, rewards=r.rewards + 1)
    assert float((call(estimator, moved)[0] - call(estimator, r)[0]).abs().max()) > 0.1


def test_shifts_that_the_others_do_not_see():
    r = rows()
    for estimator, moved in (
        (ReinforcePP(), replace(r, rewards=r.rewards + 3.0)),  # gamma 1, the whole draw
        (ReMax(), replace(r, rewards=r.rewards + 3.0, baseline=r.baseline + 6.0)),  # two rewards, each 3 higher
    ):
        torch.testing.assert_close(call(estimator, moved)[0], call(estimator, r)[0], rtol=0, atol=1e-13)


# (estimator, the estimator for rewards of four times the size, how the advantages grow)
SCALED = [
    *((a, a, 1) for a in (BestOfGroup(), GPG(), Group(scale="none"), LeaveOneOut(), OPO(), PassAtK(), ReMax())),
    *((a, a, 0) for a in (Group(), Group(scale="batch"), GDPO(), GDPO(whiten="tokens"), MaxRL(), PassAtK(scale="group"))),
    *((a, a, 0) for a in (ReinforcePP(gamma=0.9), ReinforcePP(baseline="group"))),
    (SoftmaxBaseline(beta=0.5), SoftmaxBaseline(beta=2.0), 1),
]


@pytest.mark.parametrize(("small", "large", "degree"), SCALED, ids=names)
def test_the_unit_of_the_reward(small, large, degree):
    r = rows()
    grown = replace(r, rewards=4 * r.rewards, baseline=4 * r.baseline)
    torch.testing.assert_close(call(large, grown)[0], 4.0**degree * call(small, r)[0], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("estimator", RELATIVE, ids=names)
def test_equal_rewards_teach_nothing(estimator):
    r = rows()
    flat = replace(r, rewards=torch.full((12, 2), 0.05, dtype=torch.float64))
    assert float(call(estimator, flat)[0].abs().sum()) == 0.0


@pytest.mark.parametrize("estimator", RELATIVE, ids=names)
def test_a_group_of_one_teaches_nothing(estimator):
    assert float(call(estimator, rows(num_groups=6, size=1))[0].abs().sum()) == 0.0


# Whitening over tokens moves all of them by the mean over tokens, which is not 0 where lengths differ.
STILL = [a for a in RELATIVE if getattr(a, "baseline", None) != "group" and getattr(a, "whiten", None) != "tokens"]


@pytest.mark.parametrize("estimator", STILL, ids=names)
def test_a_constant_group_teaches_nothing_beside_others(estimator):
    r = rows()
    rewards = r.rewards.clone()
    rewards[4:8] = 0.1
    got, _ = call(estimator, replace(r, rewards=rewards))
    assert float(got[4:8].abs().sum()) == 0.0
    assert float(got.abs().sum()) > 0


@pytest.mark.parametrize("estimator", TABLE, ids=names)
def test_finite_without_a_group_or_a_difference(estimator):
    for draw in (rows(num_groups=6, size=1), replace(rows(), rewards=torch.full((12, 2), 0.05, dtype=torch.float64))):
        assert bool(call(estimator, draw)[0].isfinite().all())


@pytest.mark.parametrize("estimator", [a for a in TABLE if not isinstance(a, GDPO)], ids=names)
def test_rewards_are_summed_over_their_names(estimator):
    # rewards arrive weighted: (a, b) and (a + b, 0) are the same. GDPO exists to tell them apart.
    r = rows()
    merged = replace(r, rewards=torch.stack([r.rewards.sum(1), torch.zeros(12, dtype=torch.float64)], 1))
    assert torch.equal(call(estimator, merged)[0], call(estimator, r)[0])


@pytest.mark.parametrize("cls", plugins.all("advantages"))
def test_declares_what_it_reads(cls):
    # A critic or a greedy response costs a model or a sample per prompt: it is asked for exactly where it is read.
    estimator, r = cls(), rows()
    for name, column in (("needs_values", "values"), ("needs_baseline", "baseline")):
        without = replace(r, **{column: None})
        if {"needs_values": estimator.needs_values, "needs_baseline": estimator.needs_baseline}[name]:
            with pytest.raises(ConfigError, match=f"advantages.{plugins.kind_of(cls)}: rows carry no {column}"):
                call(estimator, without)
        else:
            assert torch.equal(call(estimator, without)[0], call(estimator, r)[0])
    per_token = replace(r, token_rewards=r.sampler_logprobs * r.tokens.target)
    reads = not torch.equal(call(estimator, per_token)[0], call(estimator, r)[0])
    assert reads == estimator.reads_token_rewards


@pytest.mark.parametrize("estimator", TABLE, ids=names)
def test_declares_whether_it_compares_the_responses_of_a_prompt(estimator):
    learned = float(call(estimator, rows(num_groups=6, size=1))[0].abs().sum())
    assert estimator.compares == (learned == 0.0)


@pytest.mark.parametrize("estimator", [a for a in TABLE if a.initial_state() is not None], ids=names)
def test_state_is_a_fresh_dictionary_of_floats_by_string(estimator):
    def is_plain(state):
        return all(isinstance(name, str) and isinstance(value, float) for name, value in state.items())

    state = estimator.initial_state()
    assert is_plain(state)
    assert estimator.initial_state() is not state
    estimator(rows(), state, alone)
    assert is_plain(state)
    assert state != estimator.initial_state()


def test_only_what_carries_a_baseline_from_draw_to_draw_has_a_state():
    assert {plugins.kind_of(type(a)) for a in TABLE if a.initial_state() is not None} == {"role_ema"}


def test_a_spread_with_a_low_floor_amplifies_the_noise_of_a_reward():
    # Rewards 1 +- 1e-3: divided by their std the advantages are of order 1, with a floor of 0.1 of order 0.01.
    r = rows(num_groups=1)
    r = replace(r, rewards=1 + 1e-3 * torch.tensor([[1.0], [-1.0], [1.0], [-1.0]], dtype=torch.float64))
    for estimator in (Group(), Group(scale="batch"), PassAtK(scale="group"), Group(floor=0.09)):
        assert estimator.amplifies_noise
    for estimator in (Group(floor=0.1), Group(scale="none"), PassAtK(), PassAtK(scale="group", floor=0.1), LeaveOneOut(), GAE()):
        assert not estimator.amplifies_noise
    assert float(call(Group(), r)[0].abs().max()) > 0.5
    assert float(call(Group(floor=0.1), r)[0].abs().max()) == pytest.approx(0.01)


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
    with pytest.raises(ConfigError, match=r"advantages.group.floor: 0 given"):
        Group(floor=0.0)
    with pytest.raises(ConfigError, match=r"advantages.gae.lam: 1.5 given; a number from 0 to 1"):
        GAE(lam=1.5)


@pytest.mark.parametrize("whiten", ["rows", "tokens", "none"])
def test_gdpo_adds_a_kl_penalty_at_its_own_size(whiten):
    # The penalty is linear in its coefficient: A(c) = A(0) + c (KL_mean of the group - KL), whatever the rewards are divided by.
    penalised = rows()
    group, target = penalised.tokens.group, penalised.tokens.target
    kl = torch.arange(len(group), dtype=torch.float64) ** 2
    means = torch.stack([kl[group == g].mean() for g in group.tolist()])
    plain, _ = call(GDPO(whiten=whiten), penalised)
    for coef in (0.01, 1.0):
        got, _ = call(GDPO(whiten=whiten), replace(penalised, penalty=-coef * kl))
        torch.testing.assert_close(got - plain, coef * (means - kl)[:, None] * target, rtol=0, atol=1e-12)

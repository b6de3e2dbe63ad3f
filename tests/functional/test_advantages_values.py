"""Every estimator by hand. Rows have no prompt: token t of a row is a target while t is less than its length."""

import json
import math
import statistics
from dataclasses import replace

import pytest
import torch

from advalign.advantages.best_of_group import BestOfGroup
from advalign.advantages.gdpo import GDPO
from advalign.advantages.gpg import GPG
from advalign.advantages.group import Group
from advalign.advantages.max_rl import MaxRL
from advalign.advantages.opo import OPO
from advalign.advantages.pass_at_k import PassAtK
from advalign.advantages.reinforce_pp import ReinforcePP
from advalign.advantages.remax import ReMax
from advalign.advantages.role_ema import RoleEMA
from advalign.advantages.signed import Signed
from advalign.advantages.softmax_baseline import SoftmaxBaseline
from advalign.errors import ConfigError
from advalign.functional import weights
from advalign.types import RolloutRows, Tokens


def t(*x):
    return torch.tensor(x, dtype=torch.float64)


def alone(x):
    return x


def rows(rewards, group, lengths=None, **fields) -> RolloutRows:
    """One row per reward ("B" or "B R"); all of length 1 unless said otherwise."""
    b = len(rewards)
    lengths = torch.tensor(lengths or [1] * b)
    target = torch.arange(int(lengths.max()))[None] < lengths[:, None]
    tokens = Tokens(ids=target.long(), mask=target, target=target, group=torch.tensor(group), key=torch.arange(b))
    return RolloutRows(
        tokens=tokens,
        rewards=rewards if rewards.ndim == 2 else rewards[:, None],
        advantages=torch.zeros(target.shape),
        sampler_logprobs=torch.zeros(target.shape),
        finished=torch.ones(b, dtype=torch.bool),
        **fields,
    )


def first(estimator, draw, state=None):
    """The advantage of the first token of every row."""
    return estimator(draw, state, alone)[0][:, 0]


def close(got, *want):
    torch.testing.assert_close(got, t(*want), rtol=0, atol=1e-14)


def test_best_of_group():
    # (4, 1, 1): the best of the others is 1, 4, 4; a pair of equals has nothing above it; a group of one has no other
    draw = rows(t(4, 1, 1, 2, 2, 7), [0, 0, 0, 1, 1, 2])
    close(first(BestOfGroup(), draw), 3, -3, -3, 0, 0, 0)
    close(first(BestOfGroup(include_own=True), draw), 0, -3, -3, 0, 0, 0)


def test_softmax_baseline():
    # (0, log 3) with beta 1: V = log((1 + 3) / 2) = log 2
    close(first(SoftmaxBaseline(beta=1.0), rows(t(0, math.log(3), 5), [0, 0, 1])), -math.log(2), math.log(1.5), 0)


def test_softmax_baseline_lies_between_the_mean_and_the_best():
    draw = rows(t(4, 1, 1.5, -2, 7), [0, 0, 0, 0, 1])
    near_best, near_mean = SoftmaxBaseline(beta=1e-12), SoftmaxBaseline(beta=1e12)
    torch.testing.assert_close(first(near_best, draw), first(BestOfGroup(include_own=True), draw), rtol=0, atol=1e-11)
    torch.testing.assert_close(first(near_mean, draw), first(Group(scale="none"), draw), rtol=0, atol=1e-11)


def test_reinforce_pp():
    # rewards 1, 0 on responses of 2 tokens and 1, gamma 1/2: G = (1/2, 1 | 0), mean 1/2, variance (0 + 1/4 + 1/4) / 2, std 1/2
    draw = rows(t(1, 0), [0, 1], [2, 1])
    assert ReinforcePP(gamma=0.5)(draw, None, alone)[0].tolist() == [[0, 1], [-1, 0]]
    # with -1/2 on the first token G = (0, 1 | 0): mean 1/3, variance (1/9 + 4/9 + 1/9) / 2 = 1/3
    got, _ = ReinforcePP(gamma=0.5)(replace(draw, token_rewards=torch.tensor([[-0.5, 0], [0, 0]]).double()), None, alone)
    close(got[draw.tokens.target], -1 / math.sqrt(3), 2 / math.sqrt(3), -1 / math.sqrt(3))


def test_reinforce_pp_with_the_mean_of_the_group_as_baseline():
    # One group: R - mean = (1/2, -1/2), on tokens (1/2, 1/2 | -1/2): mean 1/6, variance (1/9 + 1/9 + 4/9) / 2 = 1/3
    root = math.sqrt(3)
    draw = rows(t(1, 0), [0, 0], [2, 1])
    close(ReinforcePP(baseline="group")(draw, None, alone)[0][draw.tokens.target], root / 3, root / 3, -2 * root / 3)
    # A constant group beside it has 0 before whitening, and the common shift of -1/6 tokens after it.
    # tokens (1/2, 1/2 | -1/2 | 0): mean 1/8, squares 9/64 + 9/64 + 25/64 + 1/64 = 44/64, std sqrt(11/48)
    draw = rows(t(1, 0, 9), [0, 0, 1], [2, 1, 1])
    close(ReinforcePP(baseline="group")(draw, None, alone)[0][2, :1], -1 / 8 / math.sqrt(11 / 48))


def test_opo():
    # lengths 1 and 3, rewards 1 and 0: b = 1/4. Then the advantages of all TOKENS of the group add up to 0: 1 * 3/4 - 3 * 1/4.
    draw = rows(t(1, 0, 6), [0, 0, 1], [1, 3, 2])
    got, _ = OPO()(draw, None, alone)
    close(got[:, 0], 0.75, -0.25, 0)
    assert float(got.sum()) == 0.0
    equal = rows(t(4, 1, 1.5), [0, 0, 0], [2, 2, 2])
    torch.testing.assert_close(first(OPO(), equal), first(Group(scale="none"), equal), rtol=0, atol=1e-15)


def test_opo_gives_a_response_without_tokens_no_say():
    # rewards (1, 0, 5), the last without a target token: b = (1 + 0) / 2
    draw = rows(t(1, 0, 5), [0, 0, 0], [1, 1, 0])
    assert OPO()(draw, None, alone)[0].tolist() == [[0.5], [-0.5], [0.0]]


def test_remax():
    draw = rows(t(1, 0, 1), [0, 0, 1], [2, 1, 1], baseline=t(0.4, 0.4, 1))
    got, _ = ReMax()(draw, None, alone)
    torch.testing.assert_close(got, torch.tensor([[0.6, 0.6], [-0.4, 0], [0, 0]], dtype=torch.float64), rtol=0, atol=1e-15)
    # token rewards (-0.1, -0.2) of the first response are still to come: -0.3 and -0.2
    got, _ = ReMax()(replace(draw, token_rewards=torch.tensor([[-0.1, -0.2], [0, 9], [0, 9]], dtype=torch.float64)), None, alone)
    torch.testing.assert_close(got, torch.tensor([[0.3, 0.4], [-0.4, 0], [0, 0]], dtype=torch.float64), rtol=0, atol=1e-15)
    with pytest.raises(ConfigError, match=r"advantages.remax: rows carry no baseline; use a source that scores the greedy response"):
        ReMax()(replace(draw, baseline=None), None, alone)


def test_max_rl():
    # (1, 0, 0, 0): mean 1/4 -> (3, -1, -1, -1); (1, 1, 1, 0): mean 3/4 -> (1/3, 1/3, 1/3, -1); nothing solved: 0; mean below 0: 0
    draw = rows(t(1, 0, 0, 0, 1, 1, 1, 0, 0, 0, -1, -3), [0] * 4 + [1] * 4 + [2] * 2 + [3] * 2)
    close(first(MaxRL(), draw), 3, -1, -1, -1, 1 / 3, 1 / 3, 1 / 3, -1, 0, 0, 0, 0)


def test_pass_at_k():
    # only the best gets something: its lead, 0.9 - 0.5; a tie and a group of one get nothing
    draw = rows(t(0.2, 0.9, 0.5, 1, 1, 3), [0, 0, 0, 1, 1, 2])
    close(first(PassAtK(), draw), 0, 0.4, 0, 0, 0, 0)
    # (6, 27, 15) / 30: mean 16/30, deviations (-10, 11, -1) / 30, variance 222 / 900 / 2, std sqrt(111) / 30
    close(first(PassAtK(scale="group"), draw), 0, 12 / math.sqrt(111), 0, 0, 0, 0)


def test_pass_at_k_is_the_positive_part_of_best_of_group():
    draw = rows(torch.randn(12, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), [0] * 5 + [1] * 7)
    assert torch.equal(first(PassAtK(), draw), first(BestOfGroup(), draw).clamp(min=0))


def test_gpg():
    # (1, 0 | 1, 1): 2 of 4 responses lie in a group that differs, 3 of 4 have a reward
    draw = rows(t(1, 0, 1, 1), [0, 0, 1, 1])
    close(first(GPG(), draw), 1, -1, 0, 0)
    close(first(GPG(counted="rewards"), draw), 2 / 3, -2 / 3, 0, 0)
    # Moving the zero of the reward moves the second alpha (now 4 / 4) and not the first.
    moved = rows(t(2, 1, 2, 2), [0, 0, 1, 1])
    close(first(GPG(), moved), 1, -1, 0, 0)
    close(first(GPG(counted="rewards"), moved), 0.5, -0.5, 0, 0)


def test_gpg_where_nothing_counts():
    assert first(GPG(), rows(t(1, 1), [0, 0])).tolist() == [0, 0]
    assert first(GPG(counted="rewards"), rows(t(0, 0), [0, 0])).tolist() == [0, 0]


TWO = torch.tensor([[1, 1], [0, 0], [1, 0], [0, 0]], dtype=torch.float64)  # a group that differs in both rewards, one in the first


def test_gdpo_tells_apart_what_a_sum_does_not():
    # In a pair every reward that differs becomes +-1 / sqrt 2: S = +-sqrt 2 and +-1 / sqrt 2. GRPO of the sum has +-1 / sqrt 2 twice.
    # Over the draw: variance (2 + 2 + 1/2 + 1/2) / 3.
    root = 1 / math.sqrt(2)
    draw = rows(TWO, [0, 0, 1, 1])
    close(first(Group(), draw), root, -root, root, -root)
    close(first(GDPO(whiten="none"), draw), 2 * root, -2 * root, root, -root)
    close(first(GDPO(), draw), *(x / math.sqrt(5 / 3) for x in (2 * root, -2 * root, root, -root)))


def test_gdpo_weighs_after_normalising():
    root = 1 / math.sqrt(2)
    # A weight inside the reward cancels, its sign does not; a weight of the estimator stays.
    close(first(GDPO(whiten="none"), rows(TWO * t(1, 5), [0, 0, 1, 1])), 2 * root, -2 * root, root, -root)
    close(first(GDPO(whiten="none"), rows(TWO * t(1, -5), [0, 0, 1, 1])), 0, 0, root, -root)
    close(first(GDPO(whiten="none", weights=(1.0, 0.5)), rows(TWO, [0, 0, 1, 1])), 1.5 * root, -1.5 * root, root, -root)
    with pytest.raises(ConfigError, match=r"advantages.gdpo.weights: got 3 for 2 rewards, must be one for each"):
        GDPO(weights=(1.0, 2.0, 3.0))(rows(TWO, [0, 0, 1, 1]), None, alone)


def test_gdpo_whitened_over_tokens():
    root, lengths = 1 / math.sqrt(2), [3, 1, 1, 2]
    draw = rows(TWO, [0, 0, 1, 1], lengths)
    spread = [s for s, n in zip((2 * root, -2 * root, root, -root), lengths, strict=True) for _ in range(n)]
    mean, std = statistics.mean(spread), statistics.stdev(spread)
    got, _ = GDPO(whiten="tokens")(draw, None, alone)
    close(got[draw.tokens.target], *((s - mean) / std for s in spread))


def test_signed():
    draw = rows(t(1, 0, 0.6, -1), [0, 0, 1, 1])
    close(first(Signed(), draw), 0.1, -1, 0.1, -1)
    close(first(Signed(positive=1.0, negative=0.0), draw), 1, 0, 1, 0)
    close(first(Signed(positive=0.0, negative=1.0), draw), 0, -1, 0, -1)
    close(first(Signed(threshold=0.8), draw), 0.1, -1, -1, -1)


def test_signed_keeps_in_the_denominator_what_it_does_not_train_on():
    # NSR, rewards (1, 0) with 3 tokens and 1: the mean over ALL tokens weighs the wrong token 1/4; dropping the right response, as
    # released code does, weighs it 1. With the response as the unit it is 1/2 against 1.
    draw = rows(t(1, 0), [0, 0], [3, 1])
    got, _ = Signed(positive=0.0, negative=1.0)(draw, None, alone)
    target, without_first = draw.tokens.target, draw.tokens.target[1:]
    for weigh, ours in ((weights.token, 1 / 4), (weights.sequence, 1 / 2)):
        every, dropped = weigh(target), weigh(without_first)
        assert float((every.values / every.count * got).sum()) == -ours
        assert float((dropped.values / dropped.count * got[1:]).sum()) == -1.0


def test_role_ema_uses_the_baseline_before_it_moves():
    # decay 1/2. First draw: baselines 0. Role 0 has 2 rows of mean 1/2: (1 - 1/4) 1/2 = 3/8; role 1 one row of -1: -1/2.
    estimator, roles = RoleEMA(decay=0.5), torch.tensor([0, 0, 1])
    state, draw = estimator.initial_state(), rows(t(1, 0, -1), [0, 0, 0], roles=roles)
    assert state == {"role_0": 0.0, "role_1": 0.0}
    close(first(estimator, draw, state), 1, 0, -1)
    assert state == {"role_0": 0.375, "role_1": -0.5}
    close(first(estimator, draw, state), 0.625, -0.375, -0.5)


def test_role_ema_moves_as_row_after_row_would_where_rewards_are_equal():
    estimator = RoleEMA(decay=0.9)
    state, slow = estimator.initial_state(), 0.0
    for reward, num in ((2.0, 5), (-1.0, 3)):
        first(estimator, rows(torch.full((num,), reward, dtype=torch.float64), [0] * num), state)
        for _ in range(num):
            slow = 0.9 * slow + 0.1 * reward
    assert state["role_0"] == pytest.approx(slow, abs=1e-15)
    assert state["role_1"] == 0.0  # nobody played it


def test_role_ema_takes_the_edge_of_a_side_out():
    # Side 0 wins by 1/2 whatever anybody does: its advantage falls to (1/2) decay^n after n rows, and so does the other's.
    estimator = RoleEMA(decay=0.9)
    state, draw = estimator.initial_state(), rows(t(0.5, -0.5), [0, 0], roles=torch.tensor([0, 1]))
    for n in range(40):
        close(first(estimator, draw, state), 0.5 * 0.9**n, -0.5 * 0.9**n)


def test_role_ema_state_survives_a_file_and_is_refused_when_missing():
    estimator, draw = RoleEMA(), rows(t(1, 3), [0, 0], roles=torch.tensor([1, 0]))
    state = estimator.initial_state()
    first(estimator, draw, state)
    again = json.loads(json.dumps(state))
    assert torch.equal(first(estimator, draw, again), first(estimator, draw, state))
    with pytest.raises(ConfigError, match=r"advantages.role_ema: no state was given; keep the dictionary of initial_state\(\)"):
        first(estimator, draw)


@pytest.mark.parametrize("role", [-1, 2])
def test_role_ema_refuses_a_role_it_does_not_know_before_anything_moves(role):
    estimator = RoleEMA()
    state = estimator.initial_state()
    with pytest.raises(ConfigError, match=rf"num_roles: a row has role {role}, roles are numbered from 0 to 1"):
        first(estimator, rows(t(1, 3), [0, 0], roles=torch.tensor([0, role])), state)
    assert state == estimator.initial_state()


REFUSED = {
    "softmax_baseline.beta: 0 given; a finite number above 0 is expected": lambda: SoftmaxBaseline(beta=0.0),
    "softmax_baseline.beta: inf given; a finite number above 0 is expected": lambda: SoftmaxBaseline(beta=math.inf),
    "reinforce_pp.baseline: no baseline 'grup'. Known: group, none. Did you mean 'group'": lambda: ReinforcePP(baseline="grup"),
    "reinforce_pp.gamma: 1.1 given; a number from 0 to 1": lambda: ReinforcePP(gamma=1.1),
    "reinforce_pp.floor: 0 given; a finite number above 0 is expected": lambda: ReinforcePP(floor=0.0),
    "pass_at_k.scale: no scale 'batch'. Known: group, none": lambda: PassAtK(scale="batch"),
    "pass_at_k.floor: -1 given; a finite number above 0 is expected": lambda: PassAtK(floor=-1.0),
    "gpg.counted: no way to count 'reward'. Known: groups, rewards. Did you mean 'rewards'": lambda: GPG(counted="reward"),
    "gdpo.whiten: no way to whiten 'row'. Known: none, rows, tokens. Did you mean 'rows'": lambda: GDPO(whiten="row"),
    "gdpo.floor: 0 given; a finite number above 0 is expected": lambda: GDPO(floor=0.0),
    "signed.negative: -1 given; a finite number of at least 0 is expected": lambda: Signed(negative=-1.0),
    "signed: positive and negative are both 0": lambda: Signed(positive=0.0, negative=0.0),
    "role_ema.decay: 1 given; a number of at least 0 and below 1": lambda: RoleEMA(decay=1.0),
    "role_ema.num_roles: 0 given; a whole number of at least 1": lambda: RoleEMA(num_roles=0),
}


@pytest.mark.parametrize("says", REFUSED)
def test_refused_with_a_sentence(says):
    with pytest.raises(ConfigError) as caught:
        REFUSED[says]()
    assert f"advantages.{says}" in str(caught.value)

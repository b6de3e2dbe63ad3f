"""Against numbers of public reference code (float64; six ragged rows in two groups, row 4 with an observation gap).

The file is not part of this repository: ADVALIGN_REFERENCE names it, or its folder. Public code guards divisions by adding 1e-8
(or, for the std of a group, 1e-6); ours are floors, so agreement is to those guards.
"""

import pytest
import torch

from advalign.functional import advantages as adv
from advalign.functional import divergence, policy, ratios, weights


def t(x) -> torch.Tensor:
    return torch.tensor(x, dtype=torch.float64)


@pytest.fixture
def given(golden) -> dict:
    x = golden["inputs"]
    columns = {name: t(x[name]) for name in ("old", "new", "ref", "scores", "token_rewards", "values", "vpred")}
    names = {g: i for i, g in enumerate(dict.fromkeys(x["groups"]))}
    return columns | {"target": t(x["mask"]).bool(), "group": torch.tensor([names[g] for g in x["groups"]])}


def close(a, b, atol):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


LOSSES = {
    "ppo_eps0.2_dual3_tokenmean": (0.2, 3.0, weights.token),
    "ppo_clip_higher_0.2_0.28_dual10": (0.28, 10.0, weights.token),
    "ppo_seq-mean-token-mean": (0.2, 3.0, weights.sequence),
    "ppo_seq-mean-token-sum-norm": (0.2, 3.0, lambda target: weights.constant(target, length=target.shape[1])),
}


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_policy_losses_and_gradients(golden, given, name):
    high, dual, weigh = LOSSES[name]
    new, target = given["new"].clone().requires_grad_(), given["target"]
    losses = policy.surrogate(new, given["old"], t(golden["A_used"]), target, low=0.2, high=high, dual_clip=dual)
    w = weigh(target)
    total = (w.values / w.count * losses.values).sum()
    total.backward()
    want = golden["policy_losses"][name]
    assert float(total.detach()) == pytest.approx(want["loss"], abs=1e-9)
    close(new.grad, t(want["grad"]), 1e-9)
    fraction, weight = losses.metrics["clip_fraction"]
    assert float((fraction * weight).sum() / weight.sum()) == pytest.approx(want["metrics"]["actor/pg_clipfrac"], abs=1e-8)


def test_kl_estimators(golden, given):
    on = given["target"]
    for name in ("k1", "k2", "k3"):
        close(divergence.ESTIMATORS[name](given["new"], given["ref"])[on], t(golden["kl"][name])[on], 1e-14)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (1.0, 0.95), (0.99, 0.95), (1.0, 0.0)])
def test_gae_carries_over_the_gap(golden, given, gamma, lam):
    on, want = given["target"], golden["advantages"][f"gae_g{gamma}_l{lam}"]
    got, returns = adv.gae(given["token_rewards"], given["values"], on, gamma=gamma, lam=lam)
    close(returns[on], t(want["returns"])[on], 1e-14)
    close(adv.whiten(got, on, floor=1e-4, all_reduce=lambda x: x)[on], t(want["adv_whitened"])[on], 1e-7)


def test_group_advantages(golden, given):
    rewards, group, on, want = given["scores"], given["group"], given["target"], golden["advantages"]
    close(adv.expand(adv.group_relative(rewards, group, floor=1e-4), on), t(want["grpo_std"]), 3e-6)
    close(adv.expand(adv.centred(rewards, group)[0], on), t(want["grpo_nostd"]), 1e-14)
    close(adv.expand(adv.leave_one_out(rewards, group), on), t(want["rloo"]), 1e-14)


def test_sequence_ratio(golden, given):
    # the gradient of GSPO with range 0.2, written with our ratio
    new, target = given["new"].clone().requires_grad_(), given["target"]
    s = adv.expand(ratios.sequence(new, given["old"], target), target)
    losses = policy.clipped_surrogate(s, t(golden["A_used"]), low=0.2, high=0.2)
    w = weights.sequence(target)
    (w.values / w.count * losses).sum().backward()
    close(new.grad, t(golden["policy_losses"]["gspo_0.2"]["grad"]), 1e-9)


def test_value_loss(golden, given):
    from advalign.objectives.value import Value
    from advalign.types import Outputs, RolloutRows, Tokens

    target = given["target"].clone()
    tokens = Tokens(ids=torch.zeros(6, 5, dtype=torch.long), mask=target, target=target, group=given["group"], key=torch.arange(6))
    rows = RolloutRows(
        tokens=tokens,
        rewards=given["scores"][:, None],
        advantages=torch.zeros(6, 5),
        sampler_logprobs=given["old"],
        finished=torch.ones(6, dtype=torch.bool),
        values=given["values"],
        returns=given["values"] + 0.3,
    )
    for clip, want in ((0.2, golden["value_loss"]), (0.5, golden["value_loss_0.5"])):
        term = Value(source="s", clip=clip)
        w, losses = term.weights(rows), term.losses(rows, {"clean": Outputs(values=given["vpred"])})
        assert float((w.values / w.count * losses.values).sum()) == pytest.approx(want["loss"], abs=1e-9)
        fraction, weight = losses.metrics["clip_fraction"]
        assert float((fraction * weight).sum() / weight.sum()) == pytest.approx(want["clipfrac"], abs=1e-7)

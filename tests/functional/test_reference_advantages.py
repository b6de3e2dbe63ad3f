"""Advantage estimators against numbers of public reference code (float64; six ragged rows in two groups, row 4 with an observation gap).

The file is not part of this repository: ADVALIGN_REFERENCE names it, or its folder. What differs on purpose, and how far that shows:
guards (public code adds 1e-6 to a std or 1e-8 to a variance, ours are floors), numbers off target (ours are 0), groups of one (ours are 0;
there is none in the file), and for GPG what counts (its paper: groups that differ; public code: rewards that are not 0).
"""

import pytest
import torch

from advalign.advantages.gae import GAE
from advalign.advantages.gpg import GPG
from advalign.advantages.group import Group
from advalign.advantages.leave_one_out import LeaveOneOut
from advalign.advantages.opo import OPO
from advalign.advantages.pass_at_k import PassAtK
from advalign.advantages.reinforce_pp import ReinforcePP
from advalign.advantages.remax import ReMax
from advalign.advantages.signed import Signed
from advalign.functional import advantages as adv
from advalign.types import RolloutRows, Tokens


def t(x) -> torch.Tensor:
    return torch.tensor(x, dtype=torch.float64)


def rows(golden, scores=None) -> RolloutRows:
    x = golden["inputs"]
    names = {g: i for i, g in enumerate(dict.fromkeys(x["groups"]))}
    target = t(x["mask"]).bool()
    group = torch.tensor([names[g] for g in x["groups"]])
    tokens = Tokens(ids=target.long(), mask=target, target=target, group=group, key=torch.arange(6))
    return RolloutRows(
        tokens=tokens,
        rewards=t(scores or x["scores"])[:, None],
        advantages=torch.zeros(6, 5),
        sampler_logprobs=t(x["old"]),
        finished=torch.ones(6, dtype=torch.bool),
        values=t(x["values"]),
        baseline=torch.full((6,), 0.4, dtype=torch.float64),
    )


def found(estimator, draw) -> torch.Tensor:
    return estimator(draw, None, lambda x: x)[0]


# name in the file: (our estimator, tolerance). 3e-6 and 1e-7 are the guards: 1e-6 / std with std about 1/2, 1e-8 / (2 variance).
SAME = {
    "grpo_std": (Group(), 3e-6),
    "grpo_nostd": (Group(scale="none"), 1e-14),
    "rloo": (LeaveOneOut(), 1e-14),
    "opo": (OPO(), 1e-14),
    "rpp_gamma0.9": (ReinforcePP(gamma=0.9), 1e-7),
    "rpp_baseline": (ReinforcePP(baseline="group"), 1e-7),
    "remax_b0.4": (ReMax(), 1e-14),
    "gpg": (GPG(counted="rewards"), 1e-14),
    "passk": (PassAtK(scale="group"), 3e-6),
}


@pytest.mark.parametrize("name", SAME)
def test_equals_public_code_on_target(golden, name):
    estimator, atol = SAME[name]
    draw = rows(golden)
    got, on = found(estimator, draw), draw.tokens.target
    torch.testing.assert_close(got[on], t(golden["advantages"][name])[on], rtol=0, atol=atol)
    assert float(got[~on].abs().sum()) == 0.0  # public ReMax leaves the reward to go on the observation of row 4


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (1.0, 0.95), (0.99, 0.95), (1.0, 0.0)])
def test_gae_of_the_outcome_reward(golden, gamma, lam):
    # The file's token rewards are the scores on the last target tokens, which is where the estimator puts them itself.
    draw = rows(golden)
    on, want = draw.tokens.target, golden["advantages"][f"gae_g{gamma}_l{lam}"]
    got, returns = GAE(gamma=gamma, lam=lam)(draw, None, lambda x: x)
    torch.testing.assert_close(returns[on], t(want["returns"])[on], rtol=0, atol=1e-14)
    torch.testing.assert_close(got[on], t(want["adv_whitened"])[on], rtol=0, atol=1e-7)


@pytest.mark.parametrize(("name", "positive", "negative"), [("positive", 1.0, 0.0), ("negative", 0.0, 1.0), ("weighted", 0.1, 1.0)])
def test_signed(golden, name, positive, negative):
    draw = rows(golden, golden["psr_nsr"]["scores"])
    assert torch.equal(found(Signed(positive=positive, negative=negative), draw), t(golden["psr_nsr"][name]))


def test_gpg_of_the_paper_counts_groups(golden):
    # Both groups differ, so nothing has to be made up for: alpha is 1. Public code counts 4 rewards that are not 0 and has alpha 6 / 4.
    draw = rows(golden)
    want = t(golden["advantages"]["grpo_nostd"])
    torch.testing.assert_close(found(GPG(), draw), want, rtol=0, atol=1e-14)
    torch.testing.assert_close(1.5 * want, t(golden["advantages"]["gpg"]), rtol=0, atol=1e-14)


def test_pass_at_k_of_the_paper_does_not_divide(golden):
    # Rewards (1, 0, 1/2): the lead is 1/2, and so is the std that public code divides by.
    draw = rows(golden)
    want = 0.5 * t(golden["advantages"]["passk"])
    torch.testing.assert_close(found(PassAtK(), draw), want, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
def test_kl_rewards(golden, name):
    x = golden["inputs"]
    on = t(x["mask"]).bool()
    got = adv.kl_rewards(t(x["new"]), t(x["ref"]), on, coef=0.5, estimator=name)
    torch.testing.assert_close(got, torch.where(on, -0.5 * t(golden["kl"][name]), 0.0), rtol=0, atol=1e-14)

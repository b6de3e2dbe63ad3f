"""Policy objectives against numbers of public reference code: losses and gradients with respect to the new log-probabilities.

Float64; six ragged rows in two groups, row 4 with an observation gap. Where a definition differs on purpose the test says so.
"""

import pytest
import torch

from advalign.functional import mismatch
from advalign.functional.weights import constant
from advalign.objectives._policy import Correction
from advalign.objectives.cispo import CISPO
from advalign.objectives.dapo import DAPO
from advalign.objectives.dr_grpo import DrGRPO
from advalign.objectives.gmpo import GMPO
from advalign.objectives.grpo import GRPO
from advalign.objectives.gspo import GSPO
from advalign.objectives.kl_cov import KLCov
from advalign.objectives.luffy import LUFFY
from advalign.objectives.ppo import PPO
from advalign.objectives.reinforce import REINFORCE
from advalign.objectives.sapo import SAPO
from advalign.types import Outputs, RolloutRows, Tokens


def t(x) -> torch.Tensor:
    return torch.tensor(x, dtype=torch.float64)


def rows(golden, **fields) -> RolloutRows:
    x = golden["inputs"]
    target = t(x["mask"]).bool()
    group = torch.tensor([0 if g == "a" else 1 for g in x["groups"]])
    tokens = Tokens(ids=torch.arange(30).view(6, 5), mask=target, target=target, group=group, key=torch.arange(6))
    columns = {
        "tokens": tokens,
        "rewards": t(x["scores"])[:, None],
        "advantages": t(golden["A_used"]),
        "sampler_logprobs": t(x["old"]),
        "old_logprobs": t(x["old"]),
        "finished": torch.ones(6, dtype=torch.bool),
    }
    return RolloutRows(**(columns | fields))


def loss_and_gradient(golden, term, r) -> tuple[float, torch.Tensor, dict]:
    new = t(golden["inputs"]["new"]).requires_grad_()
    losses, w = term.losses(r, {"clean": Outputs(logprobs=new)}), term.weights(r)
    total = (w.values / w.count * losses.values).sum()
    total.backward()
    means = {k: float((v * e).sum() / e.sum()) for k, (v, e) in losses.metrics.items()}
    return float(total.detach()), new.grad, means


S = {"source": "s"}
CASES = {
    "ppo_eps0.2_dual3_tokenmean": PPO(**S, dual_clip=3.0),
    "ppo_clip_higher_0.2_0.28_dual10": DAPO(**S, dual_clip=10.0),
    "ppo_seq-mean-token-mean": GRPO(**S, dual_clip=3.0),
    # There the constant is the padded width of the batch.
    "ppo_seq-mean-token-sum-norm": DrGRPO(**S, dual_clip=3.0, length=5),
    "ppo_seq-mean-token-sum": DrGRPO(**S, dual_clip=3.0, length=1),
    "gspo_0.0003_0.0004": GSPO(**S),
    "gspo_0.2": GSPO(**S, clip_low=0.2, clip_high=0.2),
    "sapo_1.0_1.05": SAPO(**S),
    "cispo_0.2_0.2": CISPO(**S, clip_low=0.2, clip_high=0.2),
    "cispo_1_4": CISPO(**S),
    "gmpo_0.4": GMPO(**S),
    "kl_cov_ratio0.2_coef1": KLCov(**S, fraction=0.2),
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_losses_and_gradients(golden, name):
    r = rows(golden)
    if name.startswith("kl_cov"):
        # There the covariance is taken with the log-probabilities of now; ours are the draw's. The choice is made with theirs here.
        penalised = KLCov(**S, fraction=0.2).penalised(rows(golden, old_logprobs=t(golden["inputs"]["new"])))
        object.__setattr__(CASES[name], "penalised", lambda _: penalised)
    total, gradient, _ = loss_and_gradient(golden, CASES[name], r)
    want = golden["policy_losses"][name]
    assert total == pytest.approx(want["loss"], abs=2e-8)
    torch.testing.assert_close(gradient, t(want["grad"]), rtol=0, atol=2e-8)


@pytest.mark.parametrize("form", ["sequence", "token"])
def test_both_forms_of_gspo_have_the_reference_gradient(golden, form):
    # The reference is the token form; with one advantage per response the sequence form has the same gradient.
    _, gradient, _ = loss_and_gradient(golden, GSPO(**S, form=form, clip_low=0.2, clip_high=0.2), rows(golden))
    torch.testing.assert_close(gradient, t(golden["policy_losses"]["gspo_0.2"]["grad"]), rtol=0, atol=1e-9)


def test_token_sum_is_the_token_mean_times_the_count(golden):
    # A sum over tokens is no weighting here: its gradient would grow with the batch.
    total, gradient, _ = loss_and_gradient(golden, PPO(**S, dual_clip=3.0), rows(golden))
    want = golden["policy_losses"]["ppo_token-sum"]
    count = sum(map(sum, golden["inputs"]["mask"]))
    assert total * count == pytest.approx(want["loss"], abs=1e-8)
    torch.testing.assert_close(gradient * count, t(want["grad"]), rtol=0, atol=1e-8)


def test_clip_fractions(golden):
    for name, term in (("ppo_eps0.2_dual3_tokenmean", PPO(**S, dual_clip=3.0)), ("gspo_0.0003_0.0004", GSPO(**S))):
        _, _, means = loss_and_gradient(golden, term, rows(golden))
        assert means["clip_fraction"] == pytest.approx(golden["policy_losses"][name]["metrics"]["actor/pg_clipfrac"], abs=1e-6)


def test_gpg_is_reinforce_with_its_advantages(golden):
    total, gradient, _ = loss_and_gradient(golden, REINFORCE(**S), rows(golden, old_logprobs=None))
    want = golden["policy_losses"]["gpg"]
    assert total == pytest.approx(want["loss"], abs=1e-9)
    torch.testing.assert_close(gradient, t(want["grad"]), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["paper", "noshape_clip_tokenmean"])
def test_luffy(golden, name):
    off = torch.zeros(6, dtype=torch.bool)
    off[golden["luffy"]["off_rows"]] = True
    term = LUFFY(**S, length=5) if name == "paper" else LUFFY(**S, shape=None, clip=0.2)
    total, gradient, means = loss_and_gradient(golden, term, rows(golden, offpolicy=off))
    want = golden["luffy"][name]
    # The published script sums over rows and divides by the constant length alone; ours is a mean over rows.
    factor = 6 if name == "paper" else 1
    assert total * factor == pytest.approx(want["loss"], abs=1e-8)
    torch.testing.assert_close(gradient * factor, t(want["grad"]), rtol=0, atol=1e-8)
    assert means["offpolicy_ratio"] == pytest.approx(want["off_ratio_mean"], abs=1e-8)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tok_tis2", {"level": "token", "mode": "truncate", "low": 0.0, "high": 2.0}),
        ("seq_tis2", {"level": "sequence", "mode": "truncate", "low": 0.0, "high": 2.0}),
    ],
)
def test_mismatch_weights(golden, name, options):
    x = golden["inputs"]
    old, sampler, target = t(x["old"]), t(x["ref"]), t(x["mask"]).bool()
    w = mismatch.weights(old, sampler, target, **options)
    torch.testing.assert_close(w, t(golden["rollout_corr"][name]["w"]), rtol=0, atol=1e-12)
    # There the effective sample size of a sequence level counts a response once for each of its tokens, too.
    size = float(mismatch.effective_sample_size(w, target))
    assert size == pytest.approx(golden["rollout_corr"][name]["ess"], abs=1e-6)


def test_masked_weights_keep_what_lies_between_the_bounds(golden):
    # The bounds of the reference are not stored with its numbers; they are what separates the kept ratios from the others.
    x = golden["inputs"]
    old, sampler, target = t(x["old"]), t(x["ref"]), t(x["mask"]).bool()
    for name, level in (("tok_icepop", "token"), ("seq_mis", "sequence")):
        want = t(golden["rollout_corr"][name]["w"])
        positive, every = want[want > 0], mismatch.ratio(old, sampler, target, level=level)
        w = mismatch.weights(old, sampler, target, level=level, mode="mask", low=float(positive.min()), high=float(positive.max()))
        torch.testing.assert_close(w, want, rtol=0, atol=1e-12)
        assert bool((every[target & (want == 0)] > 0).all())
        ones = mismatch.weights(old, sampler, target, level=level, mode="reject", low=float(positive.min()), high=float(positive.max()))
        assert torch.equal(ones, (want > 0).double())


def test_a_correction_multiplies_the_weights_and_leaves_the_count(golden):
    r = rows(golden, sampler_logprobs=t(golden["inputs"]["ref"]))
    plain, corrected = PPO(**S), PPO(**S, correction=Correction(high=2.0))
    w = t(golden["rollout_corr"]["tok_tis2"]["w"])
    torch.testing.assert_close(corrected.weights(r).values, plain.weights(r).values * w, rtol=0, atol=1e-12)
    assert float(corrected.weights(r).count) == float(plain.weights(r).count)


def test_constant_weights_are_what_the_reference_calls_sum_norm():
    target = torch.tensor([[True, True], [True, False]])
    assert (constant(target, length=4).values / constant(target, length=4).count).tolist() == [[0.125, 0.125], [0.125, 0.0]]

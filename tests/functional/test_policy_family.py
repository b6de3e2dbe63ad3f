"""The policy objectives: hand numbers, slow loops, where they coincide and where they do not. Float64."""

import math
from dataclasses import replace

import pytest
import torch

from advalign.errors import ConfigError
from advalign.functional import divergence, mismatch, policy, unified
from advalign.objectives._policy import Correction
from advalign.objectives.cispo import CISPO
from advalign.objectives.clip_cov import ClipCov
from advalign.objectives.dapo import DAPO
from advalign.objectives.dr_grpo import DrGRPO
from advalign.objectives.gmpo import GMPO
from advalign.objectives.grpo import GRPO
from advalign.objectives.gspo import GSPO
from advalign.objectives.kl import KL
from advalign.objectives.kl_cov import KLCov
from advalign.objectives.luffy import LUFFY
from advalign.objectives.ppo import PPO
from advalign.objectives.reinforce import REINFORCE
from advalign.objectives.sapo import SAPO
from advalign.objectives.sft import SFT
from advalign.types import Outputs, RolloutRows, Tokens

B, T = 6, 5
S = {"source": "s"}


def made(*lengths: int, seed: int = 0, per_row: bool = True) -> tuple[RolloutRows, torch.Tensor]:
    """Ragged rows with drifted log-probabilities, one advantage per row (or per token)."""
    g = torch.Generator().manual_seed(seed)
    n, width = len(lengths), max(lengths) + 1
    positions = torch.arange(width)[None]
    mask = positions < torch.tensor(lengths)[:, None] + 1
    target = mask & (positions >= 1)
    tokens = Tokens(
        ids=torch.randint(0, 50, (n, width), generator=g), mask=mask, target=target, group=torch.arange(n) // 2, key=torch.arange(n)
    )
    old = -torch.rand(n, width, generator=g, dtype=torch.float64) * 2
    advantages = torch.randn(n, 1 if per_row else width, generator=g, dtype=torch.float64).expand(n, width) * target
    new = old + 0.5 * torch.randn(n, width, generator=g, dtype=torch.float64)
    rows = RolloutRows(
        tokens=tokens,
        rewards=torch.randn(n, 1, generator=g, dtype=torch.float64),
        advantages=advantages,
        sampler_logprobs=old,
        old_logprobs=old,
        old_entropy=torch.rand(n, width, generator=g, dtype=torch.float64),
        finished=torch.ones(n, dtype=torch.bool),
    )
    return rows, new


def gradient(term, rows: RolloutRows, new: torch.Tensor) -> tuple[float, torch.Tensor]:
    leaf = new.clone().requires_grad_()
    w = term.weights(rows)
    total = (w.values / w.count * term.losses(rows, {"clean": Outputs(logprobs=leaf)}).values).sum()
    total.backward()
    return float(total.detach()), leaf.grad


FAMILY = {
    "ppo": PPO(**S), "grpo": GRPO(**S), "dr_grpo": DrGRPO(**S, length=5), "dapo": DAPO(**S), "gspo": GSPO(**S), "sapo": SAPO(**S),
    "cispo": CISPO(**S), "gmpo": GMPO(**S), "reinforce": REINFORCE(**S), "luffy": LUFFY(**S),
}  # fmt: skip


def test_with_one_update_per_draw_they_coincide():
    # r = 1: every one of them is -A grad log p, token by token, under one weighting; clips, gates and caps do nothing.
    rows, new = made(5, 3, 4, 1)
    rows = replace(rows, old_logprobs=None)
    same = {name: gradient(replace(term, weighting="sequence"), rows, new)[1] for name, term in FAMILY.items() if name != "dr_grpo"}
    for name, results in same.items():
        torch.testing.assert_close(results, same["reinforce"], rtol=0, atol=1e-15, msg=name)
    # Dr. GRPO differs by its weights alone: |y| / 5 of the sequence mean.
    lengths = rows.tokens.target.sum(1, keepdim=True)
    torch.testing.assert_close(gradient(FAMILY["dr_grpo"], rows, new)[1], same["grpo"] * lengths / 5, rtol=0, atol=1e-15)


def test_after_several_updates_they_differ():
    rows, new = made(5, 3, 4, 1)
    results = {name: gradient(replace(term, weighting="token"), rows, new)[1] for name, term in FAMILY.items() if name != "dr_grpo"}
    results["dapo"] = gradient(DAPO(**S, clip_high=0.5), rows, new)[1]
    names = sorted(set(results) - {"luffy"})  # without a clip luffy is ppo without one; it has its own tests
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            if {a, b} != {"grpo", "ppo"}:  # one formula, two weightings
                assert not torch.allclose(results[a], results[b], atol=1e-6), (a, b)


@pytest.mark.parametrize("name", sorted(FAMILY))
def test_gradients_by_a_slow_loop(name):
    """d loss / d log p of every token, written out one by one from the papers."""
    rows, new = made(5, 3, 4, 1, seed=3)
    term = replace(FAMILY[name], clip_low=0.1, clip_high=0.2) if name == "gspo" else FAMILY[name]
    want = torch.zeros_like(new)
    count = int(rows.tokens.target.any(1).sum())
    tokens = int(rows.tokens.target.sum())
    for b in range(new.shape[0]):
        places = rows.tokens.target[b].nonzero().squeeze(1).tolist()
        gaps = [float(new[b, t] - rows.old_logprobs[b, t]) for t in places]
        mean_weight = 1 / (len(places) * count)
        s = math.exp(sum(gaps) / len(gaps))
        for t, gap in zip(places, gaps, strict=True):
            a, r = float(rows.advantages[b, t]), math.exp(gap)

            def clipped(ratio: float, low: float, high: float, a: float = a) -> float:
                return 0.0 if (a > 0 and ratio > 1 + high) or (a < 0 and ratio < 1 - low) else -a * ratio

            if name in ("ppo", "grpo", "dr_grpo", "dapo"):
                slope = clipped(r, 0.2, 0.28 if name == "dapo" else 0.2)
                weight = {"grpo": mean_weight, "dr_grpo": 1 / (5 * count)}.get(name, 1 / tokens)
            elif name == "gspo":
                slope, weight = clipped(s, 0.1, 0.2), mean_weight
            elif name == "sapo":
                tau = 1.0 if a > 0 else 1.05
                gate = 1 / (1 + math.exp(-tau * (r - 1)))
                slope, weight = -a * 4 * gate * (1 - gate) * r, mean_weight
            elif name == "cispo":
                slope, weight = -a * min(r, 5.0), 1 / tokens
            elif name == "gmpo":
                clipped_gaps = [min(x, 0.4) if a > 0 else max(x, -0.4) for x in gaps]
                moves = clipped_gaps[gaps.index(gap)] == gap
                slope, weight = -a * math.exp(sum(clipped_gaps) / len(clipped_gaps)) * moves, mean_weight
            else:
                slope, weight = -a * (r if name == "luffy" else 1.0), 1 / tokens
            want[b, t] = slope * weight
    _, got = gradient(term, rows, new)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-14)


def test_sapo_has_no_dead_zone_where_ppo_does():
    # A > 0 and r far above 1 + clip: PPO's gradient is exactly 0, SAPO's is 4 s (1 - s) r A > 0, s = sigmoid(r - 1).
    rows, _ = made(4, 4)
    rows = replace(rows, advantages=rows.tokens.target.double())
    new = rows.old_logprobs + math.log(3)
    assert float(gradient(PPO(**S), rows, new)[1].abs().max()) == 0.0
    s = 1 / (1 + math.exp(-2.0))
    got = gradient(SAPO(**S), rows, new)[1][rows.tokens.target]
    torch.testing.assert_close(got, torch.full_like(got, -4 * s * (1 - s) * 3 / 8), rtol=0, atol=1e-15)


def test_soft_gate_is_tangent_to_the_ratio_at_one():
    # value at r = 1: 4 / tau * 1/2 * A = 2 A / tau; slope A for any tau
    r = torch.ones(2, dtype=torch.float64, requires_grad=True)
    losses = policy.soft_gate(r, torch.tensor([1.5, -2.0], dtype=torch.float64), tau_positive=0.7, tau_negative=3.0)
    torch.testing.assert_close(losses.detach(), torch.tensor([-2 * 1.5 / 0.7, 2 * 2.0 / 3.0], dtype=torch.float64))
    losses.sum().backward()
    torch.testing.assert_close(r.grad, torch.tensor([-1.5, 2.0], dtype=torch.float64), rtol=1e-15, atol=0)


def test_gspo_forms_agree_where_advantages_do_and_differ_where_not():
    for per_row in (True, False):
        rows, new = made(5, 3, 4, 2, per_row=per_row)
        results = [gradient(GSPO(**S, form=form, clip_low=5.0, clip_high=5.0), rows, new) for form in ("sequence", "token")]
        assert results[0][0] == pytest.approx(results[1][0], abs=1e-15)  # the values always agree
        assert torch.allclose(results[0][1], results[1][1], atol=1e-14) == per_row


def test_gspo_clips_whole_responses():
    # log-ratios (0.5, -0.5) cancel: s = 1 keeps both tokens, where PPO drops the first; (0.1, 0.1): s = e^0.1 > 1.0004 drops both.
    rows, _ = made(2, 2)
    rows = replace(rows, advantages=rows.tokens.target.double())
    new = rows.old_logprobs.clone()
    new[0, 1:] += torch.tensor([0.5, -0.5], dtype=torch.float64)
    new[1, 1:] += 0.1
    _, got = gradient(GSPO(**S), rows, new)
    torch.testing.assert_close(got[0, 1:], torch.full((2,), -0.25, dtype=torch.float64), rtol=0, atol=1e-15)
    assert got[1].abs().sum() == 0.0


def test_gmpo_of_one_token_is_a_one_sided_clip():
    # |y| = 1: rho = exp(min(log r, .4)) for A > 0
    rows, _ = made(1, 1)
    rows = replace(rows, advantages=rows.tokens.target * torch.tensor([[1.0], [1.0]], dtype=torch.float64))
    new = rows.old_logprobs.clone()
    new[0, 1] += 0.3
    new[1, 1] += 0.7
    total, got = gradient(GMPO(**S), rows, new)
    assert total == pytest.approx(-(math.exp(0.3) + math.exp(0.4)) / 2, abs=1e-14)
    assert got[0, 1].item() == pytest.approx(-math.exp(0.3) / 2, abs=1e-14)
    assert got[1, 1].item() == 0.0


def test_cispo_gradient_is_the_capped_weight_and_goes_through_log_p_alone():
    rows, new = made(4, 4, 4, seed=5)
    new = rows.old_logprobs + 2.5 * (new - rows.old_logprobs)  # some ratios beyond the cap
    _, got = gradient(CISPO(**S, clip_high=0.5), rows, new)
    r = (new - rows.old_logprobs).exp()
    assert bool((r[rows.tokens.target] > 1.5).any())
    want = -r.clamp(0.0, 1.5) * rows.advantages / rows.tokens.target.sum()
    torch.testing.assert_close(got, want * rows.tokens.target, rtol=0, atol=1e-15)


# ---------------------------------------------------------------------------------------- which tokens count


def test_high_entropy_tokens():
    # 5 target entropies 0.1 .. 0.5; the upper 40 %: quantile at place .6 * 4 = 2.4 -> 0.34, so 0.4 and 0.5 stay
    entropy = torch.tensor([[9.0, 0.1, 0.5, 0.3], [9.0, 0.2, 0.4, 9.0]], dtype=torch.float64)
    target = torch.tensor([[False, True, True, True], [False, True, True, False]])
    selected = policy.high_entropy(entropy, target, fraction=0.4)
    assert selected.tolist() == [[False, False, True, False], [False, False, True, False]]
    assert torch.equal(policy.high_entropy(entropy, target, fraction=1.0), target)
    assert not policy.high_entropy(entropy, torch.zeros_like(target), fraction=0.4).any()


def test_high_entropy_threshold_is_that_of_torch_quantile():
    g = torch.Generator().manual_seed(1)
    entropy = torch.rand(7, 9, generator=g, dtype=torch.float64)
    target = torch.rand(7, 9, generator=g) < 0.6
    for share in (0.05, 0.2, 0.5, 0.93):
        want = target & (entropy >= torch.quantile(entropy[target], 1 - share))
        assert torch.equal(policy.high_entropy(entropy, target, fraction=share), want)


@pytest.mark.parametrize(
    "term", [PPO(**S), GRPO(**S), GSPO(**S, form="token"), SAPO(**S), CISPO(**S), REINFORCE(**S), DrGRPO(**S, length=5)], ids=str
)
def test_top_entropy_removes_tokens_and_keeps_the_count(term):
    rows, new = made(5, 3, 4, 1)
    chosen = replace(term, top_entropy=0.3)
    assert "old_entropy" in chosen.columns
    assert "old_entropy" not in term.columns
    selected = policy.high_entropy(rows.old_entropy, rows.tokens.target, fraction=0.3)
    _, unsplit = gradient(term, rows, new)
    _, part = gradient(chosen, rows, new)
    torch.testing.assert_close(part, unsplit * selected, rtol=0, atol=1e-15)
    assert 0 < int(selected.sum()) < int(rows.tokens.target.sum())


def test_covariance_by_a_slow_loop():
    rows, _ = made(5, 3, 4, 1, per_row=False)
    target = rows.tokens.target
    log_p, adv = rows.old_logprobs[target].tolist(), rows.advantages[target].tolist()
    mean_p, mean_a = sum(log_p) / len(log_p), sum(adv) / len(adv)
    want = [(p - mean_p) * (a - mean_a) for p, a in zip(log_p, adv, strict=True)]
    got = policy.covariance(rows.old_logprobs, rows.advantages, target)
    torch.testing.assert_close(got[target], torch.tensor(want, dtype=torch.float64), rtol=0, atol=1e-14)
    assert float(got[~target].abs().sum()) == 0.0


def test_clip_cov_removes_a_fraction_of_the_tokens_between_its_bounds():
    rows, new = made(*[6] * 20, per_row=False)
    term = ClipCov(**S, fraction=0.05, low_cov=0.1, high_cov=5.0)
    gone = term.removed(rows)
    cov = policy.covariance(rows.old_logprobs, rows.advantages, rows.tokens.target)
    assert int(gone.sum()) == 6  # 5 % of 120
    assert bool(((cov > 0.1) & (cov < 5.0))[gone].all())
    assert torch.equal(gone, term.removed(rows))  # the same draw loses the same tokens
    _, got = gradient(term, rows, new)
    _, unsplit = gradient(replace(term, fraction=0.0), rows, new)
    torch.testing.assert_close(got, unsplit * ~gone, rtol=0, atol=1e-16)
    assert not ClipCov(**S, low_cov=1e6, high_cov=1e7).removed(rows).any()  # nothing lies there


def test_kl_cov_holds_the_largest_covariances():
    rows, new = made(*[6] * 20, per_row=False)
    term = KLCov(**S, fraction=0.05, beta=0.7)
    penalised = term.penalised(rows)
    cov = policy.covariance(rows.old_logprobs, rows.advantages, rows.tokens.target)
    assert int(penalised.sum()) == 6
    assert float(cov[penalised].min()) >= float(cov[rows.tokens.target & ~penalised].max())
    # gradient: -r A on every token, and beta sign(log r) on the held ones, all over 120 tokens
    _, got = gradient(term, rows, new)
    gap = new - rows.old_logprobs
    want = (-gap.exp() * rows.advantages + 0.7 * gap.sign() * penalised) * rows.tokens.target / 120
    torch.testing.assert_close(got, want, rtol=0, atol=1e-15)


@pytest.mark.parametrize("term", [KLCov(**S, fraction=0.05), ClipCov(**S, fraction=0.05, low_cov=0.1, high_cov=5.0)], ids=str)
def test_tokens_are_chosen_by_the_current_weights_where_they_are_known(term):
    """Public code: (A - mean A)(log p - mean log p) of the current log p; without the column those of the draw, which are then the same."""
    rows, new = made(*[6] * 20, per_row=False)
    choice = term.penalised if isinstance(term, KLCov) else term.removed
    assert torch.equal(choice(rows), choice(replace(rows, current_logprobs=rows.old_logprobs)))
    moved = replace(rows, current_logprobs=new)
    assert torch.equal(choice(moved), choice(replace(rows, old_logprobs=new)))
    assert not torch.equal(choice(moved), choice(rows))
    assert "current_logprobs" in term.columns


@pytest.mark.parametrize("term", [GRPO, GSPO, SAPO, GMPO, ClipCov, CISPO, LUFFY], ids=lambda cls: cls.__name__)
def test_clip_metrics_are_left_out_on_an_attacked_view(term):
    """There the gradient goes through the attacked log-probabilities, also where the ratio is clipped; CISPO caps the weight everywhere."""
    rows, new = made(4, 5, 3)
    views = {"clean": Outputs(logprobs=new), "pgd": Outputs(logprobs=new - 0.1)}
    on_clean = term(**S).losses(rows, views).metrics
    attacked = term(**{**S, "view": "pgd"}).losses(rows, views).metrics
    clips = {"clip_fraction", "clip_ratio/low_mean", "clip_ratio/high_mean"}
    assert clips <= on_clean.keys()
    assert attacked.keys() == (on_clean.keys() if term is CISPO else on_clean.keys() - clips)


# --------------------------------------------------------------------------------- sampler against trainer


def test_mismatch_by_hand():
    # log-ratios (ln 4, 0) and (-ln 2): token 4, 1 | 1/2; product 4 | 1/2; geometric mean 2 | 1/2
    old = torch.tensor([[0.0, math.log(4), 0.0], [0.0, -math.log(2), 5.0]], dtype=torch.float64)
    sampler, target = torch.zeros(2, 3, dtype=torch.float64), torch.tensor([[False, True, True], [False, True, False]])
    levels = {"token": [4.0, 1.0, 0.5], "sequence": [4.0, 4.0, 0.5], "geometric": [2.0, 2.0, 0.5]}
    for level, want in levels.items():
        r = mismatch.ratio(old, sampler, target, level=level)
        torch.testing.assert_close(r[target], torch.tensor(want, dtype=torch.float64), rtol=1e-14, atol=0)
        for mode, rule in {
            "truncate": lambda x: min(max(x, 0.6), 2.0),
            "mask": lambda x: x * (0.6 <= x <= 2.0),
            "reject": lambda x: float(0.6 <= x <= 2.0),
        }.items():
            w = mismatch.weights(old, sampler, target, level=level, mode=mode, low=0.6, high=2.0 + 1e-12)
            torch.testing.assert_close(w[target], torch.tensor([rule(x) for x in want], dtype=torch.float64))
            assert float(w[~target].abs().sum()) == 0.0
    # (4 + 1 + .5)^2 / (3 (16 + 1 + .25))
    ess = mismatch.effective_sample_size(mismatch.ratio(old, sampler, target, level="token"), target)
    assert float(ess) == pytest.approx(5.5**2 / (3 * 17.25))
    assert float(mismatch.effective_sample_size(sampler, target)) == 0.0


def test_diagnostics_by_hand():
    old = torch.tensor([[0.0, math.log(4), math.log(0.5)]], dtype=torch.float64)
    results = mismatch.diagnostics(old, torch.zeros(1, 3, dtype=torch.float64), torch.tensor([[False, True, True]]))
    assert results["sampling/sampling_logp_difference/mean"] == pytest.approx((math.log(4) + math.log(2)) / 2)
    assert results["sampling/sampling_logp_difference/max"] == pytest.approx(math.log(4))
    assert results["sampling/importance_sampling_ratio/min"] == pytest.approx(0.5)
    assert results["sampling/importance_sampling_ratio/mean"] == pytest.approx(2.25)
    assert results["sampling/importance_sampling_ratio/max"] == pytest.approx(4.0)


def test_token_importance_weights_make_the_estimator_unbiased():
    # One token, y ~ q (the sampler): E_q[(p / q) A grad log p] = E_p[A grad log p], summed over the vocabulary, exactly.
    q, logits = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), torch.tensor([0.1, -0.4, 0.7], dtype=torch.float64)
    gain = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    p = logits.softmax(0)
    w = mismatch.weights(
        p.log()[:, None], q.log()[:, None], torch.ones(3, 1, dtype=torch.bool), level="token", mode="truncate", low=0.0, high=99.0
    )
    leaf = logits.clone().requires_grad_()
    (q * w[:, 0] * gain * leaf.log_softmax(0)).sum().backward()
    want = p * (gain - (p * gain).sum())
    torch.testing.assert_close(leaf.grad, want, rtol=0, atol=1e-15)


# --------------------------------------------------------------------------------------------- unified, KL


def test_one_estimator_is_sft_reinforce_ppo_and_luffy():
    """The table of `functional.unified`, method by method, against the objectives themselves."""
    rows, new = made(5, 3, 4, 2)
    target, ones = rows.tokens.target, torch.ones_like(new)
    count = target.sum()

    def table(reference: torch.Tensor, advantages: torch.Tensor, stable: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        leaf = new.clone().requires_grad_()
        (unified.estimator(leaf, reference, advantages, stable) * where / count).sum().backward()
        return leaf.grad

    ratio = (new - rows.old_logprobs).exp()
    a = rows.advantages
    keeps = 1 - policy.clip_is_active(ratio, a, low=0.2, high=0.2)
    torch.testing.assert_close(gradient(REINFORCE(**S), rows, new)[1], table(new, a, ones, target), rtol=0, atol=1e-15)
    torch.testing.assert_close(gradient(PPO(**S), rows, new)[1], table(rows.old_logprobs, a, keeps, target), rtol=0, atol=1e-15)
    off = torch.tensor([True, False, True, False])
    demos = replace(rows, offpolicy=off)
    shaped = 0.1 / (new.exp() + 0.1) ** 2
    on_rows, off_rows = target & ~off[:, None], target & off[:, None]
    want = table(rows.old_logprobs, a, ones, on_rows) + table(torch.zeros_like(new), a, shaped, off_rows)
    torch.testing.assert_close(gradient(LUFFY(**S), demos, new)[1], want, rtol=0, atol=1e-15)
    sft = table(new, ones, ones, off_rows) * count / off_rows.sum()
    torch.testing.assert_close(gradient(SFT(**S), demos, new)[1], sft, rtol=0, atol=1e-15)


def test_demonstrations_are_for_luffy_and_sft_alone():
    rows, new = made(5, 3, 4, 2)
    off = torch.tensor([True, False, False, False])
    demos = replace(rows, offpolicy=off, ref_logprobs=rows.old_logprobs)
    for term in (PPO(**S), GRPO(**S), GSPO(**S), SAPO(**S), CISPO(**S), REINFORCE(**S), GMPO(**S), KL(**S)):
        _, got = gradient(term, demos, new)
        assert float(got[0].abs().sum()) == 0.0, term
        alone = gradient(term, demos.index(torch.tensor([1, 2, 3])), new[1:])[1]
        torch.testing.assert_close(got[1:], alone, rtol=0, atol=1e-15)


def test_importance_weighted_kl_has_the_gradient_of_the_kl_off_policy():
    # y ~ q. sum_y q r k(y) with r = p / q: for k1 and k3 the gradient is that of KL(p || ref); without r it is not.
    logits, ref = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64), torch.tensor([-0.1, 0.4, 0.0], dtype=torch.float64).log_softmax(0)
    q = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    leaf = logits.clone().requires_grad_()
    (leaf.softmax(0) * (leaf.log_softmax(0) - ref)).sum().backward()
    want = leaf.grad.clone()
    every = torch.ones(3, 1, dtype=torch.bool)
    tokens = Tokens(ids=torch.zeros(3, 1, dtype=torch.long), mask=every, target=every, group=torch.arange(3), key=torch.arange(3))
    rows = RolloutRows(
        tokens=tokens, rewards=torch.zeros(3, 1), advantages=torch.zeros(3, 1), sampler_logprobs=q.log()[:, None],
        finished=torch.ones(3, dtype=torch.bool), old_logprobs=q.log()[:, None], ref_logprobs=ref[:, None],
    )  # fmt: skip
    for name in divergence.ESTIMATORS:
        for importance in (True, False):
            leaf = logits.clone().requires_grad_()
            losses = KL(**S, estimator=name, importance=importance).losses(rows, {"clean": Outputs(logprobs=leaf.log_softmax(0)[:, None])})
            (q * losses.values[:, 0]).sum().backward()
            assert torch.allclose(leaf.grad, want, atol=1e-14) == (importance and name in ("k1", "k3")), (name, importance)


def test_kl_gradients_on_policy():
    # y ~ p: only k2 (and k3+, which borrows it) has the gradient of KL(p || ref); that of k1 is zero.
    logits, ref = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64), torch.tensor([-0.1, 0.4, 0.0], dtype=torch.float64).log_softmax(0)
    p = logits.softmax(0)
    leaf = logits.clone().requires_grad_()
    (leaf.softmax(0) * (leaf.log_softmax(0) - ref)).sum().backward()
    want = leaf.grad.clone()
    for name, estimator in divergence.ESTIMATORS.items():
        leaf = logits.clone().requires_grad_()
        (p * estimator(leaf.log_softmax(0), ref)).sum().backward()
        assert torch.allclose(leaf.grad, want, atol=1e-14) == (name in ("k2", "k3+")), name
        if name == "k1":
            assert float(leaf.grad.abs().max()) < 1e-15


# ------------------------------------------------------------------------------------------------- refusals

BAD = [
    (lambda: PPO(**S, top_entropy=0.0), "objectives.ppo.top_entropy: 0 given"),
    (lambda: PPO(**S, weighting="tokn"), "Did you mean 'token'"),
    (lambda: PPO(**S, dual_clip=0.5), "objectives.ppo.dual_clip: 0.5 given"),
    (lambda: GSPO(**S, form="sequnce"), "Did you mean 'sequence'"),
    (lambda: SAPO(**S, tau_negative=0.0), "objectives.sapo.tau_negative"),
    (lambda: DrGRPO(**S, length=0), "objectives.dr_grpo.length"),
    (lambda: KLCov(**S, fraction=0.0), "objectives.kl_cov.fraction: 0 given"),
    (lambda: ClipCov(**S, low_cov=2.0, high_cov=1.0), "low_cov: 2.0 given; it must be below high_cov, 1.0"),
    (lambda: GMPO(**S, clip=0.0), "objectives.gmpo.clip"),
    (lambda: LUFFY(**S, shape=0.0), "objectives.luffy.shape"),
    (lambda: Correction(level="tokens"), "Did you mean 'token'"),
    (lambda: Correction(low=2.0, high=1.0), "low: 2.0 given; it must be below high, 1.0"),
]


@pytest.mark.parametrize("number", range(len(BAD)))
def test_bad_options_are_one_sentence(number):
    build, sentence = BAD[number]
    with pytest.raises(ConfigError) as error:
        build()
    assert sentence in str(error.value)

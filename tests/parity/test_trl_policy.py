"""The policy objectives as TRL 1.16 computes them: loss, gradient with respect to the new log-probabilities, metrics.

TRL's own code, run on random ragged draws (`tests/helpers/trl_grpo.py`): six groups of four, prompts and responses of different lengths,
observations inside responses, ratios far beyond every clip. Where the two differ on purpose, the test says so and has the number.
"""

import math
from dataclasses import replace

import pytest
import torch
from helpers.trl_grpo import Trainer, draw

from advalign.functional import mismatch, policy
from advalign.objectives._policy import Correction
from advalign.objectives.cispo import CISPO
from advalign.objectives.dapo import DAPO
from advalign.objectives.dr_grpo import DrGRPO
from advalign.objectives.entropy import Entropy
from advalign.objectives.grpo import GRPO
from advalign.objectives.gspo import GSPO
from advalign.objectives.kl import KL
from advalign.objectives.ppo import PPO
from advalign.objectives.reinforce import REINFORCE
from advalign.objectives.sapo import SAPO
from advalign.types import Outputs

trl = pytest.importorskip("trl", reason="TRL is not installed: nothing to compare with")
if not trl.__version__.startswith("1.16."):
    pytest.skip(f"TRL is {trl.__version__}: what its trainer asks for is written down for 1.16", allow_module_level=True)

# TRL makes some of its numbers (temperatures, denominators) in the default precision.
pytestmark = pytest.mark.usefixtures("double")
S = {"source": "s"}
SEEDS = range(4)
EXACT = 1e-12

SEQUENCE = {"loss_type": "grpo", "importance_sampling_level": "sequence"}
KINDS = {
    "grpo": (GRPO(**S), {"loss_type": "grpo"}),
    "dr_grpo": (DrGRPO(**S, length=9), {"loss_type": "dr_grpo", "max_completion_length": 9}),
    "dapo": (DAPO(**S), {"loss_type": "dapo", "epsilon_high": 0.28}),
    "bnpo is ppo": (PPO(**S), {"loss_type": "bnpo"}),
    "gspo": (GSPO(**S), SEQUENCE | {"epsilon": 3e-4, "epsilon_high": 4e-4}),
    "gspo, wide": (GSPO(**S, clip_low=0.2, clip_high=0.3), SEQUENCE | {"epsilon_high": 0.3}),
    "gspo, by token": (GSPO(**S, clip_low=0.2, clip_high=0.2, weighting="token"), SEQUENCE | {"loss_type": "dapo"}),
    # There `epsilon_high` is the cap itself, here `clip_high` is its distance from 1.
    "cispo": (CISPO(**S, clip_high=0.7), {"loss_type": "cispo", "epsilon_high": 1.7}),
    "sapo": (SAPO(**S), {"loss_type": "sapo"}),
    "sapo, steep": (
        SAPO(**S, tau_positive=2.0, tau_negative=0.5),
        {"loss_type": "sapo", "sapo_temperature_pos": 2.0, "sapo_temperature_neg": 0.5},
    ),
}


def ours(terms, rows, new, part=None):
    """The sum of terms as an update computes it: weights of all rows, losses of a `part` of them."""
    total = torch.zeros(())
    for term in terms:
        w = term.weights(rows)
        part_rows, cut, values = (rows, new, w.values) if part is None else (rows.index(part), new[part], w.values[part])
        losses = term.losses(part_rows, {"clean": Outputs(logprobs=cut, entropy=part_rows.old_entropy)}).values
        total = total + term.coef * (values / w.count * losses).sum()
    return total


def metrics(term, rows, new):
    logs = term.losses(rows, {"clean": Outputs(logprobs=new, entropy=rows.old_entropy)}).metrics
    return {name: float((v * w).sum() / w.sum()) for name, (v, w) in logs.items()}


def pulled(loss, leaf):
    (gradient,) = torch.autograd.grad(loss, leaf)
    return gradient


def new_leaves(new):
    return new.clone().requires_grad_(), new.clone().requires_grad_()


def same(terms, trainer, new):
    """Loss, and gradient with respect to "B T" log-probabilities: nothing off target, and enough of it on target."""
    leaf, other = new_leaves(new)
    mine, (theirs,) = ours(terms, trainer.rows, leaf), trainer.losses(other)
    torch.testing.assert_close(mine.detach(), theirs.detach(), rtol=0, atol=EXACT)
    gradient, want = pulled(mine, leaf), pulled(theirs, other)
    assert float(want.abs().max()) > 1e-3
    torch.testing.assert_close(gradient, want, rtol=0, atol=EXACT)
    return gradient


# ------------------------------------------------------------------------------------------------------- losses


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradient(kind, seed, gaps):
    term, options = KINDS[kind]
    batch = draw(seed, gaps=gaps)
    trainer = Trainer(batch, **options)
    gradient = same([term], trainer, batch.new)
    target, advantages = batch.rows.tokens.target, trainer.rows.advantages
    assert float(advantages.min()) < 0 < float(advantages.max())
    still = (gradient == 0) & target & (advantages != 0)
    if kind.startswith(("cispo", "sapo")):
        assert not still.any()  # neither drops a token
    else:
        assert bool((advantages[still] > 0).any())  # clipped from above and from below
        assert bool((advantages[still] < 0).any())


@pytest.mark.parametrize("seed", SEEDS)
def test_gspo_of_tokens_has_the_gradient_of_gspo(seed):
    # TRL knows no GSPO-token: with one advantage per response it has the gradient of the sequence form, and so TRL's.
    trainer = Trainer(batch := draw(seed), **SEQUENCE | {"epsilon_high": 0.3})
    same([GSPO(**S, clip_low=0.2, clip_high=0.3, form="token")], trainer, batch.new)
    with pytest.raises(ValueError, match="Unknown importance sampling level: sequence_token"):
        Trainer(batch, importance_sampling_level="sequence_token").losses(batch.new)


@pytest.mark.parametrize("seed", SEEDS)
def test_defaults(seed):
    # Untouched on both sides: clips 0.2, temperatures 1 and 1.05, no dual clip.
    for term, kind in ((GRPO(**S), "grpo"), (SAPO(**S), "sapo"), (PPO(**S), "bnpo")):
        same([term], Trainer(batch := draw(seed), loss_type=kind), batch.new)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "dapo", "bnpo is ppo", "gspo, wide"])
def test_delta_is_dual_clip(kind, seed):
    # INTELLECT-2's delta is the c of dual clip; with drifts this large it binds on disliked tokens.
    term, options = KINDS[kind]
    trainer = Trainer(batch := draw(seed, drift=1.6), **options, delta=1.8)
    gradient = same([replace(term, dual_clip=1.8)], trainer, batch.new)
    ratio = policy.RATIOS[term.level](batch.new, batch.rows.old_logprobs, batch.rows.tokens.target)
    bound = batch.rows.tokens.target & (ratio > 1.8) & (trainer.rows.advantages < 0)
    assert bound.any()
    assert not gradient[bound].any()


def test_delta_inside_the_clip_also_binds_on_liked_tokens_there():
    # A = 1, r = 1.15, high 0.2: ours is -1.15 and has a gradient for any c; there delta 1.1 makes it -1.1 and flat.
    batch = draw(0, groups=1)
    target = batch.rows.tokens.target
    new, n = batch.rows.old_logprobs + math.log(1.15), int(target.sum())
    trainer = Trainer(batch, loss_type="bnpo", delta=1.1)
    trainer.inputs["advantages"], rows = torch.ones(4), replace(trainer.rows, advantages=target.double())
    leaf, other = new_leaves(new)
    mine, (theirs,) = ours([PPO(**S, dual_clip=1.1)], rows, leaf), trainer.losses(other)
    assert (float(mine.detach()), float(theirs.detach())) == pytest.approx((-1.15, -1.1), abs=1e-14)
    torch.testing.assert_close(pulled(mine, leaf), -1.15 / n * target, rtol=0, atol=1e-15)
    assert not pulled(theirs, other).any()


@pytest.mark.parametrize("kind", ["grpo", "dapo", "bnpo is ppo", "gspo", "cispo", "sapo"])
def test_first_update_of_a_draw(kind):
    # One pass: neither side has old log-probabilities, the ratio is 1, and all are REINFORCE under their own weights.
    term, options = KINDS[kind]
    trainer = Trainer(batch := draw(5), **options, num_iterations=1)
    assert trainer.rows.old_logprobs is None
    gradient = same([term], trainer, batch.new)
    new = batch.new.clone().requires_grad_()
    loss = ours([REINFORCE(**S, weighting=term.weighting)], trainer.rows, new)
    torch.testing.assert_close(pulled(loss, new), gradient, rtol=0, atol=1e-15)


def test_advantages_per_token():
    trainer = Trainer(batch := draw(3), loss_type="bnpo")
    per_token = torch.randn_like(batch.new) * batch.rows.tokens.target
    trainer.inputs["advantages"], trainer.rows = batch.completions(per_token), replace(trainer.rows, advantages=per_token)
    same([PPO(**S)], trainer, batch.new)


def test_a_ratio_that_would_overflow():
    # log r = 25, A < 0: -r A is e^25 |A| there; here log-ratios end at 20, where the gradient is zero.
    batch = draw(0, groups=1, size=4)
    target = batch.rows.tokens.target
    trainer = Trainer(batch, loss_type="bnpo")
    trainer.inputs["advantages"], rows = -torch.ones(4), replace(trainer.rows, advantages=-target.double())
    leaf, other = new_leaves(batch.rows.old_logprobs + 25)
    mine, (theirs,) = ours([PPO(**S)], rows, leaf), trainer.losses(other)
    assert (math.log(float(mine.detach())), math.log(float(theirs.detach()))) == pytest.approx((20, 25), abs=1e-12)
    assert not pulled(mine, leaf).any()
    assert pulled(theirs, other).any()


# --------------------------------------------------------------------------------------- KL, entropy, correction


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("kind", ["grpo", "dapo", "bnpo is ppo", "cispo", "sapo", "gspo, by token", "gspo"])
def test_kl(kind, corrected, seed):
    # There the penalty is averaged as the loss is; here it is a term with a weighting of its own.
    term, options = KINDS[kind]
    trainer = Trainer(batch := draw(seed), **options, beta=0.3, use_bias_correction_kl=corrected)
    near = KL(**S, estimator="k3", importance=corrected, weighting=term.weighting, coef=0.3)
    if not (corrected and kind.startswith("gspo")):
        same([term, near], trainer, batch.new)
        return
    # There k3 is then multiplied by the ratio of the response, which leaves it biased; ours is the ratio of the token.
    leaf, other = new_leaves(batch.new)
    mine, theirs = pulled(ours([term, near], trainer.rows, leaf), leaf), pulled(trainer.losses(other)[0], other)
    assert float((mine - theirs).abs().max()) > 1e-3


@pytest.mark.parametrize("seed", SEEDS)
def test_kl_of_dr_grpo(seed):
    # There the penalty is a sum over B L as well: ours, a mean over N tokens, times N / (B L), which depends on the draw.
    term, options = KINDS["dr_grpo"]
    trainer = Trainer(batch := draw(seed), **options, beta=0.3)
    factor = int(batch.rows.tokens.target.sum()) / (24 * 9)
    same([term, KL(**S, estimator="k3", importance=True, coef=0.3 * factor)], trainer, batch.new)


MODES = {
    "token_truncate": ("token", "truncate"),
    "token_mask": ("token", "mask"),
    "sequence_truncate": ("sequence", "truncate"),
    "sequence_mask": ("sequence", "mask"),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("low", "high"), [(None, 1.5), (0.7, 1.5)])
@pytest.mark.parametrize("mode", MODES)
def test_correction_of_the_sampler(mode, low, high, seed):
    options = {"vllm_importance_sampling_mode": mode, "vllm_importance_sampling_clip_min": low, "vllm_importance_sampling_clip_max": high}
    level, kind = MODES[mode]
    correction = Correction(level=level, mode=kind, low=low or 0.0, high=high)
    for name in ("grpo", "dapo", "cispo", "sapo", "gspo"):
        term, more = KINDS[name]
        trainer = Trainer(batch := draw(seed), **more, use_vllm=True, **options, beta=0.1)
        w = trainer.inputs["importance_sampling_ratio"]
        assert bool((w == (high if kind == "truncate" else 0.0)).any())  # the bound is met
        # The penalty has no such weights on either side.
        near = KL(**S, estimator="k3", importance=True, weighting=term.weighting, coef=0.1)
        if name == "gspo":
            trainer.self.args.use_bias_correction_kl, near = False, replace(near, importance=False)
        same([replace(term, correction=correction), near], trainer, batch.new)


def test_default_correction_there():
    # On wherever the sampler is another engine: the product over a response, at most 3, else the response is dropped.
    for seed in SEEDS:
        trainer = Trainer(batch := draw(seed), use_vllm=True, epsilon_high=0.28)
        same([DAPO(**S, correction=Correction(level="sequence", mode="mask", high=3.0))], trainer, batch.new)


@pytest.mark.parametrize("mode", MODES)
def test_metrics_of_the_sampler(mode):
    trainer = Trainer(batch := draw(1), use_vllm=True, vllm_importance_sampling_mode=mode, vllm_importance_sampling_clip_max=1.5)
    rows, target = batch.rows, batch.rows.tokens.target
    logs = mismatch.diagnostics(rows.old_logprobs, rows.sampler_logprobs, target)
    for name in ("sampling/sampling_logp_difference/mean", "sampling/sampling_logp_difference/max"):
        assert trainer.metrics[name] == pytest.approx([logs[name]], abs=EXACT)
    # The ratios are logged after the bound there, and one per response at its level; ours are those of tokens, unbounded.
    level, kind = MODES[mode]
    w = mismatch.weights(rows.old_logprobs, rows.sampler_logprobs, target, level=level, mode=kind, low=0.0, high=1.5)
    on_target = w[target] if level == "token" else w.amax(1)
    for name, value in {"min": on_target.min(), "mean": on_target.mean(), "max": on_target.max()}.items():
        full = f"sampling/importance_sampling_ratio/{name}"
        assert trainer.metrics[full] == pytest.approx([float(value)], abs=EXACT)
    assert logs["sampling/importance_sampling_ratio/max"] > 1.5


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("share", [0.1, 0.2, 0.5, 0.8])
def test_high_entropy_tokens(share, seed):
    trainer = Trainer(batch := draw(seed, gaps=seed % 2 == 1), epsilon_high=0.28, top_entropy_quantile=share)
    target, entropy = batch.rows.tokens.target, batch.rows.old_entropy
    selected = policy.high_entropy(entropy, target, fraction=share)
    theirs = trainer.kept(batch.completions(entropy), batch.completions(target), share)
    assert torch.equal(batch.completions(selected & target) & batch.completions(target), theirs)
    gradient = same([DAPO(**S, top_entropy=share)], trainer, batch.new)
    assert not gradient[~selected].any()


def test_high_entropy_tokens_of_every_count():
    # Thresholds that fall on a token, and those between two.
    trainer, g = Trainer(draw(0)), torch.Generator().manual_seed(2)
    for n in range(1, 60):
        entropy, mask = torch.rand(1, n, generator=g, dtype=torch.float32).double(), torch.ones(1, n, dtype=torch.bool)
        for share in (0.2, 0.25, 0.5, 0.75):
            assert torch.equal(policy.high_entropy(entropy, mask, fraction=share), trainer.kept(entropy, mask, share)), (n, share)


@pytest.mark.parametrize("kind", ["grpo", "dapo"])
def test_entropy_bonus(kind):
    # Averaged over tokens whatever the loss: our own default. Of the gradient only that of log p; the entropies are given.
    term, options = KINDS[kind]
    trainer = Trainer(batch := draw(2), **options, entropy_coef=0.05)
    bonus = Entropy(**S, coef=0.05)
    same([term, bonus], trainer, batch.new)
    assert trainer.metrics["entropy"] == pytest.approx([metrics(bonus, trainer.rows, batch.new)["entropy"]], abs=EXACT)


# ------------------------------------------------------------------------------------------------------ metrics


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "dapo", "bnpo is ppo"])
def test_clip_ratios(kind, seed):
    term, options = KINDS[kind]
    trainer = Trainer(batch := draw(seed, gaps=True), **options)
    trainer.losses(batch.new)
    logs = metrics(term, trainer.rows, batch.new)
    for mine, theirs in {"clip_ratio/low_mean": "low_mean", "clip_ratio/high_mean": "high_mean", "clip_fraction": "region_mean"}.items():
        assert 0 < logs[mine] < 1
        assert trainer.metrics[f"clip_ratio/{theirs}"] == pytest.approx([logs[mine]], abs=1e-7)  # float32 there


@pytest.mark.parametrize("seed", SEEDS)
def test_clip_ratios_of_gspo_count_responses_there_and_tokens_here(seed):
    term, options = KINDS["gspo, wide"]
    trainer = Trainer(batch := draw(seed), **options)
    trainer.losses(batch.new)
    values, weight = term.losses(trainer.rows, {"clean": Outputs(logprobs=batch.new)}).metrics["clip_fraction"]
    of_rows, of_tokens = (values * weight).amax(1).mean(), (values * weight).sum() / weight.sum()
    assert trainer.metrics["clip_ratio/region_mean"] == pytest.approx([float(of_rows)], abs=1e-7)
    assert abs(of_rows - of_tokens) > 1e-3
    same_length = Trainer(batch := draw(seed, length=1), **options)
    same_length.losses(batch.new)
    logs = metrics(term, same_length.rows, batch.new)["clip_fraction"]
    assert same_length.metrics["clip_ratio/region_mean"] == pytest.approx([logs], abs=1e-7)


@pytest.mark.parametrize("seed", SEEDS)
def test_clip_ratio_of_cispo(seed):
    term, options = KINDS["cispo"]
    trainer = Trainer(batch := draw(seed), **options)
    trainer.losses(batch.new)
    logs = metrics(term, trainer.rows, batch.new)
    assert trainer.metrics["cispo_clip_ratio"] == pytest.approx([logs["clip_ratio/high_mean"]], abs=1e-7)
    assert 0 < logs["clip_ratio/high_mean"] < 1


@pytest.mark.parametrize("corrected", [False, True])
def test_kl_metric(corrected):
    # Ours is the mean of k3; there, with its correction (the default), that of r k3.
    trainer = Trainer(batch := draw(4), beta=0.3, use_bias_correction_kl=corrected)
    trainer.losses(batch.new)
    plain = metrics(KL(**S), trainer.rows, batch.new)["k3"]
    loss = float(ours([KL(**S, estimator="k3", importance=corrected)], trainer.rows, batch.new))
    assert trainer.metrics["kl"] == pytest.approx([loss], abs=1e-12)
    assert (abs(plain - loss) < 1e-12) != corrected


# -------------------------------------------------------------------------- accumulation, empty rows, several updates


def halves(term, trainer, new):
    """Gradients of a draw cut in two: ours by the weights of the whole, TRL's by its own cut and normaliser."""
    leaf, other = new_leaves(new)
    mine = sum(ours([term], trainer.rows, leaf, part=part) for part in torch.arange(len(new)).chunk(2))
    return pulled(mine, leaf), pulled(sum(trainer.losses(other, 2)), other)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "bnpo is ppo"])
def test_accumulation(kind, seed):
    term, options = KINDS[kind]
    whole = same([term], Trainer(batch := draw(seed), **options), batch.new)
    mine, theirs = halves(term, Trainer(batch, **options, steps_per_generation=2), batch.new)
    torch.testing.assert_close(mine, whole, rtol=0, atol=1e-15)
    torch.testing.assert_close(theirs, whole, rtol=0, atol=EXACT)


@pytest.mark.parametrize("seed", range(3))
def test_accumulation_of_bnpo_is_a_mean_of_local_means_there(seed):
    # A token of a micro-batch of N_k tokens weighs 1 / (2 N_k) there, and 1 / N here.
    term, options = KINDS["bnpo is ppo"]
    trainer = Trainer(batch := draw(seed), **options, steps_per_generation=2)
    mine, theirs = halves(term, trainer, batch.new)
    counts = batch.rows.tokens.target.sum(1).view(2, 12).sum(1)
    factor = (counts.sum() / (2 * counts)).repeat_interleave(12)[:, None]
    torch.testing.assert_close(theirs, mine * factor, rtol=0, atol=EXACT)
    assert float((factor - 1).abs().max()) > 0.01
    leaf = batch.new.clone().requires_grad_()
    torch.testing.assert_close(mine, pulled(ours([term], trainer.rows, leaf), leaf), rtol=0, atol=1e-15)


def test_accumulation_moves_the_entropy_threshold_there():
    # There each micro-batch has a quantile of its own; here the update has one, so a certain half may lose all its tokens.
    batch = draw(0)
    batch.rows.old_entropy[:12] *= 0.1
    trainer = Trainer(batch, top_entropy_quantile=0.2, steps_per_generation=2, epsilon_high=0.28)
    mine, theirs = halves(DAPO(**S, top_entropy=0.2), trainer, batch.new)
    assert not mine[:12].any()
    assert theirs[:12].any()
    for part in torch.arange(24).chunk(2):
        selected = policy.high_entropy(batch.rows.old_entropy[part], batch.rows.tokens.target[part], fraction=0.2)
        leaf = batch.new.clone().requires_grad_()
        whole = pulled(ours([DAPO(**S)], trainer.rows, leaf), leaf)
        torch.testing.assert_close(theirs[part], whole[part] * selected, rtol=0, atol=EXACT)


@pytest.mark.parametrize("kind", ["dapo", "cispo"])
def test_two_updates_of_a_draw_share_its_count_there(kind):
    # There an update of N_k tokens divides by half the tokens of the draw; here by its own: a factor N_k / (N / 2).
    term, options = KINDS[kind]
    trainer = Trainer(batch := draw(1), **options, steps_per_generation=2)
    trainer.self.current_gradient_accumulation_steps = 1
    leaf = batch.new.clone().requires_grad_()
    total = int(batch.rows.tokens.target.sum())
    for part, loss in zip(torch.arange(24).chunk(2), trainer.losses(leaf, 2), strict=True):
        rows, other = trainer.rows.index(part), batch.new[part].clone().requires_grad_()
        mine = pulled(ours([term], rows, other), other)
        factor = int(rows.tokens.target.sum()) / (total / 2)
        assert abs(factor - 1) > 0.01
        theirs = torch.autograd.grad(loss, leaf, retain_graph=True)[0][part]
        torch.testing.assert_close(theirs, mine * factor, rtol=0, atol=EXACT)


@pytest.mark.parametrize("kind", ["dapo", "grpo"])
def test_responses_that_were_cut_off(kind):
    # Out of loss and count on both sides by token; by response they stay in the count there, and leave it here.
    trainer = Trainer(batch := draw(2), loss_type=kind, mask_truncated_completions=True, epsilon_high=0.28)
    term = DAPO(**S, mask_truncated=True, weighting="token" if kind == "dapo" else "sequence")
    selected = float(batch.rows.finished.double().mean())
    assert 0 < selected < 1
    same([replace(term, coef=1.0 if kind == "dapo" else selected)], trainer, batch.new)

"""The same losses as TRL computes them: its own trainers' loss code, run on random ragged batches without a trainer around it.

TRL stacks a batch of pairs as all chosen, then all rejected; here they alternate. Its log-probabilities are shifted by one.
"""

from collections import defaultdict
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch

from advalign.objectives.dft import DFT
from advalign.objectives.dpo import DPO
from advalign.objectives.hinge import Hinge
from advalign.objectives.ipo import IPO
from advalign.objectives.kto import KTO
from advalign.objectives.orpo import ORPO
from advalign.objectives.reward_model import RewardModel
from advalign.objectives.sft import SFT
from advalign.objectives.simpo import SimPO
from advalign.types import DemoRows, FeedbackRows, Outputs, PairRows, Tokens

pytest.importorskip("trl", reason="TRL is not installed: nothing to compare with")

B, T, BETA = 8, 9, 0.3
STACKED = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])


def trainer(module: str, name: str):
    """A trainer class of TRL, or a skip where this version keeps it elsewhere."""
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        pytest.skip(f"this version of TRL has no {module}.{name} ({error})")


def given(seed: int):
    """Tokens of ragged rows, log-probabilities that are zero off target, and those of a reference."""
    g = torch.Generator().manual_seed(seed)
    starts, ends = torch.randint(1, 4, (B, 1), generator=g), torch.randint(5, T + 1, (B, 1), generator=g)
    positions = torch.arange(T)[None]
    target = (positions >= starts) & (positions < ends)
    tokens = Tokens(
        ids=torch.zeros(B, T, dtype=torch.long), mask=positions < ends, target=target, group=torch.arange(B), key=torch.arange(B)
    )
    logprobs, ref = (-torch.rand(B, T, generator=g, dtype=torch.float64) * 3 * target for _ in range(2))
    return tokens, logprobs, ref


def ours(term, rows, **fields):
    weights, losses = term.weights(rows), term.losses(rows, {"clean": Outputs(**fields)})
    loss = (weights.values / weights.count * losses.values).sum()
    return loss, {name: float((v * w).sum() / w.sum()) for name, (v, w) in losses.metrics.items()}


def runner(**fields):
    """What TRL's loss functions ask of `self`."""
    accelerator = SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x, parallelism_config=None)
    base = {
        "model": SimpleNamespace(training=True),
        "accelerator": accelerator,
        "aux_loss_enabled": False,
        "precompute_ref_logps": True,
        "_metrics": defaultdict(lambda: defaultdict(list)),
        "_total_train_tokens": 0,
        "_tp_size": 1,
    }
    return SimpleNamespace(**base, **fields)


def outputs(log_probs, target):
    """A forward of TRL's fused head, which is zero off target; only `log_probs` matters for the loss."""
    zero = torch.zeros_like(log_probs)
    mask = target[:, 1:]
    return SimpleNamespace(log_probs=log_probs * mask, entropy=zero, mean_logits=zero, is_top1=mask, label_mask=mask, aux_loss=None)


def same(mine, theirs, leaf, other, order=slice(None), atol=1e-10):
    """Loss, and gradient with respect to the log-probabilities."""
    torch.testing.assert_close(mine.detach().double(), theirs.detach().double(), rtol=0, atol=atol)
    (gradient,) = torch.autograd.grad(mine, leaf)
    (want,) = torch.autograd.grad(theirs, other)
    assert float(want.abs().max()) > 1e-4  # the comparison says something
    torch.testing.assert_close(gradient[order][:, 1:], want, rtol=0, atol=atol)


PAIRED = {
    "sigmoid": (DPO(source="s", beta=BETA), {}),
    "robust": (DPO(source="s", beta=BETA, flip_rate=0.2), {"label_smoothing": 0.2}),
    "hinge": (Hinge(source="s", beta=BETA), {}),
    "ipo": (IPO(source="s", beta=BETA, normalize=True), {}),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", PAIRED)
def test_pairs(kind, seed):
    cls = trainer("trl.trainer.dpo_trainer", "DPOTrainer")
    term, options = PAIRED[kind]
    tokens, logprobs, ref = given(seed)
    leaf, other = logprobs.clone().requires_grad_(), logprobs[STACKED][:, 1:].clone().requires_grad_()
    loss, metrics = ours(term, PairRows(tokens=tokens, ref_logprobs=ref), logprobs=leaf)
    chosen, rejected = ref.sum(1)[STACKED].chunk(2)
    self = runner(
        beta=BETA, loss_types=[kind], loss_weights=[1.0], f_divergence_type="reverse_kl", ld_alpha=None, use_weighting=False,
        label_smoothing=options.get("label_smoothing", 0.0),
    )  # fmt: skip
    inputs = {
        "input_ids": tokens.ids[STACKED], "attention_mask": tokens.mask[STACKED].long(), "completion_mask": tokens.target[STACKED].long(),
        "ref_chosen_logps": chosen, "ref_rejected_logps": rejected,
    }  # fmt: skip
    theirs = cls._compute_loss(self, lambda **_: outputs(other, tokens.target[STACKED]), inputs, False)
    same(loss, theirs, leaf, other, STACKED)
    assert metrics == pytest.approx({name: self._metrics["train"][name][0] for name in metrics}, abs=1e-6)  # some pass through float32


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.25, 0.75)])
@pytest.mark.parametrize("seed", range(3))
def test_kto(seed, weights):
    cls = trainer("trl.trainer.kto_trainer", "KTOTrainer")
    tokens, logprobs, ref = given(seed)
    desirable = torch.tensor([1, 0, 1, 1, 0, 0, 1, 0]).bool()
    kl, ref_kl = (torch.randn(B, generator=torch.Generator().manual_seed(seed + n), dtype=torch.float64) - n for n in (10, 11))
    anchor = (kl - ref_kl).mean().clamp(min=0)
    assert float(anchor) > 0.1
    leaf, other = logprobs.clone().requires_grad_(), logprobs[:, 1:].clone().requires_grad_()
    term = KTO(source="s", beta=BETA, desirable_weight=weights[0], undesirable_weight=weights[1])
    rows = FeedbackRows(tokens=tokens, desirable=desirable, ref_logprobs=ref, anchor=anchor.repeat(B))
    loss, metrics = ours(term, rows, logprobs=leaf)
    self = runner(
        beta=BETA, loss_type="kto", calculate_KL=True, desirable_weight=weights[0], undesirable_weight=weights[1],
        _compute_kl_logps=lambda model, batch: kl,
    )  # fmt: skip
    inputs = {
        "input_ids": tokens.ids, "attention_mask": tokens.mask.long(), "completion_mask": tokens.target.long(), "label": desirable,
        "ref_logps": ref.sum(1), "ref_KL_logps": ref_kl,
    }  # fmt: skip
    theirs = cls._compute_loss(self, lambda **_: outputs(other, tokens.target), inputs, False)
    same(loss, theirs, leaf, other)
    assert metrics == pytest.approx({name: self._metrics["train"][name][0] for name in metrics}, abs=1e-10)


@pytest.mark.parametrize(("kind", "term"), [("nll", SFT(source="s")), ("dft", DFT(source="s"))])
def test_imitation(kind, term):
    cls = trainer("trl.trainer.sft_trainer", "SFTTrainer")
    tokens, logprobs, _ = given(5)
    leaf, other = logprobs.clone().requires_grad_(), logprobs[:, 1:].clone().requires_grad_()
    loss, _ = ours(term, DemoRows(tokens=tokens), logprobs=leaf)
    self = runner(args=SimpleNamespace(loss_type=kind, average_tokens_across_devices=False), compute_loss_func=None, label_smoother=None)
    inputs = {"input_ids": tokens.ids, "attention_mask": tokens.mask.long(), "labels": tokens.ids}
    theirs = cls.compute_loss(self, lambda **_: outputs(other, tokens.target), inputs)
    same(loss, theirs, leaf, other)


@pytest.mark.parametrize("centre", [None, 0.01])
@pytest.mark.parametrize("with_margin", [False, True])
def test_reward_model(centre, with_margin):
    cls = trainer("trl.trainer.reward_trainer", "RewardTrainer")
    tokens, _, _ = given(6)
    scores = torch.randn(B, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    margin = torch.rand(B // 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    leaf, other = scores.squeeze(1).clone().requires_grad_(), scores[STACKED].clone().requires_grad_()
    rows = PairRows(tokens=tokens, margin=margin.repeat_interleave(2) if with_margin else None)
    loss, metrics = ours(RewardModel(source="s", centre=centre or 0.0), rows, scores=leaf)
    self = runner(args=SimpleNamespace(center_rewards_coefficient=centre))
    inputs = {"attention_mask": tokens.mask.long()} | ({"margin": margin} if with_margin else {})
    theirs = cls.compute_loss(self, lambda **_: SimpleNamespace(logits=other), inputs)
    torch.testing.assert_close(loss, theirs, rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(loss, leaf)
    (want,) = torch.autograd.grad(theirs, other)
    torch.testing.assert_close(gradient[STACKED][:, None], want, rtol=0, atol=1e-12)
    logs = self._metrics["train"]
    assert metrics["rewards/accuracies"] == pytest.approx(logs["accuracy"][0])
    assert metrics["rewards/margins"] == pytest.approx(logs["margin"][0])


def means(logprobs, target):
    """Length-normalised, as TRL's forward returns them to these two losses: chosen, rejected."""
    return ((logprobs * target).sum(1) / target.sum(1))[STACKED].chunk(2)


def test_simpo():
    cls = trainer("trl.experimental.cpo.cpo_trainer", "CPOTrainer")
    tokens, logprobs, _ = given(7)
    leaf, other = logprobs.clone().requires_grad_(), logprobs.clone().requires_grad_()
    loss, metrics = ours(SimPO(source="s", beta=2.0, gamma=1.0), PairRows(tokens=tokens), logprobs=leaf)
    self = runner(alpha=0.0, beta=2.0, simpo_gamma=1.0, loss_type="simpo", label_smoothing=0.0)
    losses, chosen, rejected = cls.cpo_loss(self, *means(other, tokens.target))
    torch.testing.assert_close(loss, losses.mean(), rtol=0, atol=1e-10)
    gradients = (torch.autograd.grad(x, y)[0] for x, y in ((loss, leaf), (losses.mean(), other)))
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-10)
    assert metrics["rewards/chosen"] == pytest.approx(float(chosen.mean()), abs=1e-10)
    assert metrics["rewards/rejected"] == pytest.approx(float(rejected.mean()), abs=1e-10)


def test_orpo():
    # TRL computes the odds in float32. Its imitation term is over the whole text; ours, over the response, takes its place.
    cls = trainer("trl.experimental.orpo.orpo_trainer", "ORPOTrainer")
    tokens, logprobs, _ = given(8)
    leaf, other = logprobs.clone().requires_grad_(), logprobs.clone().requires_grad_()
    loss, metrics = ours(ORPO(source="s", odds_weight=0.2), PairRows(tokens=tokens), logprobs=leaf)
    chosen, rejected = means(other, tokens.target)
    self = runner(beta=0.2, concatenated_forward=lambda model, batch: (chosen, rejected, chosen, rejected, -chosen.mean()))
    self.odds_ratio_loss = lambda *x: cls.odds_ratio_loss(self, *x)
    theirs, logs = cls.get_batch_loss_metrics(self, None, {})
    assert float(loss.detach()) == pytest.approx(float(theirs.detach()), abs=1e-6)
    gradients = (torch.autograd.grad(x, y)[0] for x, y in ((loss, leaf), (theirs, other)))
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-6)
    shared = set(metrics) & set(logs)
    assert len(shared) == 7
    assert {name: metrics[name] for name in shared} == pytest.approx({name: logs[name] for name in shared}, abs=1e-6)

"""What moves weights: which of them decay, and float32 copies of weights of half precision."""

import pytest
import torch
import transformers
from accelerate import Accelerator
from helpers.equal import assert_equal
from helpers.networks import TEXTS, demos, learner

from advalign.engine.learner import Learner, LearnerRuntime
from advalign.engine.optimizer import decayed_parameters, trained_parameters
from advalign.engine.plan import plan
from advalign.models import load
from advalign.objectives.sft import SFT

HALF = ("bfloat16", "float16")
PLAN = plan("policy", {"imitate": SFT(source="chat")}, {}, [])


def policy(dtype="float32", model="scratch:tiny?hidden_size=32", **options):
    return load(model, tokenizer={"kind": "words"}, texts=TEXTS, max_length=32, dtype=dtype, options=options).train()


def start(network, **fields):
    config = Learner(model="given", **{"learning_rate": 1e-6, "max_grad_norm": 1.0, **fields})
    return LearnerRuntime("policy", config, network, Accelerator(), 10)


def steps(runtime, number, budget=10_000):
    return [runtime.update(PLAN, {"chat": demos(runtime.network)}, {}, budget=budget, key=("update", i)) for i in range(number)]


def reference_loss(network):
    """The mean negative log-probability of all targets, from the model's own logits in float32, row by row."""
    rows = demos(network).tokens
    total, count = torch.zeros(()), 0
    for ids, mask, target in zip(rows.ids, rows.mask, rows.target, strict=True):
        logits = network.model(input_ids=ids[mask][None]).logits[0, :-1].float()
        nll = -logits.log_softmax(-1).gather(1, ids[mask][1:, None])[:, 0]
        total, count = total + nll[target[mask][1:]].sum(), count + int(target.sum())
    return total / count


def reference_weights(network, number, rate):
    """`number` steps of AdamW on float32 copies, of gradients of the rounded model."""
    weights = list(network.parameters())
    masters = [torch.nn.Parameter(w.detach().float()) for w in weights]
    optimizer = torch.optim.AdamW(masters, lr=rate, weight_decay=0.0)
    for _ in range(number):
        gradients = torch.autograd.grad(reference_loss(network), weights)
        for master, gradient in zip(masters, gradients, strict=True):
            master.grad = gradient.float()
        torch.nn.utils.clip_grad_norm_(masters, 1.0)
        optimizer.step()
        with torch.no_grad():
            for weight, master in zip(weights, masters, strict=True):
                weight.copy_(master)
    return masters


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_moves_as_its_float32_copies_do(dtype):
    """Rate 1e-6: in bfloat16 a weight of 0.02 has neighbours at a distance of 1.2e-4, so no single step moves it."""
    ours, plain = policy(dtype), policy(dtype)
    before = [p.detach().clone() for p in ours.parameters()]
    runtime = start(ours)
    steps(runtime, 5)
    masters = reference_weights(plain, 5, 1e-6)
    for weight, master, first in zip(ours.parameters(), masters, before, strict=True):
        copy = runtime.masters.exact(weight)
        moved = master - first.float()
        # Batched and single rows round differently in half precision; Adam's first steps are about the sign of the gradient.
        agree = ((copy - master).abs() < 2e-6) | (moved == 0)
        assert (~agree).sum() <= max(1, 0.02 * agree.numel())  # one of a norm's 32 numbers
        assert torch.equal(copy.to(weight.dtype), weight)
        assert ((copy - first.float()).abs() > 0).float().mean() > 0.5 or not moved.any()


def test_the_copies_are_those_of_the_formula_to_the_bit():
    """Gradients recorded at the copies, then AdamW by hand on float32 copies of the first weights."""
    network = policy("bfloat16")
    masters = {p: torch.nn.Parameter(p.detach().float()) for p in network.parameters()}
    runtime = start(network, learning_rate=1e-3, max_grad_norm=0)
    optimizer = torch.optim.AdamW([masters[p] for _, p in trained_parameters(network)], lr=1e-3, weight_decay=0.0)
    for i in range(3):
        steps(runtime, 1)
        for p, master in masters.items():
            master.grad = runtime.masters.exact(p).grad.clone()
            assert master.grad.dtype == torch.float32
        optimizer.step()
        for p, master in masters.items():
            assert torch.equal(runtime.masters.exact(p), master), i
            assert torch.equal(p, master.bfloat16())


def test_gradients_of_micro_batches_are_added_in_float32():
    """Two micro-batches: the sum of what autograd gives for each in bfloat16, and not their sum rounded."""
    network = policy("bfloat16")
    runtime = start(network)
    parts: list[list[torch.Tensor]] = []
    collect = runtime.masters.collect

    def recording():
        parts.append([p.grad.float() if p.grad is not None else torch.zeros(p.shape) for p in network.parameters()])
        collect()

    runtime.masters.collect = recording
    steps(runtime, 1, budget=16)
    assert len(parts) > 1
    norm = torch.sqrt(sum(sum(part).square().sum() for part in zip(*parts, strict=True)))
    for p, *gradients in zip(network.parameters(), *parts, strict=True):
        expected = sum(gradients) * min(1.0, 1 / (float(norm) + 1e-6))
        torch.testing.assert_close(runtime.masters.exact(p).grad, expected, rtol=1e-5, atol=1e-9)


def test_float16_with_the_default_eps_stays_finite():
    """A second moment of 1e-8 is zero in float16, and so is eps: 0 / 0 in a plain AdamW on float16 weights."""
    network = policy("float16")
    steps(start(network, learning_rate=1e-3), 2)
    assert all(p.isfinite().all() for p in network.parameters())


def test_a_state_that_was_saved_goes_on_to_the_bit():
    one, other = policy("bfloat16"), policy("bfloat16")
    whole, first = start(one, learning_rate=1e-5), start(other, learning_rate=1e-5)
    steps(whole, 2)
    steps(first, 2)
    network = policy("bfloat16")
    network.load_state_dict(other.state_dict())
    resumed = start(network, learning_rate=1e-5)
    resumed.load_state_dict(first.state_dict())
    steps(whole, 3)
    steps(resumed, 3)
    assert_equal(list(one.state_dict().values()), list(network.state_dict().values()))
    assert_equal(whole.masters.state_dict(), resumed.masters.state_dict())


def test_weights_that_something_else_has_changed_are_taken_over():
    network = policy("bfloat16")
    runtime = start(network)
    steps(runtime, 1)
    with torch.no_grad():
        network.model.lm_head.weight[3] = 0.25
    untouched = runtime.masters.exact(network.model.lm_head.weight)[4].clone()
    runtime.masters.begin()
    copy = runtime.masters.exact(network.model.lm_head.weight)
    assert torch.equal(copy[3], torch.full_like(copy[3], 0.25))
    assert torch.equal(copy[4], untouched)


def test_a_learner_that_only_reads_and_one_of_float32_have_no_copies():
    reads = start(policy("bfloat16"))
    reads.update(PLAN, {"chat": demos(reads.network)}, {}, budget=10_000, key=("update",), train=False)
    full = start(policy())
    steps(full, 1)
    assert reads.masters.copies == full.masters.copies == {}


def test_adapters_on_a_base_of_half_precision_are_float32_themselves():
    network = policy("bfloat16", lora={"r": 2, "target_modules": ["q_proj"]})
    runtime = start(network, learning_rate=1e-3)
    steps(runtime, 1)
    assert runtime.masters.copies == {}
    assert runtime.version == 1


# ------------------------------------------------------------------------------------------------- weight decay


@pytest.mark.parametrize("model", ["scratch:tiny?hidden_size=32", "scratch:tiny-gpt2?n_embd=32", "scratch:encoder-tiny?hidden_size=32"])
def test_biases_and_norms_do_not_decay_as_in_transformers(model, tmp_path):
    network = load(model, head="score", tokenizer={"kind": "words"}, texts=TEXTS, max_length=32)
    expected = transformers.Trainer.get_decay_parameter_names(None, network)
    assert decayed_parameters(network) == set(expected)
    runtime = start(network, weight_decay=0.1)
    decays = {id(p) for group in runtime.optimizer.param_groups for p in group["params"] if group["weight_decay"]}
    for name, p in network.named_parameters():
        assert (id(p) in decays) == (name in expected), name
    assert any(p.ndim < 2 for _, p in trained_parameters(network))


def test_weight_decay_shrinks_what_decays_and_nothing_else():
    """With a gradient of zero AdamW's step is w <- w (1 - rate decay)."""
    network = policy()
    runtime = learner(network, learning_rate=0.1, weight_decay=0.5)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    for p in network.parameters():
        p.grad = torch.zeros_like(p)
    runtime.optimizer.step()
    for name, p in network.named_parameters():
        factor = 1 if "norm" in name or "bias" in name else 1 - 0.1 * 0.5
        torch.testing.assert_close(p.detach(), before[name] * factor, rtol=1e-6, atol=0)

"""A float32 adapter on a base in half precision is multiplied in half precision, and trains in float32."""

import copy
import warnings

import pytest
import torch
from torch import nn

from advalign.models import adapters, load
from advalign.models.adapter_product import Product

peft = pytest.importorskip("peft")

LLAMA = "scratch:tiny?hidden_size=32"
LORA = {"r": 3, "lora_alpha": 6, "target_modules": "all-linear"}


def network(dtype, **lora):
    words, texts = {"kind": "words"}, ["a b c d e f g h i j k :"]
    net = load(LLAMA, tokenizer=words, texts=texts, max_length=32, dtype=dtype, options={"lora": LORA | lora}).eval()
    generator = torch.Generator().manual_seed(0)
    for name, p in net.named_parameters():
        if adapters.is_adapter(name):
            p.data = torch.randn(p.shape, generator=generator) * 0.1
    return net


def first(net):
    """The first layer with an adapter."""
    return next(m for m in net.model.modules() if isinstance(m, peft.tuners.lora.Linear))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_output_and_gradients_are_those_of_float32_but_for_rounding(dtype):
    layer = first(network(dtype))
    a, b, w = layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.base_layer.weight
    assert {type(layer.lora_A["default"]), type(layer.lora_B["default"])} == {Product}
    assert a.dtype == b.dtype == torch.float32
    x = torch.randn(50, w.shape[1], generator=torch.Generator().manual_seed(1)).to(w.dtype).requires_grad_()
    weights = torch.randn(50, w.shape[0], generator=torch.Generator().manual_seed(2)).to(w.dtype)
    outputs = layer(x)
    assert outputs.dtype == w.dtype
    gradients = torch.autograd.grad(outputs, (x, a, b), weights)
    assert [g.dtype for g in gradients] == [w.dtype, torch.float32, torch.float32]
    x64, a64, b64 = (t.detach().double().requires_grad_() for t in (x, a, b))
    exact = x64 @ w.double().T + 2 * x64 @ a64.T @ b64.T  # lora_alpha / r = 2
    for value, expected in zip((outputs, *gradients), (exact, *torch.autograd.grad(exact, (x64, a64, b64), weights.double())), strict=True):
        error = (value.double() - expected).norm() / expected.norm()
        assert error < (1e-2 if dtype == "bfloat16" else 2e-3)


def test_an_adapter_of_zeros_changes_no_bit():
    net = network("bfloat16")
    for name, p in net.named_parameters():
        if "lora_B" in name:
            nn.init.zeros_(p)
    tokens = net.encoder.demos(["a b c", "d"], ["e f", "g h i"])
    bare = copy.deepcopy(net)
    bare.model = adapters.without_adapter(bare.model)
    assert torch.equal(net(tokens, {"logprobs"}).logprobs, bare(tokens, {"logprobs"}).logprobs)


def test_merged_it_gives_what_it_gave():
    net = network("bfloat16")
    tokens = net.encoder.demos(["a b c", "d"], ["e f", "g h i"])
    apart = net(tokens, {"logprobs"}).logprobs
    net.model = adapters.merge_adapter(net.model)
    assert not adapters.has_adapter(net.model)
    torch.testing.assert_close(net(tokens, {"logprobs"}).logprobs, apart, rtol=0, atol=0.1)


def test_other_layers_stay_as_peft_has_them():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nets = [network("float32"), network("bfloat16", use_dora=True)]
    for net in nets:
        assert not any(isinstance(m, Product) for m in net.modules())
    names = [n for n, _ in network("bfloat16").named_parameters()]
    assert names == [n for n, _ in nets[0].named_parameters()]  # so files and checkpoints are the same

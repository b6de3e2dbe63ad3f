"""Attention of one token and of short rows: what transformers' SDPA attention gives."""

import pytest
import torch
import transformers
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from advalign.models import padding_free, processor_attention

SMALL = {
    "vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip
FAMILIES = {
    "Llama": SMALL, "Qwen3": SMALL | {"head_dim": 4}, "Mistral": SMALL | {"sliding_window": 3},
    "Gemma2": SMALL | {"head_dim": 4, "sliding_window": 3, "query_pre_attn_scalar": 9},
}  # fmt: skip


class Heads(nn.Module):
    """What transformers' function reads of a module."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.num_key_value_groups, self.is_causal = times, True


def masks(rows, keys):
    """No mask; which keys each row reads; the same as a term."""
    read = torch.arange(keys) >= torch.arange(rows)[:, None]
    read = read[:, None, None]
    return [None, read, torch.zeros(read.shape, dtype=torch.float64).masked_fill(~read, -torch.inf)]


@pytest.mark.parametrize(("heads", "key_heads"), [(9, 3), (4, 1), (6, 2)])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_equals_the_attention_of_transformers(heads, key_heads, scaling):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(5, heads, 1, 8, dtype=torch.float64, generator=generator)
    buffers = torch.randn(2, 5, key_heads, 20, 8, dtype=torch.float64, generator=generator)
    key, value = buffers[..., :11, :]  # as in a cache that has room for more
    for mask in masks(5, 11):
        assert processor_attention.reads_one_token(query, key, mask, {})
        expected, _ = sdpa_attention_forward(Heads(heads // key_heads), query, key, value, mask, scaling=scaling)
        outputs = processor_attention.single_token(query, key, value, mask, scaling=scaling)
        torch.testing.assert_close(outputs, expected, rtol=0, atol=1e-14)


def test_bfloat16_keeps_its_precision():
    """Products are summed in float32, as without the grouping: the error stays that of rounding inputs and outputs."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(8, h, n, 16, generator=generator).bfloat16() for h, n in ((6, 1), (2, 40), (2, 40)))
    exact = processor_attention.single_token(query.double(), key.double(), value.double(), None)
    error = (processor_attention.single_token(query, key, value, None).double() - exact).norm() / exact.norm()
    before = (sdpa_attention_forward(Heads(3), query, key, value, None)[0].double() - exact).norm() / exact.norm()
    assert error <= 1.1 * before < 4e-3


def test_applies_to_one_token_with_shared_keys_and_one_mask():
    query, key = torch.zeros(2, 4, 1, 8), torch.zeros(2, 2, 5, 8)
    assert processor_attention.reads_one_token(query, key, None, {"position_bias": None, "sliding_window": 3})
    assert not processor_attention.reads_one_token(query.expand(2, 4, 3, 8), key, None, {})
    assert not processor_attention.reads_one_token(query, key.repeat(1, 2, 1, 1), None, {})  # a key head for every query head
    assert not processor_attention.reads_one_token(query, key, torch.ones(2, 4, 1, 5, dtype=torch.bool), {})
    assert not processor_attention.reads_one_token(query, key, None, {"position_bias": torch.zeros(1, 4, 1, 5)})


SHORT = {"causal": (7, 7, None), "padded": (7, 7, 0), "behind a beginning": (4, 9, 5), "windowed": (7, 7, 3)}


def short(case, heads, key_heads):
    """(query, key, value, mask)."""
    queries, keys, extra = SHORT[case]
    generator = torch.Generator().manual_seed(0)
    shapes = ((heads, queries, 8), (key_heads, keys, 8), (key_heads, keys, 6))
    tensors = [torch.randn(3, *shape, dtype=torch.float64, generator=generator).bfloat16().double() for shape in shapes]
    if extra is None:
        return (*tensors, None)
    place, key = torch.arange(queries)[:, None] + keys - queries, torch.arange(keys)
    mask = (key <= place)[None].repeat(3, 1, 1)
    if case == "windowed":
        mask &= key > place - extra
    if case == "padded":  # on the right, as in a trainer
        mask &= key < torch.tensor([7, 5, 2])[:, None, None]
    return (*tensors, mask[:, None])


@pytest.mark.parametrize(("heads", "key_heads"), [(6, 2), (4, 4)])
@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize("case", SHORT)
def test_short_rows_equal_the_attention_of_transformers(case, heads, key_heads, scaling):
    """In bfloat16 outputs and gradients differ from the exact ones by rounding, and by no more than those of the fused kernel twice."""
    *exact, mask = short(case, heads, key_heads)

    def run(function, dtype):
        inputs = [x.to(dtype).requires_grad_() for x in exact]
        outputs = function(*inputs)
        weights = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).bfloat16().to(dtype)
        return [x.detach().double() for x in (outputs, *torch.autograd.grad(outputs, inputs, weights))]

    def theirs(q, k, v):
        return sdpa_attention_forward(Heads(heads // key_heads), q, k, v, mask, scaling=scaling)[0].transpose(1, 2)

    def ours(q, k, v):
        assert processor_attention.reads_short_rows(q, k, mask, 0.0, {"is_causal": True})
        return processor_attention.short_rows(q, k, v, mask, scaling)

    expected = run(theirs, torch.float64)
    for fused, eager, value in zip(run(theirs, torch.bfloat16), run(ours, torch.bfloat16), expected, strict=True):
        assert (eager - value).norm() <= max(2 * (fused - value).norm(), 4e-3 * value.norm())
        assert (eager - value).norm() <= 1e-2 * value.norm()


def test_a_query_without_keys_is_finite():
    query, key, value, mask = short("padded", 4, 2)
    mask[0, :, 3] = False
    outputs = processor_attention.short_rows(query.bfloat16(), key.bfloat16(), value.bfloat16(), mask)
    mean = value[0].mean(1).repeat_interleave(2, 0)
    torch.testing.assert_close(outputs[0, :, 3].double(), mean, rtol=0, atol=2e-2)
    assert outputs.isfinite().all()


def test_short_rows_are_for_bfloat16_without_dropout():
    query, key = torch.zeros(2, 4, 6, 8, dtype=torch.bfloat16), torch.zeros(2, 2, 6, 8, dtype=torch.bfloat16)
    reads = processor_attention.reads_short_rows
    mask = torch.ones(2, 1, 6, 6, dtype=torch.bool)
    assert reads(query, key, None, 0.0, {"is_causal": True})
    assert reads(query, key, mask, 0.0, {"is_causal": False})
    assert not reads(query, key, None, 0.0, {"is_causal": False})
    assert not reads(query, key, None, 0.1, {})
    assert not reads(query, key, mask.float(), 0.0, {})
    assert not reads(query, key, mask.expand(2, 4, 6, 6), 0.0, {})
    assert not reads(query[:, :, :3], key, None, 0.0, {})  # transformers aligns such a triangle to the first key
    assert not reads(query.float(), key.float(), None, 0.0, {})
    longer = torch.zeros(2, 2, processor_attention.MAX_KEYS + 1, 8, dtype=torch.bfloat16)
    assert not reads(query, longer, torch.ones(1, 1, 6, longer.shape[2], dtype=torch.bool), 0.0, {})


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_cached_token_is_the_last_of_the_row(family, monkeypatch):
    config = getattr(transformers, f"{family}Config")(**FAMILIES[family])
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").double().eval()
    assert padding_free.prepare(model)
    calls, single_token = [], processor_attention.single_token
    monkeypatch.setattr(processor_attention, "single_token", lambda *inputs: calls.append(1) or single_token(*inputs))
    ids = torch.tensor([[0, 0, 5, 6, 7, 8], [9, 10, 11, 12, 13, 14]])
    mask = (ids != 0).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    whole = model.model(ids, attention_mask=mask, position_ids=positions, use_cache=False).last_hidden_state[:, -1]
    assert not calls
    cache = model.model(ids[:, :-1], attention_mask=mask[:, :-1], position_ids=positions[:, :-1], use_cache=True).past_key_values
    last = model.model(ids[:, -1:], attention_mask=mask, position_ids=positions[:, -1:], past_key_values=cache).last_hidden_state[:, -1]
    assert len(calls) == 3
    torch.testing.assert_close(last, whole, rtol=0, atol=1e-5 if family == "Gemma2" else 1e-10)

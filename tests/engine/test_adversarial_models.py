"""Adversaries on models that do something of their own with embeddings: tied to the head, scaled, frozen under an adapter, in bfloat16."""

import math

import pytest
import torch
from helpers.networks import TEXTS, Recorder, demos, learner, network, update
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma3TextConfig

from advalign.adversaries.pgd import PGD
from advalign.models import load, perturb
from advalign.models.scratch import train_tokenizer
from advalign.objectives.sft import SFT
from advalign.types import DemoRows, Edit, Tokens

ROBUST = {"a": SFT(source="chat", view="adv")}
SMALL = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
}  # fmt: skip


def test_the_matrix_tied_to_the_head_is_not_moved_by_the_attack():
    """Per-occurrence deltas: the same word twice gets two deltas, and the head reads the clean matrix. (Perturbing the matrix itself,
    as the common FGM class does, moves every occurrence and the head with it.)"""
    net = network()
    assert net.model.get_input_embeddings().weight is net.model.get_output_embeddings().weight
    recorder = Recorder(PGD(radius=0.3, steps=2))
    before = net.model.get_input_embeddings().weight.detach().clone()
    tokens = net.encoder.demos(["a a :"], ["b a"])
    update(learner(net), ROBUST, {"chat": DemoRows(tokens=tokens)}, {"adv": recorder})
    (delta,) = recorder.deltas.values()
    twice = [t for t, i in enumerate(tokens.ids[0].tolist()) if i == net.encoder.tokenizer.get_vocab()["a"]]
    assert len(twice) == 3
    assert not torch.allclose(delta[twice[0]], delta[twice[1]])
    assert torch.equal(net.model.get_input_embeddings().weight, before)


@pytest.mark.parametrize("config", [Gemma3TextConfig, Gemma2Config])
def test_radius_one_is_one_mean_embedding_as_the_first_block_sees_it(config, tmp_path):
    """Gemma multiplies embeddings by sqrt(d), inside the embedding module or after it by model and version: the delta is added to
    what the module gives, so where the scale comes later it applies to both."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config(**SMALL)).save_pretrained(tmp_path)
    train_tokenizer("words", TEXTS).save_pretrained(tmp_path)
    net = load(str(tmp_path), max_length=64, dtype="float64").eval()
    inputs = []
    perturb.layer("layer:0", net.backbone).register_forward_pre_hook(lambda m, args, kw: inputs.append(args[0].detach()), with_kwargs=True)
    every = torch.arange(40)[None]
    tokens = Tokens(ids=every, mask=every >= 0, target=every > 0, group=torch.zeros(1).long(), key=torch.zeros(1).long())
    unit = net.mean_embedding_norm()
    add = torch.nn.functional.normalize(torch.randn(1, 40, 16, dtype=torch.float64), dim=-1) * 0.5 * unit
    net(tokens, {"logprobs"})
    net(tokens, {"logprobs"}, {"embedding": Edit(add)})
    clean, attacked = inputs
    assert clean.norm(dim=-1).mean().item() == pytest.approx(unit * _later(clean, net, every), rel=1e-9)
    assert (attacked - clean).norm(dim=-1).mean().item() == pytest.approx(0.5 * clean.norm(dim=-1).mean().item(), rel=1e-9)
    raw = net.model.get_input_embeddings().weight.norm(dim=1).mean().item()
    assert clean.norm(dim=-1).mean().item() == pytest.approx(raw * math.sqrt(16), rel=2e-3)  # the scale is rounded to bfloat16


def _later(clean, net, ids):
    """What is multiplied after the embedding module: 1 where the scale is inside it."""
    return (clean.norm(dim=-1).mean() / net.model.get_input_embeddings()(ids).norm(dim=-1).mean()).item()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_adapter_on_a_frozen_matrix_is_attacked_and_trained(dtype, checkpointing):
    """The embedding has no gradient under LoRA, so an attack through its .grad would do nothing; deltas on activations do."""
    pytest.importorskip("peft")
    options = {"lora": {"r": 2, "target_modules": ["c_attn"]}, "gradient_checkpointing": checkpointing}
    net = load("scratch:tiny-gpt2?n_embd=32", tokenizer={"kind": "words"}, texts=TEXTS, max_length=32, dtype=dtype, options=options)
    assert not net.model.get_input_embeddings().weight.requires_grad
    recorder = Recorder(PGD(radius=2.0, steps=3))
    gradient, logs = update(learner(net), ROBUST, {"chat": demos(net)}, {"adv": recorder})
    assert all(delta.dtype == torch.float32 for delta in recorder.deltas.values())
    assert logs["adv/gain"] > 0
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0
    clean, _ = update(learner(net), {"a": SFT(source="chat")}, {"chat": demos(net)})
    assert not torch.allclose(gradient, clean, atol=1e-4)

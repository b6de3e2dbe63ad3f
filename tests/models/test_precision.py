"""Precision of weights: parameters are cast, buffers are not, as transformers' `from_pretrained(dtype=)` does."""

import pytest
import torch
import transformers
from architectures.causal import CAUSAL
from tokenizers import Tokenizer, models

from advalign.models import load

HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}
LONG = {"max_position_embeddings": 512}
"""The angle of a rounded frequency grows wrong with the position."""


def folder(path, family, auto=transformers.AutoModelForCausalLM, **fields) -> str:
    """A tiny random model and a tokenizer, as transformers saves them."""
    config = transformers.AutoConfig.for_model(family, **{**CAUSAL[family].options, **LONG, **fields})
    torch.manual_seed(0)
    auto.from_config(config).save_pretrained(path)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(50)}, unk_token="w2"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w1", unk_token="w2").save_pretrained(path)
    return str(path)


def ids() -> torch.Tensor:
    return torch.arange(3, 50).repeat(9)[None, :400]


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gemma3_text", "gpt_neox", "gpt2", "cohere", "qwen3_moe"])
def test_logits_of_half_precision_are_those_of_transformers_to_the_bit(tmp_path, family, dtype):
    source = folder(tmp_path, family)
    network = load(source, dtype=dtype, max_length=512).eval()
    expected = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=HALF[dtype]).eval()
    assert {p.dtype for p in network.parameters()} == {HALF[dtype]}
    assert [b.dtype for b in network.model.buffers()] == [b.dtype for b in expected.buffers()]
    assert torch.equal(network.model(ids()).logits, expected(ids()).logits)


def test_a_classifier_of_half_precision(tmp_path):
    source = folder(tmp_path, "qwen2", transformers.AutoModelForSequenceClassification, num_labels=3)
    network = load(source, head="classifier", dtype="bfloat16", options={"num_labels": 3}, max_length=512).eval()
    expected = transformers.AutoModelForSequenceClassification.from_pretrained(source, dtype=torch.bfloat16).eval()
    assert torch.equal(network.model(ids()).logits, expected(ids()).logits)


@pytest.mark.parametrize("dtype", HALF)
def test_a_model_from_scratch_is_what_transformers_reads_from_its_folder(tmp_path, dtype):
    made = load("scratch:tiny?hidden_size=32", tokenizer={"kind": "words"}, texts=["a b c d e f"], max_length=512, dtype=dtype).eval()
    made.save_pretrained(tmp_path)
    expected = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=HALF[dtype]).eval()
    row = torch.arange(3, 9).repeat(60)[None]
    assert [b.dtype for b in made.model.buffers()] == [torch.float32] * len(list(expected.buffers()))
    assert torch.equal(made.model(row).logits, expected(row).logits)

"""Folders as people download them: tiny random models saved by plain transformers, without a file of this library."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)

WORDS = ["a", "quiet", "charming", "film", "dull", "red", "blue", "the", "cat", "sat", "on", "mat"]
SPECIAL = ["<pad>", "<unk>", "<bos>", "<eos>", "[CLS]", "[SEP]", "[MASK]"]
SIZES = {"vocab_size": len(SPECIAL) + len(WORDS), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {"model_type": "llama", **SIZES, "intermediate_size": 48, "num_key_value_heads": 2, "pad_token_id": 0}
BERT = {"model_type": "bert", **SIZES, "intermediate_size": 48, "max_position_embeddings": 32, "initializer_range": 0.3}
GPT2 = {"model_type": "gpt2", "vocab_size": SIZES["vocab_size"], "n_embd": 32, "n_layer": 2, "n_head": 4, "pad_token_id": 0}
AUTO = {
    "causal": AutoModelForCausalLM,
    "classifier": AutoModelForSequenceClassification,
    "masked": AutoModelForMaskedLM,
    "base": AutoModel,
}


def tokenizer(both_ways: bool) -> PreTrainedTokenizerFast:
    """Words; with the marks of BERT where every token sees the whole row."""
    vocabulary = {word: i for i, word in enumerate(SPECIAL + WORDS)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<eos>", "bos_token": "<bos>", "mask_token": "[MASK]"}
    if both_ways:
        ends = [("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
        core.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
        )
        names |= {"cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=core, **names)


def build(sizes: dict, kind: str, seed: int = 0, **options):
    """A random model in float64; `kind`: a key of AUTO."""
    torch.manual_seed(seed)
    model = AUTO[kind].from_config(AutoConfig.for_model(**{**sizes, **options})).double()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)  # nothing is a zero of its initialisation
    return model.eval()


def write(folder: Path, sizes: dict, kind: str, seed: int = 0, **options):
    """The model and its tokenizer in a folder; returns the model."""
    model = build(sizes, kind, seed, **options)
    model.save_pretrained(folder)
    tokenizer(sizes["model_type"] == "bert").save_pretrained(folder)
    return model

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
EXPERTS = {**SIZES, "intermediate_size": 48, "moe_intermediate_size": 24, "num_experts_per_tok": 2, "pad_token_id": 0}
QWEN3_MOE = {"model_type": "qwen3_moe", **EXPERTS, "num_experts": 4, "num_key_value_heads": 2, "head_dim": 8}
MIXTRAL = {"model_type": "mixtral", **EXPERTS, "num_local_experts": 4, "num_key_value_heads": 2}
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3",
    **EXPERTS,
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
DISTILBERT = {"model_type": "distilbert", "vocab_size": SIZES["vocab_size"], "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}
ROBERTA = {
    "model_type": "roberta",
    **SIZES,
    "intermediate_size": 48,
    "max_position_embeddings": 34,
    "type_vocab_size": 1,
    "pad_token_id": 0,
}
PRECISE = {"dtype": torch.float64, "experts_implementation": "eager"}  # arguments of from_pretrained: grouped products have no float64
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
    config = AutoConfig.for_model(**{**sizes, **options})
    model = AUTO[kind].from_config(config, experts_implementation="eager").double()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)  # nothing is a zero of its initialisation
    return model.eval()


def write(folder: Path, sizes: dict, kind: str, seed: int = 0, **options):
    """The model and its tokenizer in a folder; returns the model."""
    model = build(sizes, kind, seed, **options)
    model.save_pretrained(folder)
    tokenizer("bert" in sizes["model_type"]).save_pretrained(folder)
    return model


def shake(model):
    """Moves what trains, as training does."""
    torch.manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def outputs(model):
    """Logits, or hidden states of a model without a head, of a padded batch; by the model's own forward."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(7, SIZES["vocab_size"], (3, 6), generator=generator)
    mask = torch.arange(6) < torch.tensor([[6], [4], [2]])
    with torch.no_grad():
        output = model.eval()(input_ids=ids.masked_fill(~mask, 0), attention_mask=mask.long())
    return output["logits"] if "logits" in output else output["last_hidden_state"] * mask[..., None]


def put_into_cache(hub, repository, write):
    """A repository as `huggingface_hub` keeps what it has downloaded."""
    folder, commit = hub / f"models--{repository.replace('/', '--')}", "a" * 40
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    write(folder / "snapshots" / commit)

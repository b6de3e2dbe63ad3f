"""What transformers models, configurations and tokenizers say about themselves. Their attributes differ by architecture; only this
file asks whether one is there."""

from __future__ import annotations

from typing import Any

from torch import nn

DROPOUT_RATES = ("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop")
BLOCK_PATHS = ("layers", "encoder.layer", "h", "transformer.layer", "encoder.layers", "block")
FEED_FORWARD_WIDTHS = ("intermediate_size", "n_inner", "ffn_dim")


def block_stack(backbone: nn.Module) -> nn.ModuleList | None:
    """The stack of transformer blocks; None where it is at no known path."""
    for path in BLOCK_PATHS:
        module: Any = backbone
        for name in path.split("."):
            module = getattr(module, name, None)
        if isinstance(module, nn.ModuleList):
            return module
    return None


def checkpoints_activations(module: nn.Module) -> bool:
    """Whether gradient checkpointing is on in this module."""
    return bool(getattr(module, "gradient_checkpointing", False))


def hidden_size(model: Any) -> int:
    """Features of a hidden state."""
    return int(model.config.hidden_size)


def context_length(model: Any) -> int | None:
    """The most tokens a row may have; None where the configuration names no bound."""
    return getattr(model.config, "max_position_embeddings", None)


def logit_cap(model: Any) -> float | None:
    """c of the soft cap c tanh(z / c) on logits z; None: there is none."""
    return getattr(model.config, "final_logit_softcapping", None) or None


def has_linear_logits(model: Any) -> bool:
    """Whether logits are exactly `hidden @ weight.T + bias`."""
    scaled = any(getattr(model.config, name, None) not in (None, 1, 1.0) for name in ("logit_scale", "logits_scaling"))
    return isinstance(model.get_output_embeddings(), nn.Linear) and not scaled and logit_cap(model) is None


def has_score_head(model: Any) -> bool:
    """Whether a sequence classifier applies one linear map, `score`, to a pooled hidden state."""
    return hasattr(model, "score")


def has_segments(model: Any) -> bool:
    """Whether it has an embedding for the first and one for the second segment of a pair."""
    return getattr(model.config, "type_vocab_size", 0) > 1


def is_decoder(config: Any) -> bool:
    return bool(getattr(config, "is_decoder", False))


def has_chat_template(tokenizer: Any) -> bool:
    return bool(getattr(tokenizer, "chat_template", None))


def attention_dropout(backbone: Any) -> float:
    """The dropout rate inside attention, which is not a module."""
    return getattr(backbone.config, "attention_dropout", 0.0) or 0.0


def set_dropout(config: Any, rate: float) -> None:
    """Every dropout rate that the configuration has."""
    for name in DROPOUT_RATES:
        if hasattr(config, name):
            setattr(config, name, float(rate))


def has_option(config: Any, name: str) -> bool:
    return hasattr(config, name)


def attention_kinds(model: Any) -> tuple[Any, str | None, tuple[str, ...]]:
    """The backbone's configuration, its attention implementation, and the kind of attention of each layer where it says so."""
    config: Any = getattr(getattr(model, "base_model", None), "config", None)
    return config, getattr(config, "_attn_implementation", None), tuple(getattr(config, "layer_types", None) or ())


def takes_attention_functions(model: Any) -> bool:
    """Whether its attention function can be replaced, and it keeps no state beside keys and values."""
    return bool(getattr(model, "_supports_attention_backend", False)) and not getattr(model, "_is_stateful", False)


def attention_widths(config: Any) -> tuple[int, int]:
    """Width of the queries of all heads, and of their keys and values together."""
    heads = getattr(config, "num_attention_heads", 1)
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    shared = getattr(config, "num_key_value_heads", None) or heads
    return heads * size, 2 * shared * size


def feed_forward_width(config: Any) -> int:
    for name in FEED_FORWARD_WIDTHS:
        if getattr(config, name, None):
            return int(getattr(config, name))
    return 4 * int(config.hidden_size)


def expert_counts(config: Any) -> tuple[int, int] | None:
    """(experts of a layer, experts that a token visits); None: not a mixture of experts."""
    number = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None)
    visited = getattr(config, "num_experts_per_tok", None)
    return (int(number), int(visited)) if number and visited else None


def lora_config(model: Any) -> Any:
    """The peft.LoraConfig of the adapter in a model, or None."""
    return getattr(model, "peft_config", {}).get("default")

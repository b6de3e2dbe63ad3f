"""What transformers models, configurations and tokenizers say about themselves. Their attributes differ by architecture; only this
file asks whether one is there."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

from advalign.errors import ConfigError

BLOCK_PATHS = ("layers", "encoder.layer", "h", "transformer.layer", "encoder.layers", "block", "decoder.layers", "blocks", "layer")
SKIPPED_LAYERS = ("layerdrop", "layer_dropout", "drop_path")  # rates of whole layers, in names of configurations
HEAD_DROPOUTS = ("summary_", "classifier_", "seq_classif_", "qa_")  # beginnings of names: of heads that a policy has not
FEED_FORWARD_WIDTHS = ("intermediate_size", "n_inner", "ffn_dim")


def backbone(model: Any) -> Any:
    """The transformer without its head; the model itself, if it has none."""
    if model.base_model is not model or model.get_output_embeddings() is None:
        return model.base_model
    embeddings = model.get_input_embeddings()
    inner = [m for m in model.children() if isinstance(m, PreTrainedModel) and m.get_input_embeddings() is embeddings]
    return inner[0] if inner else model


def backbones(model: Any) -> list[Any]:
    """Modules that a model's forward may call for hidden states: the backbone, and the decoder inside."""
    outer = backbone(model)
    inner = outer.get_decoder() if isinstance(outer, PreTrainedModel) else outer
    return [outer] if inner is outer else [outer, inner]


def accepted_arguments(module: Any) -> frozenset[str] | None:
    """Names of the arguments of its forward; None: any. (Transformers 4.57 wraps BART's decoder, and hands everything on to it.)"""
    hands_on = set(inspect.signature(type(module).forward).parameters) == {"self", "args", "kwargs"}
    return _arguments(type(getattr(module, "decoder", module) if hands_on else module).forward)


@lru_cache
def _arguments(function: Callable[..., Any]) -> frozenset[str] | None:
    parameters = inspect.signature(function).parameters.values()
    return None if any(p.kind is p.VAR_KEYWORD for p in parameters) else frozenset(p.name for p in parameters)


def cache_argument(backbone: nn.Module) -> str:
    """The argument of its forward that takes a cache."""
    return "cache_params" if "cache_params" in inspect.signature(type(backbone).forward).parameters else "past_key_values"


def block_stack(backbone: nn.Module) -> nn.ModuleList | None:
    """The stack of transformer blocks; None where it is at no known path, and not exactly one list of modules has one for every layer."""
    for path in BLOCK_PATHS:
        module: Any = backbone
        for name in path.split("."):
            module = getattr(module, name, None)
        if isinstance(module, nn.ModuleList):
            return module
    number = getattr(getattr(backbone, "config", None), "num_hidden_layers", 0)
    lists = [m for m in backbone.modules() if isinstance(m, nn.ModuleList) and len(m) == number > 1]
    return lists[0] if len(lists) == 1 else None  # several: XLM has a list of attentions, of norms and of feed-forward networks


def can_checkpoint(model: Any) -> bool:
    """Whether transformers can checkpoint its activations."""
    return bool(getattr(model, "supports_gradient_checkpointing", False))


def checkpoints_activations(module: nn.Module) -> bool:
    """Whether gradient checkpointing is on in this module."""
    return bool(getattr(module, "gradient_checkpointing", False))


def model_type(model: Any) -> str:
    """The name of its kind in a configuration, such as llama."""
    return str(model.config.model_type)


def class_names(config: Any) -> tuple[str, ...]:
    """The transformers classes that a configuration was saved for."""
    return tuple(getattr(config, "architectures", None) or ())


def hidden_size(model: Any) -> int:
    """Features of a hidden state."""
    return int(model.config.hidden_size)


def context_length(model: Any) -> int | None:
    """The number of positions that the configuration names; None where it names no bound. (XLNet's is -1.)"""
    number = getattr(model.config, "max_position_embeddings", None) or getattr(model.config, "max_seq_len", None)
    return int(number) if isinstance(number, int) and number > 0 else None


def tabulates_positions(model: Any) -> bool:
    """Whether a table of positions, where it has one, is read. (ESM keeps one beside its rotary positions.)"""
    return getattr(model.config, "position_embedding_type", None) != "rotary"


def slices_biases(model: Any) -> bool:
    """Whether its biases of attention are a table of the configuration's length, which no module shows (MPT)."""
    return model_type(model) == "mpt"


def first_position(backbone: Any) -> int:
    """The position of a row's first token: RoBERTa and its kin count on from the index of padding."""
    table = getattr(getattr(backbone, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    return 0 if padding is None else int(padding) + 1


def inputs_beside_embeddings(backbone: Any, ids: Tensor) -> dict[str, Tensor]:
    """What a forward must be given of the token ids beside their embeddings, "B T ...": a second embedding for each layer (Gemma 3n)."""
    if not getattr(getattr(backbone, "config", None), "hidden_size_per_layer_input", 0) or not hasattr(backbone, "get_per_layer_inputs"):
        return {}
    takes_embeddings = "inputs_embeds" in (_arguments(backbone.get_per_layer_inputs.__func__) or ())
    return {"per_layer_inputs": backbone.get_per_layer_inputs(ids, None) if takes_embeddings else backbone.get_per_layer_inputs(ids)}


def classifier_inputs(model: Any, mask: Tensor) -> dict[str, Tensor]:
    """What a classifier's forward derives from token ids, and cannot from embeddings: Longformer's global attention, of the first token."""
    if "global_attention_mask" not in inspect.signature(type(model).forward).parameters:
        return {}
    first = torch.zeros_like(mask, dtype=torch.long)
    first[:, 0] = 1
    return {"global_attention_mask": first}


def use_float64_experts(model: Any) -> None:
    """A float64 model computes its experts one by one: the grouped product of transformers' default has no float64."""
    if hasattr(model, "set_experts_implementation") and next(model.parameters()).dtype is torch.float64:
        model.set_experts_implementation("eager")


def logit_cap(model: Any) -> float | None:
    """c of the soft cap c tanh(z / c) on logits z; None: there is none."""
    return getattr(model.config, "final_logit_softcapping", None) or None


def logit_scales(model: Any) -> list[float]:
    """Factors on the logits that the configuration names: which of them its forward applies, it does not say."""
    factors: list[Any] = [getattr(model.config, name, None) for name in ("logit_scale", "lm_head_multiplier", "output_multiplier")]
    divisors: list[Any] = [getattr(model.config, "logits_scaling", None)]
    return [float(f) for f in factors if _is_scale(f)] + [1 / float(d) for d in divisors if _is_scale(d)]


def _is_scale(value: Any) -> bool:
    return isinstance(value, int | float) and value not in (0, 1)


def pad_id(config: Any) -> int | None:
    """The id that its classifiers take for padding."""
    return getattr(config.get_text_config(), "pad_token_id", None)


def has_score_head(model: Any) -> bool:
    """Whether a sequence classifier applies one linear map, `score`, to a pooled hidden state."""
    return hasattr(model, "score")


@torch.no_grad()
def has_embedding(model: Any) -> bool:
    """Whether one module gives every token its embedding: Canine hashes characters, and I-BERT's module gives a scale beside it."""
    try:
        module = model.get_input_embeddings()
    except NotImplementedError:
        return False
    return isinstance(module(torch.zeros(1, 1, dtype=torch.long, device=module.weight.device)), Tensor)


def has_two_stacks(backbone: Any) -> bool:
    """Whether it is an encoder with a decoder behind it, such as T5."""
    return bool(getattr(getattr(backbone, "config", None), "is_encoder_decoder", False))


def has_segments(model: Any) -> bool:
    """Whether it has an embedding for the first and one for the second segment of a pair."""
    return getattr(model.config, "type_vocab_size", 0) > 1


def reads_both_ways(config: Any) -> bool:
    """Whether every token sees the whole row: by what the configuration says of itself, the classes it is saved for, and the classes
    that transformers has for its kind. (A tokenizer's mask token says nothing: those of Gemma and Cohere have one.)"""
    if getattr(config, "is_decoder", False) or getattr(config, "causal", False):  # XLM's name
        return False
    if getattr(config, "use_bidirectional_attention", None) is True or getattr(config, "is_causal", None) is False:
        return True
    kind = type(config)
    if kind in MODEL_FOR_MASKED_LM_MAPPING and kind in MODEL_FOR_CAUSAL_LM_MAPPING:
        return not any(name.endswith("ForCausalLM") for name in getattr(config, "architectures", None) or ())
    return kind in MODEL_FOR_MASKED_LM_MAPPING


def has_chat_template(tokenizer: Any) -> bool:
    return bool(getattr(tokenizer, "chat_template", None))


def chat_template(tokenizer: Any) -> Any:
    """The template of a tokenizer, or several by name; None: it has none."""
    return getattr(tokenizer, "chat_template", None)


def added_tokens(tokenizer: Any) -> dict[str, int]:
    """{token: id} of the tokens that are read whole wherever a text has them: special ones, and others added to the vocabulary."""
    added = {str(token): int(i) for i, token in getattr(tokenizer, "added_tokens_decoder", {}).items()}
    return added | dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))


def added_ids(tokenizer: Any) -> frozenset[int]:
    """Ids of `added_tokens`."""
    return frozenset(added_tokens(tokenizer).values())


def generation_config(model: Any) -> Any:
    """Of a model that generates; None: it does not."""
    return getattr(model, "generation_config", None)


def end_ids(model: Any) -> frozenset[int]:
    """Every `eos_token_id` of the generation config; empty where the model has none, since it generates nothing."""
    ids = getattr(generation_config(model), "eos_token_id", None)
    return frozenset() if ids is None else frozenset(int(i) for i in (ids if isinstance(ids, list | tuple) else [ids]))


def attention_dropout(backbone: Any) -> float:
    """The largest dropout rate of the configuration: inside attention and in some blocks, dropout is not a module."""
    return max((rate for name, rate in dropout_rates(backbone.config).items() if not name.startswith(HEAD_DROPOUTS)), default=0.0)


def dropout_rates(config: Any) -> dict[str, float]:
    """{name: rate} of a configuration, by whatever name: `attention_dropout`, `resid_pdrop`, `mlp_dropout`, `layerdrop`, ..."""
    values = {name: value for name, value in vars(config).items() if "drop" in name and not isinstance(value, bool)}
    return {name: float(value) for name, value in values.items() if isinstance(value, int | float) and 0 <= value <= 1}


def set_dropout(config: Any, rate: float) -> None:
    """Every dropout rate that the configuration has, those of its parts included. Whole layers are left out at a rate of their own,
    which is set to zero with the others and is left alone otherwise."""
    for name in dropout_rates(config):
        if rate == 0 or not any(part in name for part in SKIPPED_LAYERS):
            _set_rate(config, name, rate)
    for part in vars(config).values():
        if isinstance(part, PretrainedConfig):
            set_dropout(part, rate)


def _set_rate(config: Any, name: str, rate: float) -> None:
    """A rate as its field declares it: MPT has one that takes whole numbers alone."""
    whole = inspect.get_annotations(type(config)).get(name) in (int, "int")
    if whole and rate not in (0, 1):
        raise ConfigError(f"model.options.dropout: {rate} given, but {type(config).__name__}.{name} takes whole numbers; allowed: 0.")
    setattr(config, name, int(rate) if whole else float(rate))


def has_option(config: Any, name: str) -> bool:
    return hasattr(config, name)


def attention_kinds(model: Any) -> tuple[Any, str | None, tuple[str, ...]]:
    """The backbone's configuration, its attention implementation, and the kind of attention of each layer where it says so."""
    config: Any = getattr(backbone(model), "config", None) if isinstance(model, PreTrainedModel) else None
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

"""What has to be known to load a model, and the checks of its options that need no weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch

from advalign.checked import Checked, check
from advalign.errors import ConfigError, unknown
from advalign.models.folders import saved_facts
from advalign.ranges import Count, Matches, OneOf, ProperFraction, Satisfies, Seed, Words

HEADS = ("policy", "classifier", "score", "value")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
Head = Annotated[str, OneOf(HEADS, "head")]
"""What a network gives: next tokens, classes, one number per row, or one per token."""
DType = Annotated[str, OneOf(DTYPES, "dtype")]
"""Precision of weights."""
HEAD_OPTIONS = ("head_dropout", "spectral_norm")  # of the scalar head of a score or a value
ENCODER_OPTIONS = ("chat_template_kwargs", "special_tokens_in_text", "truncation")
LOADING_OPTIONS = ("attn_implementation", "revision", "device_map", "quantization_config")  # arguments of `from_pretrained`
OPTIONS: Mapping[str, Any] = {
    "pooling": Words,
    "num_labels": Count,
    "sha256": Annotated[str, Matches(r"[0-9a-fA-F]{64}", "a SHA-256 of 64 hexadecimal digits")],
    "gradient_checkpointing": bool,
    "compile": bool,
    "dropout": Any,
    "seed": Seed,
    "lora": Mapping[str, Any],
    "adapter": Words,
    "head_dropout": ProperFraction,
    "spectral_norm": bool,
    "chat_template": Words,
    "chat_template_kwargs": Mapping[str, Any],
    "special_tokens_in_text": Any,
    "truncation": Words,
    "resize_token_embeddings": Any,
    "attn_implementation": Words,
    "revision": Words,
    "device_map": Any,
    "quantization_config": Any,
}
"""{option: what it may hold, besides null}"""
TOKENIZER_TYPES: dict[str, Any] = {"kind": Words, "data": Any, "size": Count}
"""{field of a tokenizer from scratch: what its value is}"""
# What a learner may set on the base of another one.
SHARED_OPTIONS = ("pooling", "gradient_checkpointing", "compile", "seed", "lora", "adapter", "truncation", *HEAD_OPTIONS)


def check_known(options: Mapping[str, Any], path: str) -> None:
    """Raises ConfigError for an option that no model has."""
    for name in options:
        _check_gguf_file(name, options)
        if name not in OPTIONS:
            raise unknown(path, "option", name, OPTIONS)


@dataclass(frozen=True, kw_only=True)
class ModelSpec(Checked, section="learners"):
    """What has to be known to load a model."""

    model: Words
    """A hub id, a folder, a GGUF file, `<hub id>/<file>.gguf`, `package:<module>/<folder or GGUF file>`, `scratch:<preset>`,
    `learner:<name>` or `latent:<name>`."""
    head: Head = "policy"
    """policy (next token), classifier, score (one number per row) or value (one number per token)."""
    tokenizer: Any = None
    """An id, or {kind: words|characters|bpe, data: ...} for a model from scratch. None: the model's own."""
    max_length: Count = 512
    """The most tokens of a row; fewer where the model has positions for fewer."""
    dtype: DType = "float32"
    """Precision of the weights: float32, bfloat16, float16 or float64; those of half precision train through float32 copies."""
    options: Annotated[Mapping[str, Any], Satisfies(check_known)] = field(default_factory=dict)
    """pooling, num_labels, sha256 (of model.safetensors or the GGUF file), gradient_checkpointing, compile (the blocks, by torch.compile),
    dropout (off, on: the model's own rates, or a rate; by default on, but off in updates whose losses compare log-probabilities), seed,
    lora (fields of peft.LoraConfig), adapter (a folder whose adapter and head are put on this base); of a scalar head (score, value)
    head_dropout and spectral_norm; of the tokenizer chat_template (a .jinja file, the template itself, or none), chat_template_kwargs
    (arguments of the template, such as enable_thinking), special_tokens_in_text (whether special tokens that a text spells out are read as
    text, the default, or as tokens), truncation (of longer rows: error, left or right; `models/truncation.py`) and resize_token_embeddings
    (true, or arguments of transformers' method: rows for ids that the embedding lacks); by transformers' names attn_implementation,
    revision (of a hub id), device_map (one device) and quantization_config (a mapping; such a base trains with lora alone)."""


def check_options(options: Mapping[str, Any], allowed: Iterable[str]) -> None:
    """Raises ConfigError for an option that is not `allowed`, or does not hold what it should."""
    for name, value in options.items():
        _check_gguf_file(name, options)
        if name not in allowed:
            raise unknown("model.options", "option", name, allowed)
        if value is not None:
            check(OPTIONS[name], value, f"model.options.{name}")
    if options.get("lora") and "r" in options["lora"]:
        check(Count, options["lora"]["r"], "model.options.lora.r")


def _check_gguf_file(name: str, options: Mapping[str, Any]) -> None:
    """Raises ConfigError for the argument that names a GGUF file in transformers."""
    if name == "gguf_file":
        raise ConfigError(f"model.options.gguf_file: the file belongs to the model's name; give model: <folder or hub id>/{options[name]}.")


def check_tokenizer(tokenizer: Any) -> None:
    """Raises ConfigError unless it is a name, a mapping that describes one from scratch, or None."""
    if tokenizer is None or isinstance(tokenizer, str):
        return
    if not isinstance(tokenizer, Mapping):
        raise ConfigError(f"tokenizer: {tokenizer!r} given; a tokenizer's id or {{kind: words|characters|bpe, data: ...}} is expected.")
    for name, value in tokenizer.items():
        if name not in TOKENIZER_TYPES:
            raise unknown("tokenizer", "field", str(name), TOKENIZER_TYPES)
        check(TOKENIZER_TYPES[name], value, f"tokenizer.{name}", from_text=True)


def chat_template_text(value: Any) -> str | None:
    """A chat template from a file, or as it is written; "none": no template."""
    if value == "none":
        return None
    if isinstance(value, str) and ("{{" in value or "{%" in value):
        return value
    file = Path(str(value)).expanduser()
    if not file.is_file():
        raise ConfigError(
            f"model.options.chat_template: '{value}' is neither a file nor a template with {{{{ }}}} or {{% %}}; none turns it off."
        )
    return file.read_text(encoding="utf-8")


def dropout_rate(options: Mapping[str, Any]) -> float | None:
    """The rate that `options` give every dropout of a model: a number, or 0 for off; None: not given, or on, the model's own rates."""
    value = options.get("dropout")
    if value in ("on", "off") or isinstance(value, bool) or value is None:
        return 0.0 if value in ("off", False) else None
    if not isinstance(value, int | float) or not 0 <= value < 1:
        raise ConfigError(f"model.options.dropout: got {value}; give off, on (the model's own rates) or a rate from 0 up to, but not, 1.")
    return float(value)


def check_head(head: str) -> None:
    check(Head, head, "head")


def check_dtype(dtype: str) -> None:
    check(DType, dtype, "dtype")


def head_options(head: str, facts: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """`Network` arguments of a scalar head: those that its folder, or that of its adapter, remembers, unless `options` give others."""
    if head not in ("score", "value"):
        for name in HEAD_OPTIONS:
            if options.get(name):
                raise ConfigError(f"model.options.{name}: it belongs to the scalar head of a score or a value, and head is '{head}'.")
        return {}
    facts = saved_facts(Path(options["adapter"]).expanduser()) if options.get("adapter") else facts
    values = {"head_dropout": 0.0, "spectral_norm": False} | {k: v for k, v in (*facts.items(), *options.items()) if k in HEAD_OPTIONS}
    return {name: check(OPTIONS[name], value, f"model.options.{name}") for name, value in values.items()}

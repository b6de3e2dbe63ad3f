"""Models by name: a hub id, a local folder, `package:<module>/<folder>` (weights carried by an installed package) or
`scratch:<preset>`; as a policy, a classifier, a scorer or a critic; pinned by hash on request; frozen copies."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from advalign.errors import ConfigError, unknown
from advalign.models import scratch
from advalign.models.encode import Encoder
from advalign.models.forward import HEADS, Network

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Abstract: what has to be known to load a model. `tokenizer`: an id, or {kind: words|characters|bpe, data: ...}
    for a model from scratch. `options`: pooling, num_labels, sha256 (of model.safetensors), gradient_checkpointing,
    dropout, seed, lora (fields of peft.LoraConfig)."""

    model: str
    head: str = "policy"
    tokenizer: Any = None
    max_length: int = 512
    dtype: str = "float32"
    options: Mapping[str, Any] = field(default_factory=dict)


OPTIONS = ("pooling", "num_labels", "sha256", "gradient_checkpointing", "dropout", "seed", "lora")


def load(
    model: str,
    *,
    head: str | None = None,
    tokenizer: Any = None,
    texts: Iterable[str] = (),
    max_length: int | None = None,
    dtype: str = "float32",
    options: Mapping[str, Any] | None = None,
) -> Network:
    """A network with its encoder. `texts` is what a tokenizer from scratch is built from.

    A folder written by `Network.save_pretrained` remembers its head and length; an argument overrides them.
    """
    options = dict(options or {})
    for name in options:
        if name not in OPTIONS:
            raise unknown("model.options", "option", name, OPTIONS)
    folder = _folder(model)
    facts = json.loads((folder / "advalign.json").read_text()) if folder and (folder / "advalign.json").exists() else {}
    head = head or facts.get("head", "policy")
    if head not in HEADS:
        raise unknown("head", "head", head, HEADS)
    if dtype not in DTYPES:
        raise unknown("dtype", "dtype", dtype, DTYPES)
    if options.get("sha256"):
        _verify(folder, model, options["sha256"])
    length = max_length or facts.get("max_length", 512)
    with torch.random.fork_rng():
        torch.manual_seed(int(options.get("seed", 0)))
        network = _build(model, str(folder or model), head, tokenizer, texts, length, facts, options)
    network.to(DTYPES[dtype])
    if folder and (folder / "scalar_head.safetensors").exists() and head in ("score", "value"):
        network.scalar.load_state_dict(load_file(folder / "scalar_head.safetensors"))
    return _finish(network, options)


def frozen(network: Network) -> Network:
    """A copy that never trains: a reference, a teacher, an opponent."""
    twin = copy.deepcopy(network).eval().requires_grad_(False)
    twin.num_forwards = twin.num_rows = 0
    return twin


def _build(
    model: str,
    where: str,
    head: str,
    tokenizer: Any,
    texts: Iterable[str],
    length: int,
    facts: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Network:
    extra: dict[str, Any] = {"num_labels": int(options["num_labels"])} if head == "classifier" and "num_labels" in options else {}
    auto: Any = {"policy": AutoModelForCausalLM, "classifier": AutoModelForSequenceClassification}.get(head, AutoModel)
    if model.startswith("scratch:"):
        preset = model.removeprefix("scratch:")
        both_ways = scratch.is_encoder(preset)
        if both_ways and head in ("policy", "value"):
            raise ConfigError(f"head: '{model}' reads both ways, so it cannot be a {head}; use a preset such as scratch:tiny.")
        words = _tokenizer_from(tokenizer, texts, both_ways)
        config = scratch.config(preset, len(words), length)
        _set_dropout(config, options.get("dropout", 0.0))
        for key, value in extra.items():
            setattr(config, key, value)
        body = auto.from_config(config)
    else:
        config = AutoConfig.from_pretrained(where, **extra)
        if "dropout" in options:
            _set_dropout(config, options["dropout"])
        body = auto.from_pretrained(where, config=config)
        words = AutoTokenizer.from_pretrained(tokenizer if isinstance(tokenizer, str) else where)
        both_ways = facts.get("bidirectional", not getattr(config, "is_decoder", False) and words.mask_token is not None)
    if words.pad_token is None and words.eos_token is None:
        raise ConfigError(f"{model}: its tokenizer has neither a padding nor an end-of-sequence token; set one of them.")
    pooling = options.get("pooling") or facts.get("pooling") or ("mean" if both_ways else "last")
    return Network(body, Encoder(words, max_length=length, bidirectional=both_ways), head, pooling=pooling)


def _tokenizer_from(given: Any, texts: Iterable[str], bidirectional: bool) -> Any:
    if isinstance(given, str):
        return AutoTokenizer.from_pretrained(given)
    if not isinstance(given, Mapping):
        raise ConfigError("tokenizer: a model from scratch needs {kind: words|characters|bpe, data: ...} or a tokenizer id.")
    return scratch.tokenizer(given.get("kind", "words"), texts, size=int(given.get("size", 4096)), bidirectional=bidirectional)


def _finish(network: Network, options: Mapping[str, Any]) -> Network:
    if options.get("lora"):
        from peft import LoraConfig, inject_adapter_in_model

        network.model.requires_grad_(False)
        inject_adapter_in_model(LoraConfig(**options["lora"]), network.model)
    if options.get("gradient_checkpointing"):
        network.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return network


def _set_dropout(config: Any, rate: float) -> None:
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop"):
        if hasattr(config, name):
            setattr(config, name, float(rate))


def _folder(model: str) -> Path | None:
    if model.startswith("package:"):
        module, _, inside = model.removeprefix("package:").partition("/")
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            raise ConfigError(f"model: '{model}' needs the package '{module}', which is not installed.")
        return Path(spec.origin).parent / inside
    path = Path(model).expanduser()
    return path if not model.startswith("scratch:") and path.is_dir() else None


def _verify(folder: Path | None, model: str, expected: str) -> None:
    if folder is None:
        raise ConfigError(f"model: '{model}' is no local folder, so its sha256 cannot be checked; give a path or a package.")
    with (folder / "model.safetensors").open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise ConfigError(f"model: {model}/model.safetensors has sha256 {found}, expected {expected}.")

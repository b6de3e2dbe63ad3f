"""Adapters as folders in peft's format, written by this library or by peft: AutoPeftModelFor... and transformers read them too.

A trained head is one of the `modules_to_save` of such a folder, and the experts of a mixture are its `target_parameters`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from advalign.checked import check
from advalign.errors import ConfigError
from advalign.models import adapters, architecture, gguf_files, loading_arguments, pretrained
from advalign.models.base import NetworkBase
from advalign.models.folders import ADAPTER_BASE, ADAPTER_CONFIG, FACTS, MODEL_CONFIG, adapter_config, model_folder, saved_facts, saved_head
from advalign.ranges import Count, Fraction, Positive

WEIGHTS, CLASSIFIER_HEAD = "adapter_model.safetensors", "classifier_head.safetensors"
PREFIX = "base_model.model."  # of every name in peft's files
TASKS = {"policy": "CAUSAL_LM", "classifier": "SEQ_CLS"}  # of a score or value: FEATURE_EXTRACTION
FIELD_TYPES: dict[str, Any] = {
    "r": Count,
    "lora_alpha": Positive,
    "lora_dropout": Fraction,
    "target_modules": str | Sequence[str],
    "modules_to_save": Sequence[str],
    "rank_pattern": Mapping[str, int],
    "alpha_pattern": Mapping[str, float],
    "revision": str,
}
"""{field of an adapter's configuration: what its value is}"""
# Fields of an adapter's configuration that say nothing about what it computes.
DESCRIPTIVE = (
    *("base_model_name_or_path", "revision", "task_type", "inference_mode", "auto_mapping", "peft_version", "peft_type"),
    *("fan_in_fan_out", "modules_to_save", "loftq_config", "eva_config", "runtime_config", "ensure_weight_tying"),
)


def save(network: NetworkBase, folder: Path, facts: Mapping[str, Any], place: Path) -> dict[str, Any]:
    """The adapter and a trained head as peft writes them, and a base without a name. Returns what `attach` will compare. `place`: where the
    folder will be."""
    model = network.model
    if network.source is None:
        adapters.without_adapter(model).save_pretrained(folder / ADAPTER_BASE)
        (folder / ADAPTER_BASE / FACTS).write_text(json.dumps(facts, indent=1))
    export(network, folder, place)
    # With it the folder would be a whole model to transformers; the base has its own.
    (folder / MODEL_CONFIG).unlink(missing_ok=True)
    (folder / CLASSIFIER_HEAD).unlink(missing_ok=True)
    labels = {"num_labels": network.num_classes, "class_names": network.class_names} if network.head == "classifier" else {}
    # Packed weights are not those of the same base in another precision.
    quantised = loading_arguments.is_quantized(network.model)
    return labels | ({} if quantised else {adapters.FINGERPRINT: adapters.fingerprint(network).hex()})


def export(network: NetworkBase, folder: Path, place: Path | None = None) -> None:
    """The adapter and a trained head as peft writes them, and nothing else. `place`: where the folder will be, if it is moved."""
    model, peft = network.model, adapters.import_peft()
    config = {k: sorted(v) if isinstance(v, set) else v for k, v in architecture.lora_config(model).to_dict().items()}
    config["target_modules"] = _short_names(network, config["target_modules"])
    heads = _heads(network)
    modules = [*(config.get("modules_to_save") or ()), *_head_modules(network, heads)]
    base = network.source or str(((place or folder) / ADAPTER_BASE).resolve())
    config |= {"base_model_name_or_path": base, "revision": network.revision, "inference_mode": True, "modules_to_save": modules or None}
    config |= {"task_type": TASKS.get(network.head, "FEATURE_EXTRACTION")}
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    state = peft.get_peft_model_state_dict(model, save_embedding_layers=False) | heads
    save_file({PREFIX + k: v.detach().contiguous() for k, v in state.items()}, folder / WEIGHTS)


def _short_names(network: NetworkBase, targets: Any) -> Any:
    """Names of adapted layers without the beginnings that they have in this class alone: `all-linear` becomes a list of whole names, which
    no layer of a model without its head has. Other targets stay as they are."""
    layers = adapters.adapted_layers(network.model)
    modules = {adapters.base_name(name + ".").rstrip(".") for name, _ in network.model.named_modules()}
    if not isinstance(targets, list) or not targets or not set(targets) <= modules:
        return targets
    endings = set()
    for name in set(targets) & layers:
        parts = name.split(".")
        candidates = (".".join(parts[-n:]) for n in range(1, len(parts) + 1))
        endings.add(next(c for c in candidates if c == name or not any(_ends_with(m, c) for m in modules - layers)))
    return sorted(endings)


def _ends_with(module: str, ending: str) -> bool:
    return f".{module}".endswith(f".{ending}")


def remove_files(folder: Path) -> None:
    """Removes the adapter of a folder that gets a whole model."""
    for name in (ADAPTER_CONFIG, WEIGHTS, CLASSIFIER_HEAD):
        (folder / name).unlink(missing_ok=True)


def base_options(folder: Path, model: str, head: str | None) -> dict[str, Any]:
    """Options of the base that an adapter needs: the number of classes of its trained head, and a revision."""
    config, facts = adapter_config(folder), saved_facts(folder)
    is_on_hub = bool(config.get("revision")) and (gguf_files.hub_name(model) is not None or model_folder(model) is None)
    options = {"revision": config["revision"]} if is_on_hub else {}
    if head != "classifier" or saved_head(folder) != "classifier":
        return options
    number = facts.get("num_labels")
    if number is None:
        number = pretrained.num_labels_of(model, {k: tuple(v.shape) for k, v in _read(folder).items()}, **options)
    return options | ({} if number is None else {"num_labels": number})


def attach(network: NetworkBase, folder: Path) -> None:
    """The adapter and the head of a folder, on the base they were trained on."""
    if not (folder / ADAPTER_CONFIG).is_file():
        raise ConfigError(f"model.options.adapter: '{folder}' holds no {ADAPTER_CONFIG}; give a folder that was saved with an adapter.")
    config, state = adapter_config(folder), _read(folder)
    _check_config(config, folder)
    heads = {k: state.pop(k) for k in _heads(network) if k in state}
    if network.head == "classifier" and (folder / CLASSIFIER_HEAD).is_file():
        heads |= load_file(folder / CLASSIFIER_HEAD)
    modules = _other_modules(config.get("modules_to_save") or (), state)
    lora = {k: config[k] for k in adapters.FIELDS if config.get(k) is not None and k != "modules_to_save"}
    adapters.inject(network, lora | ({"modules_to_save": modules} if modules else {}))
    _load_state(network, state, folder)
    saved = None if loading_arguments.is_quantized(network.model) else saved_facts(folder).get(adapters.FINGERPRINT)
    if saved not in (None, adapters.fingerprint(network).hex()):
        raise ConfigError(f"model: the adapter in {folder} was trained on another base than the one it is given.")
    _load_heads(network, heads, folder)
    _name_classes(network, folder)


def _read(folder: Path) -> dict[str, Tensor]:
    """{name in the model: weight} of an adapter."""
    try:
        return {k.removeprefix(PREFIX): v for k, v in load_file(folder / WEIGHTS).items()}
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"model: {folder}/{WEIGHTS} cannot be read ({str(error).splitlines()[0]}); give an adapter in this format (no pickles)."
        ) from error


def _check_config(config: Mapping[str, Any], folder: Path) -> None:
    """Raises ConfigError for an adapter that computes what this library does not."""
    if config.get("peft_type") != "LORA":
        raise ConfigError(f"model: the adapter in {folder} is of peft_type {config.get('peft_type')}; LORA is supported.")
    for name, annotation in FIELD_TYPES.items():
        if config.get(name) is not None:
            check(annotation, config[name], f"model: {folder / ADAPTER_CONFIG}: {name}")
    defaults = adapters.import_peft().LoraConfig()
    allowed = (*adapters.FIELDS, *DESCRIPTIVE)
    for field in dataclass_fields(defaults):
        default = vars(defaults)[field.name]
        if field.name not in allowed and config.get(field.name) and config[field.name] != default:
            raise ConfigError(
                f"model: the adapter in {folder} has {field.name}: {config[field.name]}, which is not supported; merge it with peft first."
            )


def _heads(network: NetworkBase) -> dict[str, Tensor]:
    """{name in the model: weight} of the trained head of a classifier."""
    weights = network.model.named_parameters()
    return {k: v for k, v in weights if adapters.owns(network, f"model.{k}") and not adapters.is_adapter(k)}


def _head_modules(network: NetworkBase, heads: Mapping[str, Tensor]) -> list[str]:
    """The modules that hold a head: those beside the backbone, and a pooler inside it."""
    prefix = f"{network.model.base_model_prefix}."
    outside = dict.fromkeys(k.partition(".")[0] for k in heads if not k.startswith(prefix))
    inside = dict.fromkeys(k[: k.index("pooler") + len("pooler")] for k in heads if k.startswith(prefix))
    return [*outside, *inside]


def _other_modules(names: Any, state: Mapping[str, Tensor]) -> list[str]:
    """Modules that were trained whole beside the adapter and are no head."""
    modules = {k.rpartition(".")[0] for k in state if "lora_" not in k}
    return [name for name in names if any(f"{module}.".endswith(f"{name}.") or f".{name}." in f".{module}." for module in modules)]


def _load_state(network: NetworkBase, state: Mapping[str, Tensor], folder: Path) -> None:
    """Weights of the adapter, by names that peft may convert to those of this version of transformers."""
    parameters = dict(network.model.named_parameters())
    base = {k: v for k, v in state.items() if k in parameters and not adapters.is_adapter(k)}
    if changed := [k for k, v in base.items() if not torch.equal(parameters[k].detach().to(v), v)]:
        raise ConfigError(f"model: {folder}/{WEIGHTS} changes a weight of the base ({changed[0]}); merge it with peft first.")
    try:
        result = adapters.import_peft().set_peft_model_state_dict(network.model, {k: v for k, v in state.items() if k not in base})
        unmatched = sorted([*result.unexpected_keys, *filter(adapters.is_adapter, result.missing_keys)])
    except (RuntimeError, KeyError) as error:
        unmatched = [" ".join(str(error).split())]
    if unmatched:
        raise ConfigError(f"model: {folder}/{WEIGHTS} does not fit this base; {unmatched[0]} is only in one of them.")


def _load_heads(network: NetworkBase, heads: Mapping[str, Tensor], folder: Path) -> None:
    own = _heads(network)
    for name, weight in heads.items():
        if name not in own or own[name].shape != weight.shape:
            wanted = tuple(own[name].shape) if name in own else "no such weight"
            raise ConfigError(f"model: the head in {folder} does not fit: {name} is {tuple(weight.shape)}, and the model has {wanted}.")
        own[name].data.copy_(weight)
    network.drawn_weights = tuple(name for name in network.drawn_weights if name not in heads)


def _name_classes(network: NetworkBase, folder: Path) -> None:
    """The class names that an adapter was saved with; those of its base must be the same."""
    names = tuple(saved_facts(folder).get("class_names") or ())
    if network.head != "classifier" or not names:
        return
    if network.class_names not in ((), names):
        raise ConfigError(
            f"model: the adapter in {folder} was trained on the classes {', '.join(names)}, and its base names "
            f"{', '.join(network.class_names)}."
        )
    network.name_classes(names)

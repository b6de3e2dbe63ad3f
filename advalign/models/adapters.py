"""LoRA: h = W x + (alpha / r) B A x with W frozen, B zero at the start   (arXiv:2106.09685, eq. 3), by peft.

Difference: nothing is switched on or off. Learners that share a base each have a tree of modules of their own over the SAME
frozen parameters. Named adapters on one tree, peft's way, would have to stay active until the backward pass ends, because
checkpointed blocks are computed again in it, and every switch would move requires_grad, dropout and hooks of all learners.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from advalign.errors import ConfigError, unknown
from advalign.models import architecture
from advalign.models.base import NetworkBase
from advalign.models.folders import ADAPTER_BASE, ADAPTER_CONFIG, FACTS, saved_facts

# Fields of peft.LoraConfig that leave the base as it is; others train or rewrite parts of it.
FIELDS = (
    *("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "init_lora_weights", "rank_pattern", "alpha_pattern"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
)
STARTS = (True, False, "gaussian", "orthogonal")
WEIGHTS, CLASSIFIER_HEAD = "adapter_model.safetensors", "classifier_head.safetensors"
PREFIX = "base_model.model."  # of every name in peft's files
FINGERPRINT = "base_fingerprint"  # beside the weights in a state_dict

AnyNetwork = TypeVar("AnyNetwork", bound=NetworkBase)


def inject(network: NetworkBase, lora: Mapping[str, Any]) -> None:
    """Freeze the base and put an adapter in it; it and the head train. A low-precision base gets float32 adapters."""
    peft = _peft()
    for name in lora:
        if name not in FIELDS:
            raise unknown("model.options.lora", "field", str(name), FIELDS)
    if lora.get("init_lora_weights", True) not in STARTS:
        raise ConfigError(
            f"model.options.lora.init_lora_weights: '{lora['init_lora_weights']}' would rewrite the base, which is kept as it is; "
            f"allowed: {', '.join(map(str, STARTS))}."
        )
    if has_adapter(network.model):
        raise ConfigError("model.options.lora: this model already carries an adapter; leave lora out, or export it merged first.")
    transposed = any(isinstance(m, Conv1D) for m in network.model.modules())
    try:
        config = peft.LoraConfig(fan_in_fan_out=transposed, **lora)
        peft.inject_adapter_in_model(config, network.model)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"model.options.lora: {' '.join(str(error).split()).rstrip('.')}.") from error
    peft.tuners.tuners_utils.cast_adapter_dtype(network.model, "default")
    freeze(network)


def freeze(network: NetworkBase) -> None:
    """Only adapter and head of the network train from here on; its base may be shared. `state_dict` holds adapter, head, and a
    fingerprint of the base that `load_state_dict` compares."""
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(owns(network, name))
    if not network.shares_base:
        network.shares_base = True
        network.register_state_dict_post_hook(_drop_base)
        network.register_load_state_dict_pre_hook(_compare_base)
        network.register_load_state_dict_post_hook(_allow_missing_base)


def is_adapter(name: str) -> bool:
    return any(part.startswith("lora_") for part in name.split("."))


def has_adapter(model: nn.Module) -> bool:
    return any(is_adapter(name) for name, _ in model.named_parameters())


def owns(network: NetworkBase, name: str) -> bool:
    """Whether a parameter belongs to this network alone: its adapter, its scalar head, the head of a classifier."""
    outside = not name.startswith(f"model.{network.model.base_model_prefix}.")
    return is_adapter(name) or name.startswith("scalar.") or (network.head == "classifier" and outside)


# ------------------------------------------------------------------------------------------------ trees over one base


def clone_sharing_base(network: AnyNetwork) -> AnyNetwork:
    """The same base and encoder; current adapter and head are copied."""
    base = [p for name, p in network.named_parameters() if not owns(network, name)]
    return copy.deepcopy(network, {id(x): x for x in (*base, *network.buffers(), network.encoder)})


def without_adapter(model: nn.Module) -> Any:
    """Other modules over the same parameters, without an adapter: bit for bit the base."""
    base = copy.deepcopy(model, {id(x): x for x in (*model.parameters(), *model.buffers())})
    for name, layer in list(_layers(base)):
        base.set_submodule(name, layer.get_base_layer())
    vars(base).pop("peft_config", None)
    return base


def merge_adapter(model: nn.Module) -> Any:
    """Other modules with W + (alpha / r) B A where there was an adapter, and the same parameters everywhere else."""
    merged = copy.deepcopy(model, {id(x): x for x in (*model.parameters(), *model.buffers())})
    uses = [id(p) for _, p in merged.named_parameters(remove_duplicate=False)]
    for name, layer in list(_layers(merged)):
        if uses.count(id(layer.get_base_layer().weight)) > 1:
            raise ConfigError(
                f"save_pretrained: '{name}' is tied to another weight, so its adapter cannot be merged; save with merged=False."
            )
        layer.base_layer = copy.deepcopy(layer.get_base_layer())
        layer.merge()
        merged.set_submodule(name, layer.get_base_layer())
    vars(merged).pop("peft_config", None)
    return merged


def adds_nothing(model: nn.Module) -> bool:
    """Whether the adapter is exactly zero: in every layer A or B is zero, and there is nothing else (as in DoRA)."""
    layers = [[p for name, p in layer.named_parameters() if is_adapter(name)] for _, layer in _layers(model)]
    return all(len(pair) == 2 and not all(bool(p.any()) for p in pair) for pair in layers)


def _layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    if has_adapter(model):
        adapted = _peft().tuners.tuners_utils.BaseTunerLayer
        yield from ((name, module) for name, module in model.named_modules() if isinstance(module, adapted))


# ------------------------------------------------------------------------------------------------ files and states


def save(network: NetworkBase, folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The adapter as peft writes it, and beside it what peft does not know: the head of a classifier, and a base without a name.
    Returns what `attach` will compare."""
    model = network.model
    export(network, folder)
    heads = [(k, v) for k, v in model.named_parameters() if owns(network, f"model.{k}") and not is_adapter(k)]
    if heads:
        save_file({k: v.detach().contiguous() for k, v in heads}, folder / CLASSIFIER_HEAD)
    model.config.save_pretrained(folder)
    if network.source is None:
        without_adapter(model).save_pretrained(folder / ADAPTER_BASE)
        (folder / ADAPTER_BASE / FACTS).write_text(json.dumps(facts, indent=1))
    return {"num_labels": model.config.num_labels, FINGERPRINT: fingerprint(network).hex()}


def export(network: NetworkBase, folder: Path) -> None:
    """The adapter as peft writes it, and nothing else."""
    model, peft = network.model, _peft()
    config = {k: sorted(v) if isinstance(v, set) else v for k, v in architecture.lora_config(model).to_dict().items()}
    config |= {"base_model_name_or_path": network.source, "inference_mode": True}
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    state = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    save_file({PREFIX + k: v.contiguous() for k, v in state.items()}, folder / WEIGHTS)


def remove_files(folder: Path) -> None:
    """Removes the adapter of a folder that gets a whole model."""
    for name in (ADAPTER_CONFIG, WEIGHTS, CLASSIFIER_HEAD):
        (folder / name).unlink(missing_ok=True)


def attach(network: NetworkBase, folder: Path) -> None:
    """The adapter and the head of a folder, on the base they were trained on."""
    if not (folder / ADAPTER_CONFIG).is_file():
        raise ConfigError(f"model.options.adapter: '{folder}' holds no {ADAPTER_CONFIG}; give a folder that was saved with an adapter.")
    peft, config = _peft(), json.loads((folder / ADAPTER_CONFIG).read_text())
    inject(network, {k: config[k] for k in FIELDS if config.get(k) is not None})
    state = {k.removeprefix(PREFIX): v for k, v in load_file(folder / WEIGHTS).items()}
    unmatched = sorted(set(state) ^ set(peft.get_peft_model_state_dict(network.model, save_embedding_layers=False)))
    if unmatched:
        raise ConfigError(f"model: {folder}/{WEIGHTS} does not fit this base; {unmatched[0]} is only in one of them.")
    if saved_facts(folder).get(FINGERPRINT) not in (None, fingerprint(network).hex()):
        raise ConfigError(f"model: the adapter in {folder} was trained on another base than the one it is given.")
    peft.set_peft_model_state_dict(network.model, state)
    if network.head == "classifier" and (folder / CLASSIFIER_HEAD).is_file():
        network.model.load_state_dict(load_file(folder / CLASSIFIER_HEAD), strict=False)


def fingerprint(network: NetworkBase) -> bytes:
    """A hash of the base: names, shapes and the first values of every tensor, equal in every precision."""
    digest = hashlib.sha256()
    for name, parameter in network.named_parameters():
        if not owns(network, name):
            digest.update(f"{name.replace('.base_layer.', '.')}{tuple(parameter.shape)}".encode())
            digest.update(parameter.detach().flatten()[:64].float().bfloat16().view(torch.uint8).cpu().numpy().tobytes())
    return digest.digest()


def _drop_base(network: NetworkBase, state: dict[str, Any], prefix: str, _: Any) -> None:
    for name in [k for k in state if k.startswith(prefix) and not owns(network, k.removeprefix(prefix))]:
        del state[name]
    state[prefix + FINGERPRINT] = torch.frombuffer(bytearray(fingerprint(network)), dtype=torch.uint8)


def _compare_base(network: NetworkBase, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    saved = state.pop(prefix + FINGERPRINT, None)
    if saved is not None and bytes(saved.tolist()) != fingerprint(network):
        raise ConfigError("load_state_dict: these adapters were trained on another base than the one that is loaded.")
    # A frozen copy was saved without its adapter, if that was untrained when the copy was made.
    frozen = not any(p.requires_grad for p in network.parameters())
    if frozen and saved is not None and not any(is_adapter(k) for k in state):
        network.model = without_adapter(network.model)


def _allow_missing_base(network: NetworkBase, keys: Any) -> None:
    keys.missing_keys[:] = [k for k in keys.missing_keys if owns(network, k)]


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ConfigError("model.options.lora: adapters need the package peft; pip install 'advalign[peft]'.") from error
    return peft

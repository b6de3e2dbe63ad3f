"""LoRA: h = W x + (alpha / r) B A x with W frozen, B zero at the start   (arXiv:2106.09685, eq. 3), by peft.

Difference: nothing is switched on or off. Learners that share a base each have a tree of modules of their own over the SAME
frozen parameters. Named adapters on one tree, peft's way, would have to stay active until the backward pass ends, because
checkpointed blocks are computed again in it, and every switch would move requires_grad, dropout and hooks of all learners.
"""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from advalign.errors import ConfigError, unknown
from advalign.models import adapter_product
from advalign.models.base import NetworkBase

# Fields of peft.LoraConfig that leave the base as it is; others train or rewrite parts of it.
FIELDS = (
    *("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "init_lora_weights", "rank_pattern", "alpha_pattern"),
    *("target_modules", "target_parameters", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"),
)
STARTS = (True, False, "gaussian", "orthogonal")
OWN_COPY = "modules_to_save"  # in names of modules that train as a whole, on a copy of those of the base
FINGERPRINT = "base_fingerprint"  # beside the weights in a state_dict

AnyNetwork = TypeVar("AnyNetwork", bound=NetworkBase)


def inject(network: NetworkBase, lora: Mapping[str, Any]) -> None:
    """Freeze the base and put an adapter in it; it and the head train. A base in half precision gets float32 adapters, which are multiplied
    in its precision (`models/adapter_product.py`)."""
    peft = import_peft()
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
    if lora.get("target_modules") == "all-linear" and not lora.get("exclude_modules"):
        lora = {**lora, "exclude_modules": _linear_without_product(network.model)}
    copies = _modules_beside_head(network, lora.get(OWN_COPY) or ())
    try:
        config = peft.LoraConfig(fan_in_fan_out=transposed, **{**lora, OWN_COPY: copies or None})
        peft.inject_adapter_in_model(config, network.model)
    except Exception as error:  # of patterns and of peft
        raise ConfigError(f"model.options.lora: {' '.join(str(error).split()).rstrip('.')}.") from error
    _free_head(network)
    for name, parameter in network.model.named_parameters():
        if is_adapter(name) and parameter.dtype in adapter_product.HALF:
            parameter.data = parameter.data.float()
    adapter_product.multiply_in_half_precision(_wrappers(network.model), peft.tuners.lora.Linear)
    freeze(network)


@torch.no_grad()
def _linear_without_product(model: nn.Module) -> list[str] | None:
    """Linear modules whose forward gives more than a product, such as routers that return a pair: an adapter cannot be added to it."""
    names = []
    for name, m in model.named_modules():
        if isinstance(m, nn.Linear) and type(m).forward is not nn.Linear.forward:
            output = m(m.weight.new_zeros(1, m.in_features))
            names += [] if isinstance(output, Tensor) else [name]
    return names or None


def _free_head(network: NetworkBase) -> None:
    """No adapter in the head of a classifier, which trains as a whole."""
    for name, layer in list(_layers(network.model)):
        if owns(network, f"model.{name}.weight"):
            network.model.set_submodule(name, layer.get_base_layer())


def _modules_beside_head(network: NetworkBase, names: Iterable[str]) -> list[str]:
    """`modules_to_save` without the head of a classifier, which trains as it is."""
    modules = []
    for name in names:
        matches = [module for module, _ in network.model.named_modules() if module.endswith(name)]
        if not matches:
            raise ConfigError(f"model.options.lora.modules_to_save: {type(network.model).__name__} has no module '{name}'.")
        if not all(_is_head(network, module) for module in matches):
            modules.append(name)
    return modules


def _is_head(network: NetworkBase, module: str) -> bool:
    return all(owns(network, f"model.{module}.{name}") for name, _ in network.model.get_submodule(module).named_parameters())


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
    """Whether a name is that of an adapter, or of a module that trains beside it on a copy."""
    return any(part.startswith("lora_") or part == OWN_COPY for part in name.split("."))


def has_adapter(model: nn.Module) -> bool:
    return any(is_adapter(name) for name, _ in model.named_parameters())


def owns(network: NetworkBase, name: str) -> bool:
    """Whether a parameter belongs to this network alone: its adapter, its scalar head, the head of a classifier."""
    outside = not name.startswith(f"model.{network.model.base_model_prefix}.")
    new = network.new_weights and base_name(name.removeprefix("model.")) in network.new_weights
    return is_adapter(name) or name.startswith("scalar.") or (network.head == "classifier" and (outside or bool(new)))


def base_name(name: str) -> str:
    """The name that a parameter of the base has without an adapter."""
    return re.sub(r"(\.base_layer)+(?=\.)", "", name).replace(".original_module.", ".")


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
    for name, module in list(_copies(base)):
        base.set_submodule(name, module.original_module)
    vars(base).pop("peft_config", None)
    return base


def merge_adapter(model: nn.Module) -> Any:
    """Other modules with W + (alpha / r) B A where there was an adapter, and the same parameters everywhere else."""
    merged = copy.deepcopy(model, {id(x): x for x in (*model.parameters(), *model.buffers())})
    uses = [id(p) for _, p in merged.named_parameters(remove_duplicate=False)]
    for name, layer in list(_layers(merged)):
        _refuse_tied(name, layer.get_base_layer(), uses)
        wrappers = [m for m in layer.modules() if isinstance(m, _tuner_layer())]  # one for every parameter, from the outside in
        wrappers[-1].base_layer = copy.deepcopy(layer.get_base_layer())
        for wrapper in wrappers:
            wrapper.merge()
        merged.set_submodule(name, layer.get_base_layer())
    for name, module in list(_copies(merged)):
        _refuse_tied(name, module.original_module, uses)
        merged.set_submodule(name, module.modules_to_save["default"])
    vars(merged).pop("peft_config", None)
    return merged


def _refuse_tied(name: str, base: nn.Module, uses: list[int]) -> None:
    if any(uses.count(id(p)) > 1 for p in base.parameters()):
        raise ConfigError(f"save_pretrained: '{name}' is tied to another weight, so its adapter cannot be merged; save with merged=False.")


def adds_nothing(model: nn.Module) -> bool:
    """Whether the adapter is exactly zero: in every layer A or B is zero, and there is nothing else (as in DoRA)."""
    copies = [zip(m.original_module.parameters(), m.modules_to_save.parameters(), strict=True) for _, m in _copies(model)]
    pairs = [[p for name, p in layer.named_parameters() if is_adapter(name) and "base_layer" not in name] for layer in _wrappers(model)]
    unchanged = all(torch.equal(p, q) for pair in copies for p, q in pair)
    return unchanged and all(len(pair) == 2 and not all(bool(p.any()) for p in pair) for pair in pairs)


def _layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Layers with an adapter, the outermost wrapper of each."""
    if has_adapter(model):
        outer = ""
        for name, module in model.named_modules():
            if isinstance(module, _tuner_layer()) and not (outer and name.startswith(outer)):
                outer = f"{name}."
                yield name, module


def adapted_layers(model: nn.Module) -> set[str]:
    """Names of the layers with an adapter."""
    return {name for name, _ in _layers(model)}


def _wrappers(model: nn.Module) -> Iterator[Any]:
    """Every wrapper: a layer of several parameters, such as the experts of a mixture, has one for each."""
    return (m for _, layer in _layers(model) for m in layer.modules() if isinstance(m, _tuner_layer()))


def _copies(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Modules that train as a whole, on a copy of those of the base."""
    if has_adapter(model):
        wrapper = import_peft().utils.ModulesToSaveWrapper
        yield from ((name, module) for name, module in model.named_modules() if isinstance(module, wrapper))


def _tuner_layer() -> Any:
    return import_peft().tuners.tuners_utils.BaseTunerLayer


# ---------------------------------------------------------------------------------------------------------- states


def fingerprint(network: NetworkBase) -> bytes:
    """A hash of the base: names, shapes and the first values of every tensor, equal in every precision."""
    digest = hashlib.sha256()
    for name, parameter in _in_fixed_order(network):
        if not owns(network, name):
            digest.update(f"{base_name(name)}{tuple(parameter.shape)}".encode())
            digest.update(parameter.detach().flatten()[:64].float().bfloat16().view(torch.uint8).cpu().numpy().tobytes())
    return digest.digest()


def _in_fixed_order(network: NetworkBase) -> list[tuple[str, Tensor]]:
    """Parameters by module, weight before bias. (A forward of adapted experts registers their parameters anew, in another order.)"""
    modules: dict[str, int] = {}
    named = [(base_name(name).rpartition("."), name, parameter) for name, parameter in network.named_parameters()]
    for (module, _, _), _, _ in named:
        modules.setdefault(module, len(modules))
    named.sort(key=lambda entry: [-ord(c) for c in entry[0][2]])
    named.sort(key=lambda entry: modules[entry[0][0]])
    return [(name, parameter) for _, name, parameter in named]


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


def import_peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ConfigError("model.options.lora: adapters need the package peft; pip install 'advalign[peft]'.") from error
    return peft

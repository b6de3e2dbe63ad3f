"""A learner's weights as vLLM reads them: tensors by their names in a checkpoint, folders of safetensors, or an adapter alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from advalign.errors import ConfigError
from advalign.models import Network, adapter_files, adapters, architecture, loading_arguments

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM lets `max_lora_rank` be, from peft's default on


def adapted(network: Network) -> bool:
    """Whether only an adapter trains that vLLM can apply itself. DoRA, adapted experts and modules that train as a whole are sent merged,
    as whole models."""
    config = architecture.lora_config(network.model)
    if config is None or not adapters.has_adapter(network.model):
        return False
    return not (config.use_dora or config.target_parameters or config.modules_to_save)


def rank(network: Network) -> int:
    """The smallest bound that vLLM allows on the ranks of this adapter."""
    config = architecture.lora_config(network.model)
    largest = max([config.r, *(config.rank_pattern or {}).values()])
    return next((r for r in RANKS if r >= largest), largest)


def base(network: Network) -> Any:
    """The transformers model that vLLM holds: without the adapter where that is sent separately, else merged."""
    if loading_arguments.is_quantized(network.model):
        raise ConfigError("rollout: vllm does not take the weights of a quantised base; use rollout: {kind: hf}.")
    if adapted(network):
        return adapters.without_adapter(network.model)
    return adapters.merge_adapter(network.model) if adapters.has_adapter(network.model) else network.model


def signature(network: Network) -> tuple[Any, ...]:
    """Equal for networks whose weights one running vLLM can take turns holding."""
    config = network.model.config
    return (
        type(network.model).__name__,
        adapted(network),
        *((n, tuple(p.shape)) for n, p in network.model.named_parameters()),
        config.vocab_size,
    )


def checkpoint_tensors(network: Network) -> list[tuple[str, Tensor]]:
    """(name in a checkpoint, tensor); tied ones once."""
    model = base(network)
    state = dict(model.state_dict())
    try:  # transformers 5 fuses experts while loading, and splits them again while saving
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:
        pass
    else:
        state = revert_weight_conversion(model, state)
    seen: set[tuple[int, tuple[int, ...]]] = set()
    tensors = []
    for name, tensor in state.items():
        place = (tensor.data_ptr(), tuple(tensor.shape))
        if place not in seen:
            seen.add(place)
            tensors.append((name, tensor.detach()))
    return tensors


def write(network: Network, folder: Path) -> None:
    """The whole model, its configuration and its tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    base(network).save_pretrained(folder)
    network.encoder.tokenizer.save_pretrained(folder)


def write_adapter(network: Network, folder: Path) -> None:
    """The adapter alone, as peft writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    adapter_files.export(network, folder)

"""Options of a model that are arguments of transformers' `from_pretrained`, by its names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.quantizers import AutoQuantizationConfig

from advalign.errors import ConfigError, unknown
from advalign.models import architecture, gguf_files
from advalign.models.base import NetworkBase
from advalign.models.specification import LOADING_OPTIONS, ModelSpec

HALF_ONLY = "flash_attention"  # beginning of the names of implementations for 16 bits


def arguments(spec: ModelSpec, folder: Path | None) -> dict[str, Any]:
    """Those that are given. Raises ConfigError for one that the model cannot have; `folder`: of a local model."""
    options = {name: spec.options[name] for name in LOADING_OPTIONS if spec.options.get(name) is not None}
    for name in options:
        if name != "attn_implementation" and spec.model.startswith("scratch:"):
            raise ConfigError(f"model.options.{name}: it belongs to a saved model, and '{spec.model}' is from scratch; leave it out.")
    if "revision" in options and gguf_files.hub_name(spec.model) is not None:
        options.pop("revision")  # it chose the file that `folder` was converted from
    if "revision" in options and folder is not None:
        raise ConfigError(f"model.options.revision: it belongs to a model of the hub, and '{spec.model}' is a folder; leave it out.")
    if "attn_implementation" in options:
        _check_attention(str(options["attn_implementation"]), spec.dtype)
    if "quantization_config" in options:
        _check_quantization(options["quantization_config"])
    return options


def is_quantized(model: Any) -> bool:
    """Whether its weights are packed into fewer bits."""
    return architecture.has_option(model.config, "quantization_config")


def check_body(body: Any, spec: ModelSpec) -> None:
    """Raises ConfigError for a model that was spread over devices: a network is on one."""
    devices = sorted({str(parameter.device) for parameter in body.parameters()})
    if len(devices) > 1:
        raise ConfigError(
            f"model.options.device_map: {spec.options.get('device_map')} spreads '{spec.model}' over {', '.join(devices)}, and a network "
            "is on one device; give that device, or shard it in a run (args.distributed: fsdp)."
        )


def check_trainable(network: NetworkBase, path: str) -> None:
    """Raises ConfigError where quantised weights would have to train; `path`: of the learner in the configuration."""
    if is_quantized(network.model) and not network.shares_base:
        raise ConfigError(
            f"{path}: the weights of '{network.source}' are quantised, so they cannot train; give it options: {{lora: {{r: 8}}}}, or a "
            "base that is not quantised."
        )


def _check_attention(name: str, dtype: str) -> None:
    known = ("eager", *ALL_ATTENTION_FUNCTIONS.valid_keys())
    if name not in known and "/" not in name:
        raise unknown("model.options.attn_implementation", "implementation", name, [k for k in known if not k.startswith("advalign")])
    if name.startswith(HALF_ONLY) and dtype not in ("bfloat16", "float16"):
        raise ConfigError(f"model.options.attn_implementation: {name} computes in 16 bits, and dtype is {dtype}; give dtype: bfloat16.")


def _check_quantization(config: Any) -> None:
    if not isinstance(config, Mapping):
        raise ConfigError(f"model.options.quantization_config: got {config!r}; give fields of transformers' configuration.")
    try:
        fields = AutoQuantizationConfig.from_dict(dict(config)).to_dict()
    except ImportError:
        return  # loading says which package is missing
    except (TypeError, ValueError) as error:
        raise ConfigError(f"model.options.quantization_config: {' '.join(str(error).split()).rstrip('.')}.") from error
    for name in config:
        if name not in fields:
            raise unknown("model.options.quantization_config", "field", str(name), fields)


__all__ = ["arguments", "check_body", "check_trainable", "is_quantized"]

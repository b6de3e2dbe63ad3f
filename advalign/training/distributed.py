"""How a run is spread over processes: what was launched, what `args.distributed` asks for, and what that excludes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch.distributed.device_mesh import init_device_mesh

from advalign.errors import ConfigError
from advalign.interfaces import Objective
from advalign.models.sharding import Sharding

PRECISION = {"no": None, "bf16": torch.bfloat16}


def refuse(number: int, sharded: bool, sources: Mapping[str, Any], objectives: Mapping[str, Objective]) -> None:
    """What several processes, and sharded weights, exclude."""
    for name, source in sources.items():
        ahead = source.steps_ahead
        if number > 1 and ahead:
            raise ConfigError(
                f"sources.{name}.ahead: {ahead} given, and {number} processes; sampling beside the updates is not shared among "
                "processes, use ahead: 0."
            )
    for name, term in objectives.items() if sharded else ():
        if any("score_gradients" in needs for needs in term.reads.values()):
            raise ConfigError(
                f"objectives.{name}: {type(term).__name__} differentiates twice, which FSDP does not allow; use args.distributed: ddp."
            )


def accelerator(mixed_precision: str) -> Accelerator:
    return Accelerator(mixed_precision=mixed_precision)


def sharding(found: Accelerator, args: Any) -> Sharding | None:
    """FSDP2, where `args.distributed` or the configuration of `accelerate` asks for it; None for data parallelism, and for one process."""
    launched = found.distributed_type == DistributedType.FSDP
    if launched and args.distributed == "ddp":
        raise ConfigError("args.distributed: ddp given, but accelerate was configured for FSDP; give fsdp, or launch without --use_fsdp.")
    if found.num_processes == 1 or not (launched or args.distributed == "fsdp"):
        return None
    plugin = found.state.fsdp_plugin if launched else None
    if plugin is not None and plugin.fsdp_version != 2:
        raise ConfigError("args.distributed: accelerate was configured for FSDP1; only version 2 is known here, set fsdp_version: 2.")
    if plugin is not None and getattr(plugin.cpu_offload, "pin_memory", None) is not None:
        raise ConfigError("args.distributed: accelerate was configured to offload parameters, which is not known here; turn it off.")
    if args.measure_every:
        raise ConfigError("args.measure_every: gradients of single terms are not to be had under FSDP; set it to 0, or use ddp.")
    if args.mixed_precision not in PRECISION:
        raise ConfigError(f"args.mixed_precision: {args.mixed_precision} given; under FSDP it is no or bf16.")
    kept = plugin is not None and plugin.reshard_after_forward in (False, "false", "SHARD_GRAD_OP")
    mesh = init_device_mesh(found.device.type, (found.num_processes,))
    return Sharding(mesh=mesh, precision=PRECISION[args.mixed_precision], reshard_after_forward=not kept)

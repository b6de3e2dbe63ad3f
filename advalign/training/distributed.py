"""How a run uses several processes: what was launched, what `args.distributed` asks for, and what that excludes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch.distributed.device_mesh import init_device_mesh

from advalign.engine.optimizer import HALF
from advalign.errors import ConfigError
from advalign.interfaces import Objective, Source
from advalign.models import Network
from advalign.models.sharding import Sharding
from advalign.training.run_spec import TrainingArguments

PRECISION = {"no": None, "bf16": torch.bfloat16}


def check(world_size: int, sharded: bool, sources: Mapping[str, Source], objectives: Mapping[str, Objective]) -> None:
    """Refuses what several processes, or sharded weights, exclude."""
    for name, source in sources.items():
        if world_size > 1 and source.steps_ahead:
            raise ConfigError(
                f"sources.{name}.ahead: {source.steps_ahead} given, and {world_size} processes; sampling beside the updates is not "
                "divided among processes, use ahead: 0."
            )
    for name, objective in objectives.items() if sharded else ():
        if any("score_gradients" in needs for needs in objective.reads.values()):
            raise ConfigError(
                f"objectives.{name}: {type(objective).__name__} differentiates twice, which FSDP does not support; use "
                "args.distributed: ddp."
            )


def check_precision(name: str, network: Network, sharded: bool, objectives: Mapping[str, Objective]) -> None:
    """Refuses to train sharded weights of half precision, which have no float32 copies."""
    dtypes = {p.dtype for p in network.parameters() if p.requires_grad and p.dtype in HALF}
    if sharded and dtypes and any(o.learner == name for o in objectives.values()):
        given = str(dtypes.pop()).removeprefix("torch.")
        raise ConfigError(
            f"learners.{name}.dtype: {given} given, and sharded weights (fsdp) of half precision are not trained; use dtype: float32 with "
            "args.mixed_precision: bf16, or args.distributed: ddp."
        )


def accelerator(mixed_precision: str) -> Accelerator:
    """The accelerate object of a run."""
    try:
        return Accelerator(mixed_precision=mixed_precision)
    except ValueError as error:
        if "already been initialized" not in str(error):
            raise
        raise ConfigError(
            f"args.mixed_precision: {mixed_precision} given, and this process began with another one, which accelerate keeps; start this "
            "run in a process of its own."
        ) from error


def sharding(launched: Accelerator, args: TrainingArguments) -> Sharding | None:
    """FSDP2, where `args.distributed` or the configuration of accelerate asks for it; None for data parallelism and for one process."""
    fsdp = launched.distributed_type == DistributedType.FSDP
    if fsdp and args.distributed == "ddp":
        raise ConfigError("args.distributed: ddp given, but accelerate was configured for FSDP; give fsdp, or launch without --use_fsdp.")
    if launched.num_processes == 1 or not (fsdp or args.distributed == "fsdp"):
        return None
    plugin = launched.state.fsdp_plugin if fsdp else None
    if plugin is not None and plugin.fsdp_version != 2:
        raise ConfigError("args.distributed: accelerate was configured for FSDP1; only version 2 is supported, set fsdp_version: 2.")
    if plugin is not None and getattr(plugin.cpu_offload, "pin_memory", None) is not None:
        raise ConfigError("args.distributed: accelerate was configured to offload parameters, which is not supported; turn it off.")
    if args.measure_every:
        raise ConfigError("args.measure_every: per-objective gradient norms are not supported under FSDP; set it to 0, or use ddp.")
    if args.mixed_precision not in PRECISION:
        raise ConfigError(f"args.mixed_precision: {args.mixed_precision} given; under FSDP it is no or bf16.")
    keeps_weights = plugin is not None and plugin.reshard_after_forward in (False, "false", "SHARD_GRAD_OP")
    mesh = init_device_mesh(launched.device.type, (launched.num_processes,))
    return Sharding(mesh=mesh, precision=PRECISION[args.mixed_precision], reshard_after_forward=not keeps_weights)

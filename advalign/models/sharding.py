"""FSDP2 (`torch.distributed.fsdp.fully_shard`): between its uses every process holds a shard of each weight, cut along the first axis.

Each block of the backbone is a unit, and the `Network` itself is the root (embedding, heads, last norm): code that calls a module
below the root sees shards. Whatever is not a forward and backward through the network therefore runs inside `gathered`, where every
process holds all weights and no forward waits for another process.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from advalign.errors import ConfigError
from advalign.models import perturb
from advalign.models.forward import Network
from advalign.models.padding import pad


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """How networks are sharded."""

    mesh: DeviceMesh
    """The processes."""
    precision: torch.dtype | None = None
    """Of weights and activations in a forward, with gradients summed in float32; None: that of the weights."""
    reshard_after_forward: bool = True
    """Whether blocks are resharded between forward and backward, which saves memory and costs communication."""

    def shard(self, network: Network) -> Network:
        """In place: afterwards the parameters are DTensors."""
        policy = MixedPrecisionPolicy(param_dtype=self.precision, reduce_dtype=torch.float32) if self.precision else MixedPrecisionPolicy()
        for block in _blocks(network):
            fully_shard(block, mesh=self.mesh, mp_policy=policy, reshard_after_forward=self.reshard_after_forward)
        root: Any = fully_shard(network, mesh=self.mesh, mp_policy=policy)
        for unit in units(network):
            unit.set_gradient_divide_factor(1.0)  # weights carry global counts: gradients are summed
            unit.set_force_sum_reduction_for_comms(True)
        # Inside an update the embedding and the heads stay gathered: an adversary, or a divergence, reads them between forwards.
        root.set_reshard_after_backward(False, recurse=False)
        _first_forward(network)
        return network

    def clone(self, template: Network, network: Network) -> Network:
        """Another sharded network with the current weights of `network`, shard by shard; `template` is the same without weights."""
        reshard(network)
        clone = self.shard(empty_like(template, self.mesh.device_type))
        with torch.no_grad():
            for copied, weight in zip(clone.parameters(), network.parameters(), strict=True):
                local_shard(copied).copy_(local_shard(weight))
            for copied_buffer, buffer in zip(clone.buffers(), network.buffers(), strict=True):
                copied_buffer.copy_(buffer)
        return clone


def check_shardable(name: str, network: Network) -> None:
    """Raises ConfigError for the network of a learner that cannot be sharded."""
    if network.shares_base:
        raise ConfigError(
            f"learners.{name}: an adapter's base is shared by networks, and FSDP would shard it once for each of them; train it with "
            "args.distributed: ddp, or without an adapter."
        )
    if not network.reads_tokens:
        raise ConfigError(f"learners.{name}: a discriminator of hidden states is small, and FSDP does not shard it; use ddp.")
    if network.compiled is not None:
        raise ConfigError(f"learners.{name}.options.compile: true given, but sharded blocks are not compiled; leave it out, or use ddp.")


def units(network: nn.Module) -> list[Any]:
    """The modules that FSDP shards separately; none, if the network is not sharded."""
    return [m for m in network.modules() if isinstance(m, FSDPModule)]


def local_shard(x: Tensor) -> Tensor:
    """This process's shard of a sharded tensor; any other tensor unchanged."""
    return x.to_local().detach() if isinstance(x, DTensor) else x.detach()


def full_tensor(x: Tensor) -> Tensor:
    """All of a sharded tensor; every process has to call it."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def local_range(x: Tensor) -> slice:
    """Which rows of a full tensor this process holds."""
    if not isinstance(x, DTensor):
        return slice(None)
    shape, offset = compute_local_shape_and_global_offset(x.shape, x.device_mesh, x.placements)
    return slice(offset[0], offset[0] + shape[0])


def shard_like(x: Tensor, shard: Tensor) -> Tensor:
    """The tensor, sharded as `x` is, of which `shard` is this process's part."""
    if not isinstance(x, DTensor):
        return shard
    shard = shard.to(local_shard(x).device)
    return DTensor.from_local(shard, x.device_mesh, x.placements, run_check=False, shape=x.shape, stride=x.stride())


@contextmanager
def gathered(network: nn.Module) -> Iterator[None]:
    """Inside, every process holds all weights, in the precision of a forward, and runs forwards on its own; without gradients. This
    takes the memory of the whole network. Does nothing for a network that is not sharded, or is gathered already."""
    sharded = units(network)
    if not sharded or vars(network).get("_gathered"):
        yield
        return
    reshards = [unit is not network for unit in sharded]
    vars(network)["_gathered"] = True
    for unit in sharded:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        with torch.no_grad():
            yield
    finally:
        del vars(network)["_gathered"]
        for unit, reshards_itself in zip(sharded, reshards, strict=True):
            unit.reshard()
            unit.set_reshard_after_forward(reshards_itself, recurse=False)


def reshard(network: nn.Module) -> None:
    """Back to shards: after a forward without a backward the root is still gathered."""
    if not vars(network).get("_gathered"):
        for unit in units(network):
            unit.reshard()


def empty_like(network: Network, device: str = "meta") -> Network:
    """The same modules with uninitialised weights, tied where they were tied; buffers are copied."""
    memo: dict[int, Any] = {id(network.encoder): network.encoder}
    for p in network.parameters():
        memo[id(p)] = nn.Parameter(torch.empty_like(p, device=device), requires_grad=p.requires_grad)
    return copy.deepcopy(network, memo)


def gather_on_host(network: Network, template: Network, main: bool) -> Network | None:
    """All of a sharded network on the CPU of the main process, in the precision it is trained in; the others send their shards."""
    reshard(network)
    host = empty_like(template, "cpu") if main else None
    weights = list(host.parameters()) if host is not None else []
    for number, p in enumerate(network.parameters()):
        full = full_tensor(p.detach())
        if main:
            weights[number].data.copy_(full)
    if host is not None:
        for copied, buffer in zip(host.buffers(), network.buffers(), strict=True):
            copied.copy_(buffer)
    return host


@torch.no_grad()
def _first_forward(network: Network) -> None:
    """One token through the root, so that it registers its units; a unit that runs first would register itself as a root."""
    network(pad([[network.encoder.pad_id]], [1], network.encoder.pad_id).to(network.device), frozenset())
    network.num_forwards = network.num_rows = 0
    reshard(network)


def _blocks(network: Network) -> list[nn.Module]:
    try:
        return list(perturb.blocks(network.backbone))
    except ConfigError:  # the network is one unit
        return []

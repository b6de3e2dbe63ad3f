"""FSDP2 (`torch.distributed.fsdp.fully_shard`): between its uses every process holds a slice of each weight, cut along the first axis.

Each block of the backbone is a unit, and the `Network` itself is the root (embedding, heads, last norm): whoever calls past the root
finds slices. What is not a forward and backward through the network therefore runs inside `gathered`, where all weights are whole, and
where no forward waits for another process.
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
from advalign.models.encode import pad
from advalign.models.forward import Network


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """How networks are sharded. `precision`: of weights and activations in a forward; gradients are summed in float32."""

    mesh: DeviceMesh
    precision: torch.dtype | None = None
    reshard_after_forward: bool = True

    def shard(self, network: Network) -> Network:
        """In place; the network is still what it was, and its parameters are DTensors."""
        low = MixedPrecisionPolicy(param_dtype=self.precision, reduce_dtype=torch.float32) if self.precision else MixedPrecisionPolicy()
        for block in _blocks(network):
            fully_shard(block, mesh=self.mesh, mp_policy=low, reshard_after_forward=self.reshard_after_forward)
        root: Any = fully_shard(network, mesh=self.mesh, mp_policy=low)
        for unit in units(network):
            unit.set_gradient_divide_factor(1.0)  # weights carry global counts: gradients are summed
            unit.set_force_sum_reduction_for_comms(True)
        # Inside an update the embedding and the heads stay whole: an adversary, or a divergence, reads them between forwards.
        root.set_reshard_after_backward(False, recurse=False)
        _first_forward(network)
        return network

    def twin(self, template: Network, of: Network) -> Network:
        """Another sharded network with the weights that `of` has now, slice by slice."""
        reshard(of)
        found = self.shard(empty_like(template, self.mesh.device_type))
        with torch.no_grad():
            for p, now in zip(found.parameters(), of.parameters(), strict=True):
                local(p).copy_(local(now))
            for x, y in zip(found.buffers(), of.buffers(), strict=True):
                x.copy_(y)
        return found


def refuse(name: str, network: Network) -> None:
    """What cannot be sharded."""
    if network.shares_base:
        raise ConfigError(
            f"learners.{name}: an adapter's base is shared by networks, and FSDP would shard it once for each of them; train it with "
            "args.distributed: ddp, or without an adapter."
        )
    if network.reads is not None:
        raise ConfigError(f"learners.{name}: a discriminator of hidden states is small, and FSDP does not shard it; use ddp.")
    if network.compiled is not None:
        raise ConfigError(f"learners.{name}.options.compile: true given, but sharded blocks are not compiled; leave it out, or use ddp.")


def units(network: nn.Module) -> list[Any]:
    return [m for m in network.modules() if isinstance(m, FSDPModule)]


def local(x: Tensor) -> Tensor:
    """This process's slice of a sharded tensor; any other tensor as it is."""
    return x.to_local().detach() if isinstance(x, DTensor) else x.detach()


def full_tensor(x: Tensor) -> Tensor:
    """All of a sharded tensor; every process has to ask."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def rows_of(x: Tensor) -> slice:
    """Which rows of the whole tensor this process has."""
    if not isinstance(x, DTensor):
        return slice(None)
    shape, offset = compute_local_shape_and_global_offset(x.shape, x.device_mesh, x.placements)
    return slice(offset[0], offset[0] + shape[0])


def sharded_like(x: Tensor, rows: Tensor) -> Tensor:
    """`rows` are this process's slice of a tensor that is sharded as `x` is."""
    if not isinstance(x, DTensor):
        return rows
    here = rows.to(local(x).device)
    return DTensor.from_local(here, x.device_mesh, x.placements, run_check=False, shape=x.shape, stride=x.stride())


@contextmanager
def gathered(network: nn.Module) -> Iterator[None]:
    """Inside, every process holds all weights, in the precision of a forward, and runs forwards on its own; without gradients. The
    price is the memory of the whole network. A network that is not sharded, or is gathered already, stays as it is."""
    found = units(network)
    if not found or vars(network).get("_gathered"):
        yield
        return
    reshards = [unit is not network for unit in found]
    vars(network)["_gathered"] = True
    for unit in found:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        with torch.no_grad():
            yield
    finally:
        del vars(network)["_gathered"]
        for unit, again in zip(found, reshards, strict=True):
            unit.reshard()
            unit.set_reshard_after_forward(again, recurse=False)


def reshard(network: nn.Module) -> None:
    """Back to slices: a forward without a backward leaves the root whole."""
    if not vars(network).get("_gathered"):
        for unit in units(network):
            unit.reshard()


def empty_like(network: Network, device: str = "meta") -> Network:
    """The same modules with weights that hold nothing, tied where they were tied; buffers are copied."""
    memo: dict[int, Any] = {id(network.encoder): network.encoder}
    for p in network.parameters():
        memo[id(p)] = nn.Parameter(torch.empty_like(p, device=device), requires_grad=p.requires_grad)
    return copy.deepcopy(network, memo)


def on_host(network: Network, template: Network, main: bool) -> Network | None:
    """All of a sharded network on the CPU of the main process, in the precision it is trained in; the others give their slices."""
    reshard(network)
    found = empty_like(template, "cpu") if main else None
    mine = list(found.parameters()) if found is not None else []
    for number, p in enumerate(network.parameters()):
        full = full_tensor(p.detach())
        if main:
            mine[number].data.copy_(full)
    if found is not None:
        for x, y in zip(found.buffers(), network.buffers(), strict=True):
            x.copy_(y)
    return found


@torch.no_grad()
def _first_forward(network: Network) -> None:
    """One token through the root, which from then on knows its units; a unit that runs first would take itself for a root."""
    network(pad([[network.encoder.pad_id]], [1], network.encoder.pad_id).to(network.device), frozenset())
    network.num_forwards = network.num_rows = 0
    reshard(network)


def _blocks(network: Network) -> list[nn.Module]:
    try:
        return list(perturb.blocks(network.backbone))
    except ConfigError:  # one unit, then
        return []

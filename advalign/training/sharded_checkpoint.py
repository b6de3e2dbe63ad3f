"""Weights and moments of sharded networks on the disk: one safetensors file per process, each with its rows of every tensor.

    learner.policy.00000-of-00002.safetensors      rows 0 .. n/2 of "weight/<name>", "exp_avg/<name>", "exp_avg_sq/<name>"
    learner.policy.00001-of-00002.safetensors      the rest of the rows; what is not sharded stands in the first file alone

A reader asks for the rows it needs, from however many files, so a run may go on with another number of processes, or with one.
(The format of `torch.distributed.checkpoint` keeps its index as a pickle, and nothing is unpickled here.)
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from advalign.errors import ConfigError
from advalign.models import sharding

WEIGHT = "weight"


def files(folder: Path, name: str) -> list[Path]:
    """Those of all processes, in order, or the one file of a network that was not sharded."""
    whole = folder / f"{name}.safetensors"
    return [whole] if whole.exists() else sorted(folder.glob(f"{name}.*-of-*.safetensors"))


def write(folder: Path, name: str, network: nn.Module, optimizer: Any, index: int, number: int) -> None:
    """The rows of process `index`; every process writes its own file."""
    named: dict[str, Tensor] = {f"{WEIGHT}/{n}": p for n, p in network.named_parameters()}
    named |= {f"{WEIGHT}/{n}": b for n, b in _buffers(network).items()}
    if optimizer is not None:
        named |= {f"{key}/{n}": x for n, state in _states(network, optimizer).items() for key, x in state.items() if x.ndim}
    kept = {n: sharding.local_shard(x).cpu().contiguous() for n, x in named.items() if isinstance(x, DTensor) or index == 0}
    save_file(kept, folder / f"{name}.{index:05d}-of-{number:05d}.safetensors")


def read(folder: Path, name: str, network: nn.Module) -> None:
    """Fill a network, sharded or not, from the files of one that was sharded or not."""
    with _Reader(folder, name) as reader, torch.no_grad():
        aliases: dict[Tensor, list[str]] = {}
        for n, p in network.named_parameters(remove_duplicate=False):
            aliases.setdefault(p, []).append(n)
        for x, names in aliases.items():
            sharding.local_shard(x).copy_(reader.rows(names, x))
        for n, buffer in _buffers(network).items():
            buffer.copy_(reader.rows([n], buffer))


def read_moments(folder: Path, name: str, network: nn.Module, described: Mapping[str, Any]) -> dict[str, Any]:
    """The state of an optimizer over this network: moments from the files, the rest as it was described."""
    trained = [(n, p) for n, p in network.named_parameters() if p.requires_grad]
    found: dict[int, dict[str, Any]] = {}
    with _Reader(folder, name) as reader:
        for number, (n, p) in enumerate(trained):
            if n in described["steps"]:
                moments = {key: sharding.shard_like(p, reader.rows([n], p, key).to(p.device)) for key in ("exp_avg", "exp_avg_sq")}
                found[number] = {"step": torch.tensor(described["steps"][n]), **moments}
    return {"state": found, "param_groups": described["param_groups"]}


def cut(network: nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
    """The whole state of an optimizer, for one over a network that is sharded now."""
    trained = [p for p in network.parameters() if p.requires_grad]
    found = {}
    for number, each in state["state"].items():
        p = trained[number]
        found[number] = {key: sharding.shard_like(p, x[sharding.local_range(p)]) if x.ndim else x for key, x in each.items()}
    return {"state": found, "param_groups": state["param_groups"]}


class _Reader(ExitStack):
    """Rows of tensors that lie in several files."""

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__()
        paths = files(folder, name)
        if not paths or (len(paths) > 1 and len(paths) != int(paths[0].name.split("-of-")[1].split(".")[0])):
            raise ConfigError(f"resume: {folder.name} holds no weights of '{name}', or not all; the checkpoint is not whole.")
        self.parts = [self.enter_context(safe_open(path, framework="pt")) for path in paths]
        self.prefixed = "-of-" in paths[0].name
        self.known = [set(part.keys()) for part in self.parts]

    def rows(self, names: list[str], like: Tensor, key: str = WEIGHT) -> Tensor:
        """The rows that this process needs for `like`, which the file may know under one of several names."""
        wanted = [f"{key}/{name}" if self.prefixed else name for name in names]
        place = next((name for name in wanted if name in self.known[0]), None)
        if place is None:
            raise ConfigError(f"resume: the checkpoint holds no '{names[0]}'; the configuration has changed since it was written.")
        found, start = [], 0
        need = sharding.local_range(like)
        stop = like.shape[0] if like.ndim and need.stop is None else need.stop
        for part, known in zip(self.parts, self.known, strict=True):
            if place not in known:  # not sharded: the first file has all of it
                continue
            rows = part.get_slice(place)
            length = rows.get_shape()[0] if rows.get_shape() else 1
            if not rows.get_shape():
                return part.get_tensor(place)
            low, high = max((need.start or 0) - start, 0), min(stop - start, length)
            if low < high:
                found.append(rows[low:high])
            start += length
        return torch.cat(found) if found else torch.zeros((0, *like.shape[1:]), dtype=like.dtype)


def _buffers(network: nn.Module) -> dict[str, Tensor]:
    """Those that a checkpoint holds."""
    parameters = dict(network.named_parameters(remove_duplicate=False))
    return {n: x for n, x in network.state_dict(keep_vars=True).items() if n not in parameters}


def _states(network: nn.Module, optimizer: Any) -> dict[str, dict[str, Tensor]]:
    state = getattr(optimizer, "optimizer", optimizer).state
    return {n: state[p] for n, p in network.named_parameters() if p in state}

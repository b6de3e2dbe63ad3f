"""Weights and moments of sharded networks on the disk: one safetensors file per process, each with its rows of every tensor.

    learner.policy.00000-of-00002.safetensors      rows 0 .. n/2 of "weight/<name>", "exp_avg/<name>", "exp_avg_sq/<name>"
    learner.policy.00001-of-00002.safetensors      the remaining rows; tensors that are not sharded are in the first file alone

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

from advalign.engine.optimizer import trained_parameters
from advalign.engine.process_group import ProcessGroup
from advalign.errors import ConfigError
from advalign.models import sharding

WEIGHT = "weight"


def files(folder: Path, name: str) -> list[Path]:
    """Those of all processes, in order, or the one file of a network that was not sharded."""
    single = folder / f"{name}.safetensors"
    return [single] if single.exists() else sorted(folder.glob(f"{name}.*-of-*.safetensors"))


def write(folder: Path, name: str, network: nn.Module, optimizer: Any, processes: ProcessGroup) -> None:
    """The rows of this process; every process writes its own file."""
    tensors: dict[str, Tensor] = {f"{WEIGHT}/{n}": p for n, p in network.named_parameters()}
    tensors |= {f"{WEIGHT}/{n}": b for n, b in _buffers(network).items()}
    if optimizer is not None:
        tensors |= {f"{key}/{n}": x for n, state in _states(network, optimizer).items() for key, x in state.items() if x.ndim}
    local = {n: sharding.local_shard(x).cpu().contiguous() for n, x in tensors.items() if isinstance(x, DTensor) or processes.is_main}
    save_file(local, folder / f"{name}.{processes.rank:05d}-of-{processes.world_size:05d}.safetensors")


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


def read_moments(folder: Path, name: str, network: nn.Module, saved: Mapping[str, Any]) -> dict[str, Any]:
    """The state of an optimizer over this network: moments from the files, steps and parameter groups from `saved`."""
    state: dict[int, dict[str, Any]] = {}
    with _Reader(folder, name) as reader:
        for number, (n, p) in enumerate(trained_parameters(network)):
            if n in saved["steps"]:
                moments = {key: sharding.shard_like(p, reader.rows([n], p, key).to(p.device)) for key in ("exp_avg", "exp_avg_sq")}
                state[number] = {"step": torch.tensor(saved["steps"][n]), **moments}
    return {"state": state, "param_groups": saved["param_groups"]}


def cut(network: nn.Module, optimizer: Mapping[str, Any]) -> dict[str, Any]:
    """The state of an optimizer over a full network, for one over the same network, now sharded."""
    trained = [p for _, p in trained_parameters(network)]
    state = {}
    for number, moments in optimizer["state"].items():
        p = trained[number]
        state[number] = {key: sharding.shard_like(p, x[sharding.local_range(p)]) if x.ndim else x for key, x in moments.items()}
    return {"state": state, "param_groups": optimizer["param_groups"]}


class _Reader(ExitStack):
    """Rows of tensors that lie in several files."""

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__()
        paths = files(folder, name)
        if not paths or (len(paths) > 1 and len(paths) != int(paths[0].name.split("-of-")[1].split(".")[0])):
            raise ConfigError(f"resume: {folder.name} holds no weights of '{name}', or not all; the checkpoint is incomplete.")
        self.parts = [self.enter_context(safe_open(path, framework="pt")) for path in paths]
        self.prefixed = "-of-" in paths[0].name
        self.names = [set(part.keys()) for part in self.parts]

    def rows(self, names: list[str], like: Tensor, key: str = WEIGHT) -> Tensor:
        """The rows that this process needs for `like`, which the file may hold under one of several names."""
        entries = [f"{key}/{name}" if self.prefixed else name for name in names]
        entry = next((e for e in entries if e in self.names[0]), None)
        if entry is None:
            raise ConfigError(f"resume: the checkpoint holds no '{names[0]}'; the configuration has changed since it was written.")
        pieces, start = [], 0
        need = sharding.local_range(like)
        stop = like.shape[0] if like.ndim and need.stop is None else need.stop
        for part, part_names in zip(self.parts, self.names, strict=True):
            if entry not in part_names:  # not sharded: the first file has all of it
                continue
            rows = part.get_slice(entry)
            length = rows.get_shape()[0] if rows.get_shape() else 1
            if not rows.get_shape():
                return part.get_tensor(entry)
            low, high = max((need.start or 0) - start, 0), min(stop - start, length)
            if low < high:
                pieces.append(rows[low:high])
            start += length
        return torch.cat(pieces) if pieces else torch.zeros((0, *like.shape[1:]), dtype=like.dtype)


def _buffers(network: nn.Module) -> dict[str, Tensor]:
    """Those that a checkpoint holds."""
    parameters = dict(network.named_parameters(remove_duplicate=False))
    return {n: x for n, x in network.state_dict(keep_vars=True).items() if n not in parameters}


def _states(network: nn.Module, optimizer: Any) -> dict[str, dict[str, Tensor]]:
    """{parameter name: its state in the optimizer, which accelerate may have wrapped}"""
    state = getattr(optimizer, "optimizer", optimizer).state
    return {n: state[p] for n, p in network.named_parameters() if p in state}

"""Checkpoints from which a killed run continues bit for bit: every learner, optimizer, frozen copy, source and the step.

A checkpoint is written beside its final name and renamed when it is complete, so a kill at any moment leaves the last complete one. Weights
are safetensors; the rest is read with `weights_only=True`: nothing is unpickled.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import nn

from advalign.engine.optimizer import trained_parameters
from advalign.engine.process_group import ProcessGroup
from advalign.errors import ConfigError
from advalign.models import sharding
from advalign.training import sharded_checkpoint

PREFIX = "checkpoint-"
PARTIAL = ".partial-"


def begin(folder: Path, *, resume: bool, processes: ProcessGroup) -> Path | None:
    """The checkpoint to continue from; without one the folder is cleared. All processes see one folder."""
    newest = latest(folder) if resume and processes.is_main else None
    name = processes.broadcast(None if newest is None else newest.name)
    if name is None and processes.is_main:
        _clear(folder)
    processes.barrier()
    return None if name is None else folder / name


def save(
    folder: Path,
    step: int,
    networks: Mapping[str, nn.Module],
    state: Mapping[str, Any],
    *,
    processes: ProcessGroup,
    optimizers: Mapping[str, Any] | None = None,
    keep: int = 2,
) -> Path:
    """Writes {name: network} and `state`, nested plain values and tensors; removes older checkpoints beyond `keep`.

    The main process writes. Of a sharded network each process writes its rows, with those of its optimizer's moments (`optimizers`, by the
    same name).
    """
    final = folder / f"{PREFIX}{step}"
    partial = folder / f"{PARTIAL}{step}"
    if processes.is_main:
        for interrupted in folder.glob(f"{PARTIAL}*"):
            shutil.rmtree(interrupted, ignore_errors=True)
        partial.mkdir(parents=True)
    processes.barrier()
    for name, network in networks.items():
        if sharding.units(network):
            sharding.reshard(network)
            sharded_checkpoint.write(partial, name, network, (optimizers or {}).get(name), processes)
        elif processes.is_main:
            save_model(network, str(partial / f"{name}.safetensors"))
    processes.barrier()
    if processes.is_main:
        torch.save(dict(state), partial / "state.pt")
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        for old in sorted(list_checkpoints(folder), key=_step)[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
    processes.barrier()
    return final


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints of a run."""
    return [p for p in folder.glob(f"{PREFIX}*") if (p / "state.pt").exists()] if folder.is_dir() else []


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run."""
    return max(list_checkpoints(folder), key=_step, default=None)


def describe(config: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """{"section.name": repr of the entry}, without the addresses that differ from process to process."""
    return {f"{s}.{name}": re.sub(r" at 0x[0-9a-f]+", "", repr(value)) for s, entries in config.items() for name, value in entries.items()}


def check_same(path: Path, saved: Mapping[str, str], current: Mapping[str, str]) -> None:
    """Refuses to continue a run of another description: the result would be neither of the two."""
    for name in sorted({*saved, *current}):
        if saved.get(name) != current.get(name):
            change = "is new" if name not in saved else "is gone" if name not in current else "has changed"
            raise ConfigError(
                f"resume: {name} {change} since {path.name} was written; resume with the same configuration, or give a new args.output_dir."
            )


def read_state(path: Path) -> dict[str, Any]:
    """The `state` of a checkpoint."""
    return torch.load(path / "state.pt", weights_only=True, map_location="cpu")


def read_network(path: Path, name: str, network: nn.Module) -> None:
    """Fills a network with its weights in a checkpoint."""
    file = path / f"{name}.safetensors"
    if not sharded_checkpoint.files(path, name):
        raise ConfigError(f"resume: {path.name} holds no weights of '{name}'; the configuration has changed since it was written.")
    if file.exists() and not sharding.units(network):
        load_model(network, str(file))
    else:
        sharding.reshard(network)
        sharded_checkpoint.read(path, name, network)


def without_moments(network: nn.Module, state: dict[str, Any]) -> dict[str, Any]:
    """The state of a learner as the main process writes it; moments of a sharded network are written with its weights."""
    if not sharding.units(network):
        return state
    names = [n for n, _ in trained_parameters(network)]
    steps = {names[i]: float(moments["step"]) for i, moments in state["optimizer"]["state"].items()}
    return {**state, "optimizer": {"steps": steps, "param_groups": state["optimizer"]["param_groups"]}}


def with_moments(path: Path, name: str, network: nn.Module, state: dict[str, Any]) -> dict[str, Any]:
    """The state of a learner as its optimizer reads it, whether writer and reader are sharded or not."""
    optimizer = state["optimizer"]
    if "steps" in optimizer:
        optimizer = sharded_checkpoint.read_moments(path, name, network, optimizer)
    elif sharding.units(network):
        optimizer = sharded_checkpoint.cut(network, optimizer)
    return {**state, "optimizer": optimizer}


def _step(path: Path) -> int:
    return int(path.name.removeprefix(PREFIX))


def _clear(folder: Path) -> None:
    """A fresh run does not continue another one's checkpoints."""
    for old in list_checkpoints(folder):
        shutil.rmtree(old)
    for name in ("log.jsonl", "speed.jsonl"):
        (folder / name).unlink(missing_ok=True)

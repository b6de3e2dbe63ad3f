"""Checkpoints from which a killed run continues bit for bit: every learner, optimizer, frozen copy, source and the step.

A checkpoint is written beside its final name and renamed when it is complete, so a kill at any moment leaves the last
good one. Weights are safetensors; the rest is read with `weights_only=True`: nothing is ever unpickled.
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

from advalign.engine.process_group import ProcessGroup
from advalign.errors import ConfigError
from advalign.models import sharding
from advalign.training import sharded_checkpoint

PREFIX = "checkpoint-"
PARTIAL = ".partial-"


def save(
    folder: Path,
    step: int,
    networks: dict[str, Any],
    state: dict[str, Any],
    *,
    ranks: ProcessGroup,
    optimizers: Mapping[str, Any] | None = None,
    keep: int = 2,
) -> Path:
    """`networks`: {name: module}; `state`: nested plain values and tensors. Older checkpoints beyond `keep` are removed.

    The main process writes. Of a sharded network each process writes its rows, with those of its optimizer's moments
    (`optimizers`, by the same name)."""
    final = folder / f"{PREFIX}{step}"
    partial = folder / f"{PARTIAL}{step}"
    if ranks.main:
        for cut_short in folder.glob(f"{PARTIAL}*"):
            shutil.rmtree(cut_short, ignore_errors=True)
        partial.mkdir(parents=True)
    ranks.wait()
    for name, network in networks.items():
        if sharding.units(network):
            sharding.reshard(network)
            sharded_checkpoint.write(partial, name, network, (optimizers or {}).get(name), ranks.index, ranks.number)
        elif ranks.main:
            save_model(network, str(partial / f"{name}.safetensors"))
    ranks.wait()
    if ranks.main:
        torch.save(state, partial / "state.pt")
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        for old in sorted(found(folder), key=_step)[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
    ranks.wait()
    return final


def found(folder: Path) -> list[Path]:
    """Complete checkpoints of a run."""
    return [p for p in folder.glob(f"{PREFIX}*") if (p / "state.pt").exists()] if folder.is_dir() else []


def latest(folder: Path) -> Path | None:
    return max(found(folder), key=_step, default=None)


def described(config: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """{"section.name": what stands there}, without the addresses that differ from process to process."""
    return {f"{s}.{name}": re.sub(r" at 0x[0-9a-f]+", "", repr(value)) for s, entries in config.items() for name, value in entries.items()}


def check_same(path: Path, then: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Refuses to continue another run: the result would be neither of the two."""
    for name in sorted({*then, *now}):
        if then.get(name) != now.get(name):
            what = "is new" if name not in then else "is gone" if name not in now else "has changed"
            raise ConfigError(
                f"resume: {name} {what} since {path.name} was written; resume with the same configuration, or give a new args.output_dir."
            )


def read_state(path: Path) -> dict[str, Any]:
    return torch.load(path / "state.pt", weights_only=True, map_location="cpu")


def read_network(path: Path, name: str, network: torch.nn.Module) -> None:
    file = path / f"{name}.safetensors"
    if not sharded_checkpoint.files(path, name):
        raise ConfigError(f"resume: {path.name} holds no weights of '{name}'; the configuration has changed since it was written.")
    if file.exists() and not sharding.units(network):
        load_model(network, str(file))
    else:
        sharding.reshard(network)
        sharded_checkpoint.read(path, name, network)


def without_moments(network: torch.nn.Module, state: dict[str, Any]) -> dict[str, Any]:
    """The state of a sharded learner as the main process writes it: moments have rows, and lie with the weights."""
    if not sharding.units(network):
        return state
    names = [n for n, p in network.named_parameters() if p.requires_grad]
    moved = {names[i]: float(each["step"]) for i, each in state["optimizer"]["state"].items()}
    return {**state, "optimizer": {"steps": moved, "param_groups": state["optimizer"]["param_groups"]}}


def with_moments(path: Path, name: str, network: torch.nn.Module, state: dict[str, Any]) -> dict[str, Any]:
    """The state of a learner as its optimizer wants it, whatever wrote it and whoever reads it."""
    optimizer = state["optimizer"]
    if "steps" in optimizer:
        optimizer = sharded_checkpoint.read_moments(path, name, network, optimizer)
    elif sharding.units(network):
        optimizer = sharded_checkpoint.cut(network, optimizer)
    return {**state, "optimizer": optimizer}


def _step(path: Path) -> int:
    return int(path.name.removeprefix(PREFIX))

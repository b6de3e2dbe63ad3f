"""Checkpoints from which a killed run continues bit for bit: every learner, optimizer, frozen copy, source and the step.

A checkpoint is written beside its final name, flushed to the disk with a manifest of its files, and renamed when it is complete, so a kill
at any moment leaves the last complete one. Weights are safetensors; the rest is read with `weights_only=True`: nothing is unpickled.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import nn

from advalign import durable
from advalign.engine.optimizer import trained_parameters
from advalign.engine.process_group import ProcessGroup
from advalign.errors import ConfigError, NonFiniteError, StorageError, excerpt
from advalign.models import sharding
from advalign.training import sharded_checkpoint
from advalign.training.run_description import check_same

NAME = re.compile(r"checkpoint-(\d+)")
DESCRIPTION = "description.json"
SETTING = "args.output_dir"
"""What names the folder of a run, in errors."""


def save(
    folder: Path,
    step: int,
    networks: Mapping[str, nn.Module],
    state: Mapping[str, Any],
    description: Mapping[str, Any],
    *,
    processes: ProcessGroup,
    optimizers: Mapping[str, Any] | None = None,
    limit: int | None = 2,
) -> Path:
    """Writes {name: network}, `state`, nested plain values and tensors, and the `description` of the run.

    Then it removes the oldest checkpoints beyond `limit` (None: no limit), and those of later steps, from which the run did not go on.
    The main process writes. Of a sharded network each process writes its rows, with those of its optimizer's moments (`optimizers`, by the
    same name). Raises NonFiniteError for weights that are not finite, and StorageError; the checkpoints before stay in both cases.
    """
    final = folder / f"checkpoint-{step}"
    processes.together(lambda: check_finite(networks, f"{final.name} was not written"))
    try:
        processes.on_main(partial(_begin, final))
        for name, network in networks.items():
            if sharding.units(network):
                sharding.reshard(network)
            processes.together(partial(_write, final, name, network, (optimizers or {}).get(name), processes))
        processes.on_main(lambda: _complete(final, state, description))
    except StorageError as error:
        if processes.is_main:
            shutil.rmtree(durable.partial_of(final), ignore_errors=True)
        raise StorageError(f"{str(error).removesuffix('.')}; {where_to_continue(folder)}.") from error
    processes.on_main(lambda: _remove_later_and_older(folder, step, limit))
    return final


def check_finite(networks: Mapping[str, nn.Module], consequence: str) -> None:
    """Raises NonFiniteError where a weight of {name: network} is not finite. `consequence`: what is not done then."""
    for name, network in networks.items():
        for parameter, weight in network.named_parameters():
            if not bool(sharding.local_shard(weight.detach()).isfinite().all()):
                raise NonFiniteError(
                    f"{name.replace('learner.', 'learners.', 1)}: its weights '{parameter}' are not finite, so {consequence}; continue "
                    "from the checkpoint before with a lower learning_rate, or look at the rows of the last steps."
                )


def _begin(final: Path) -> None:
    with durable.writing(final, SETTING):
        durable.begin(final)


def _write(final: Path, name: str, network: nn.Module, optimizer: Any, processes: ProcessGroup) -> None:
    """The part of a network that this process writes."""
    with durable.writing(final, SETTING):
        if sharding.units(network):
            sharded_checkpoint.write(durable.partial_of(final), name, network, optimizer, processes)
        elif processes.is_main:
            save_model(network, str(durable.partial_of(final) / f"{name}.safetensors"))


def _complete(final: Path, state: Mapping[str, Any], description: Mapping[str, Any]) -> None:
    folder = durable.partial_of(final)
    with durable.writing(final, SETTING):
        with (folder / "state.pt").open("wb") as file:
            torch.save(dict(state), file)
        (folder / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
        durable.write_manifest(folder)
        durable.complete(final)
    if (damage := durable.first_damage(final, content=False)) is not None:
        raise StorageError(f"{SETTING}: {final} could not be written ({damage}).")


def _remove_later_and_older(folder: Path, step: int, limit: int | None) -> None:
    for path in list_checkpoints(folder):
        if step_of(path) > step:
            _remove(path)
    remove_older(folder, step, limit)


def remove_older(folder: Path, step: int, limit: int | None) -> None:
    """Of the checkpoints up to one of step `step`, which is whole, the oldest beyond `limit` go (None: no limit)."""
    for path in [] if limit is None else [path for path in list_checkpoints(folder) if step_of(path) <= step][:-limit]:
        _remove(path)


def _remove(path: Path) -> None:
    """Under another name first: what a kill leaves of it is no checkpoint."""
    gone = path.with_name(f"{durable.PARTIAL}removed-{path.name}")
    shutil.rmtree(gone, ignore_errors=True)
    path.replace(gone)
    shutil.rmtree(gone, ignore_errors=True)


# -------------------------------------------------------------------------------------------------------- reading


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a run, by step; whether they are whole is not looked at."""
    return sorted((p for p in folder.glob("checkpoint-*") if NAME.fullmatch(p.name)), key=step_of) if folder.is_dir() else []


def step_of(path: Path) -> int:
    """The step of a checkpoint, from its name."""
    return int(path.name.rpartition("-")[2])


def latest(folder: Path) -> Path | None:
    """The newest checkpoint of a run."""
    return max(list_checkpoints(folder), key=step_of, default=None)


def check_whole(path: Path) -> None:
    """Raises ConfigError for a checkpoint with damaged or missing files, and offers the newest whole one before it."""
    if not path.is_dir():
        raise ConfigError(f"resume: {path} is no folder of a checkpoint; {where_to_continue(path.parent)}.")
    if (damage := durable.first_damage(path)) is not None:
        before = [p for p in list_checkpoints(path.parent) if p != path and (not NAME.fullmatch(path.name) or step_of(p) < step_of(path))]
        raise ConfigError(f"resume: {path} is damaged: {damage}; {_offer(before)}.")


def check(path: Path, description: Mapping[str, str], *, future: bool = True) -> None:
    """Raises ConfigError for a checkpoint that is not whole, or of another run than the one of this `description`. Without `future`, stages
    that it had not begun are not compared."""
    check_whole(path)
    saved = json.loads((path / DESCRIPTION).read_text(encoding="utf-8"))
    check_same(path, saved["settings"], description, stages=None if future else saved["stages"])


def where_to_continue(folder: Path) -> str:
    """The end of a sentence: with which checkpoint of a folder a run goes on."""
    return _offer(list_checkpoints(folder))


def _offer(checkpoints: list[Path]) -> str:
    whole = next((p for p in reversed(checkpoints) if durable.first_damage(p) is None), None)
    return "there is no whole checkpoint before it" if whole is None else f"{whole.name} is whole, continue with --resume-from {whole}"


def read_state(path: Path) -> dict[str, Any]:
    """The `state` of a checkpoint."""
    file = path / "state.pt"
    try:
        return torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:  # its reader raises whatever it meets
        reason = f"{type(error).__name__}: {excerpt(error)}"
        raise ConfigError(f"resume: {file} is not tensors, numbers and texts alone ({reason}); go on from another checkpoint.") from error


def read_network(path: Path, name: str, network: nn.Module) -> None:
    """Fills a network with its weights in a checkpoint."""
    file = path / f"{name}.safetensors"
    if not sharded_checkpoint.files(path, name):
        raise ConfigError(f"resume: {path.name} holds no weights of '{name}'; the configuration has changed since it was written.")
    try:
        if file.exists() and not sharding.units(network):
            load_model(network, str(file))
        else:
            sharding.reshard(network)
            sharded_checkpoint.read(path, name, network)
    except RuntimeError as error:  # of torch: names or shapes
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"resume: the weights of '{name}' in {path.name} do not fit the network ({reason}).") from error


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

"""What a run is, as text, setting by setting, and what of it may change when the run is resumed."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from advalign import data, durable
from advalign.errors import ConfigError
from advalign.models.folders import holds_adapter
from advalign.training.run_spec import RunSpec, TrainingArguments
from advalign.training.schedule import Follow

ARGUMENTS = ("seed", "token_budget", "mixed_precision")
"""Fields of `TrainingArguments` that decide what a run computes; the others may change when it is resumed."""

MAY_CHANGE = ("rollout.url", "rollout.folder", "rollout.timeout")
"""Other settings that may change: where a server is."""

LONGEST = 200
"""Characters of a value that are kept as they are; a longer one is described by its beginning and its digest."""

FOLDERS = ("config.json", "adapter_config.json", "dataset_info.json", "dataset_dict.json")
"""A folder with one of these files is a model or a data set."""

LARGE = 2**26
"""Bytes of a file in a folder that is not read as a whole for a digest."""


def describe(spec: RunSpec, args: TrainingArguments, *, rollout: Any, evaluations: Mapping[str, Any]) -> dict[str, str]:
    """{setting: its value} of everything that a resumed run must share with the one that was interrupted.

    Not part of it: logs, saving, and evaluations whose numbers nothing follows. Of the last stage the length is not compared.
    """
    sections: dict[str, Any] = {**spec.config, "frozen": spec.frozen, "schedules": spec.schedules, "gates": spec.gates}
    described = {"rollout": rollout, "args": {name: getattr(args, name) for name in ARGUMENTS}}
    settings = dict(entry for name, value in (*sections.items(), *described.items()) for entry in _flatten(name, value))
    for number, stage in enumerate(spec.stages):
        settings |= dict(_flatten(f"stages.{number}", stage))
    if followed := _followed(spec, evaluations):
        settings |= {"args.eval_steps": str(args.eval_steps)}
        settings |= dict(entry for name in followed for entry in _flatten(f"evaluations.{name}", evaluations[name]))
    settings |= {f"content of {path}": digest for path, digest in _contents(sections)}
    return {name: value for name, value in settings.items() if name not in MAY_CHANGE}


def check_same(path: Path, saved: Mapping[str, str], current: Mapping[str, str], *, stages: int | None = None) -> None:
    """Refuses to continue a run of another description: the result would be neither of the two. `path`: of the checkpoint. `stages`: only
    so many are compared; None: all."""
    compared = {int(name.split(".")[1]) for name in {*saved, *current} if name.startswith("stages.")}
    compared = {number for number in compared if stages is None or number < stages}
    for name in sorted({*saved, *current}):
        if name.startswith("stages."):
            number = int(name.split(".")[1])
            if number not in compared or (number == max(compared) and name.endswith(f"stages.{number}.steps")):
                continue
        if saved.get(name) == current.get(name):
            continue
        if name not in saved:
            change = f"is new ({current[name]}) since {path.name} was written"
        elif name not in current:
            change = f"is gone since {path.name} was written"
        else:
            before, now = _apart(saved[name], current[name])
            change = f"was {before} when {path.name} was written, and is {now} now"
        raise ConfigError(f"resume: {name} {change}; resume with the same configuration, or give a new args.output_dir.")


def _apart(before: str, now: str) -> tuple[str, str]:
    """Two values, from where they begin to differ if they are long."""
    if max(len(before), len(now)) <= 80:
        return before, now
    start = max(next((i for i, (a, b) in enumerate(zip(before, now, strict=False)) if a != b), 0) - 20, 0)
    return tuple(f"{'...' * (start > 0)}{text[start : start + 80]}" for text in (before, now))  # type: ignore[return-value]


def _followed(spec: RunSpec, evaluations: Mapping[str, Any]) -> list[str]:
    """Evaluations whose numbers move a schedule, a gate or a stage."""
    metrics = [schedule.metric for schedule in spec.schedules.values() if isinstance(schedule, Follow)]
    metrics += [gate.metric for gate in spec.gates.values()]
    metrics += [stage.until.metric for stage in spec.stages if stage.until is not None]
    return [name for name in evaluations if any(metric.startswith(f"{name}/") for metric in metrics)]


def _flatten(path: str, value: Any) -> Iterator[tuple[str, str]]:
    """(dotted path, text) of a value and of what it consists of."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield path, type(value).__name__
        for field in dataclasses.fields(value):
            if field.init and field.repr:
                yield from _flatten(f"{path}.{field.name}", getattr(value, field.name))
    elif isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        for name, entry in value.items():
            yield from _flatten(f"{path}.{name}", entry)
    elif isinstance(value, list | tuple) and any(dataclasses.is_dataclass(entry) for entry in value):
        for number, entry in enumerate(value):
            yield from _flatten(f"{path}.{number}", entry)
    else:
        yield path, _text(value)


def _text(value: Any) -> str:
    """The repr, without the addresses that differ from process to process."""
    text = re.sub(r" at 0x[0-9a-f]+", "", repr(value))
    datasets: Any = sys.modules.get("datasets")  # who holds a Dataset has imported it
    if datasets is not None and isinstance(value, datasets.Dataset):
        text += _digest(repr(row).encode() for row in value)
    return text if len(text) <= LONGEST else f"{text[:80]}... (SHA-256 {_digest([text.encode()])})"


def _contents(sections: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(dotted path, digest) of every file, data set and model that a setting names, unless a checkpoint holds all weights of that model."""
    learners = {name: learner for name, learner in sections["learners"].items() if not {"lora", "adapter"} & learner.options.keys()}
    whole = {f"learners.{name}.model" for name, learner in learners.items() if not holds_adapter(Path(learner.model))}
    for path, text, split in (item for name, section in sections.items() for item in _texts(name, section, "train")):
        try:
            place = data.expand(text).replace("{split}", split)
        except ConfigError:  # of a text that only looks like a path with a variable
            continue
        if os.path.isfile(place):
            yield path, durable.sha256(Path(place))
        elif path not in whole and any(os.path.isfile(os.path.join(place, name)) for name in FOLDERS):
            yield path, _digest(_folder(Path(place)))


def _texts(path: str, value: Any, split: str) -> Iterator[tuple[str, str, str]]:
    """(dotted path, text, the split that is read of it) of every text in a value."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init and field.repr}
    if isinstance(value, str):
        yield path, value, split
    elif isinstance(value, Mapping):
        split = value["split"] if isinstance(value.get("split"), str) else split
        for name, entry in value.items():
            yield from _texts(f"{path}.{name}", entry, split)
    elif isinstance(value, list | tuple) and any(dataclasses.is_dataclass(entry) for entry in value):
        for number, entry in enumerate(value):
            yield from _texts(f"{path}.{number}", entry, split)


def _folder(folder: Path) -> Iterator[bytes]:
    """Names, sizes and digests of the files in a folder; of a large one, digests of its beginning and its end."""
    for file in sorted(file for file in folder.rglob("*") if file.is_file() and not file.name.startswith(".")):
        size = file.stat().st_size
        yield f"{file.relative_to(folder)} {size} ".encode()
        if size <= LARGE:
            yield durable.sha256(file).encode()
            continue
        with file.open("rb") as stream:
            yield stream.read(LARGE // 64)
            stream.seek(-LARGE // 64, os.SEEK_END)
            yield stream.read()


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()

"""YAML <-> the frozen dataclasses that Python users build by hand.

`yaml_files` reads a file, `interpolation` resolves its references (${args.seed}, ${oc.env:NAME}) once the overrides are in, and
`advalign.builder` makes the objects.
"""

from __future__ import annotations

import collections.abc
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from advalign import builder, imports, interfaces, interpolation, yaml_files
from advalign import overrides as overriding
from advalign.checked import arguments
from advalign.engine.learner import Learner
from advalign.errors import ConfigError, NotImported, unknown
from advalign.names import SettingPath
from advalign.training.discriminator_evaluation import DiscriminatorEvaluation
from advalign.training.evaluate import EVALUATIONS, Evaluation
from advalign.training.run_spec import Frozen, TrainingArguments
from advalign.training.schedule import Follow, Gate, Ramp, Stage
from advalign.training.smoke import smaller
from advalign.training.trainer import Trainer

SECTIONS: dict[str, Any] = {
    "learners": Mapping[str, Learner],
    "sources": Mapping[str, interfaces.Source],
    "objectives": Mapping[str, interfaces.Objective],
    "adversaries": Mapping[str, interfaces.Adversary],
    "frozen": Mapping[str, Frozen],
    "evaluations": Mapping[str, Evaluation | DiscriminatorEvaluation],
    "schedules": Mapping[SettingPath, Ramp | Follow],
    "stages": Sequence[Stage],
    "gates": Mapping[str, Gate],
    "rollout": interfaces.RolloutEngine,
    "args": TrainingArguments,
}
"""{section: its type}"""

SHOWN = (str, int, float)
"""Types of the values that an outline shows."""


@arguments("config.read: ")
def read(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A YAML file with dotted overrides (`objectives.robust.coef=0.3`) applied; plain dictionaries and lists."""
    document = yaml_files.read(path, f"a configuration is a mapping of {', '.join(SECTIONS)}")
    document.check_names("section", SECTIONS)
    imports.search_beside(path)
    values = overriding.apply(document.values, overrides, SECTIONS)
    _check_null(values, document)
    return typing.cast(dict[str, Any], interpolation.resolve(values, document.where))


def _check_null(values: Mapping[str, Any], document: yaml_files.Document) -> None:
    """Raises ConfigError for a section, or an entry of one, that has a name and nothing else."""
    for name, value in values.items():
        if value is None and name in SECTIONS:
            raise ConfigError(f"{document.where(name)}: the section '{name}' is empty; give it entries, or leave it out.")
        if isinstance(value, Mapping) and typing.get_origin(SECTIONS.get(name)) is collections.abc.Mapping:
            for entry in (key for key, fields in value.items() if fields is None):
                raise ConfigError(f"{document.where(name, entry)}: {name}.{entry} is empty; give it fields, or leave it out.")


@arguments("config.trainer: ")
def trainer(config: Mapping[str, Any], *, smoke: bool = False, **options: Any) -> Trainer:
    """The trainer that a configuration describes, with `smoke` as small as it can be; `options` go to `Trainer` (callbacks, networks)."""
    objects = sections(config)
    for name in ("sources", "objectives"):
        if name not in objects:
            raise ConfigError(f"configuration: no section '{name}' is given; a run needs learners, sources and objectives.")
    return Trainer(**(smaller(objects) if smoke else objects), **options)


@arguments("config.sections: ")
def sections(config: Mapping[str, Any]) -> dict[str, Any]:
    """{section: objects}. Raises ConfigError for unknown sections, kinds, fields and values."""
    objects: dict[str, Any] = {}
    for name, value in builder.expect(config, Mapping, "configuration").items():
        if name not in SECTIONS:
            raise unknown("configuration", "section", str(name), SECTIONS)
        entry = _entry_type(name)
        if entry is not None:
            objects[name] = {k: _entry(entry, v, f"{name}.{k}") for k, v in builder.expect(value, Mapping, name).items()}
        else:
            objects[name] = builder.build(SECTIONS[name], value, name)
    return objects


def outline(config: Mapping[str, Any]) -> list[str]:
    """A configuration as it is written, an entry a line, where some of its modules are not to be imported. Raises ConfigError for mistakes
    in the others."""
    lines = []
    for name, value in config.items():
        annotation = _entry_type(name)
        for key, entry in value.items() if annotation is not None else [("", value)]:
            try:
                _ = sections({name: {key: entry}}) if key else sections({name: entry})
                mark = ""
            except NotImported:
                mark = " (not imported)"
            kind = entry if isinstance(entry, str) else entry.get("kind", "") if isinstance(entry, Mapping) else ""
            fields = [f"{k} {v}" for k, v in entry.items() if k != "kind" and isinstance(v, SHOWN)] if isinstance(entry, Mapping) else []
            lines.append(f"{name}{'.' if key else ''}{key}: {', '.join([*([kind] if kind else []), *fields])}{mark}")
    return lines


def _entry_type(section: str) -> Any:
    """The type of the entries of a section that is a mapping of names; None: it is none."""
    annotation = SECTIONS[section]
    return typing.get_args(annotation)[-1] if typing.get_origin(annotation) is collections.abc.Mapping else None


def _entry(annotation: Any, value: Any, path: str) -> Any:
    """One entry of a section; a schedule with a metric follows it, and an evaluation has a kind."""
    if annotation == Ramp | Follow:
        follows = isinstance(value, Follow) or (isinstance(value, Mapping) and "metric" in value)
        return builder.build(Follow if follows else Ramp, value, path)
    if annotation == Evaluation | DiscriminatorEvaluation:
        return builder.build_choice(EVALUATIONS, "kind of evaluations", value, path, default="answers")
    return builder.build(annotation, value, path)

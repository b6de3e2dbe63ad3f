"""YAML <-> the frozen dataclasses that Python users build by hand.

Files are read and overridden by OmegaConf (dotted paths, environment variables as ${oc.env:NAME}); `advalign.builder` makes the objects.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from advalign import builder, interfaces
from advalign.engine.learner import Learner
from advalign.errors import ConfigError, unknown
from advalign.training.evaluate import EVALUATIONS, Evaluation
from advalign.training.run_spec import Frozen, TrainingArguments
from advalign.training.schedule import Follow, Gate, Ramp, Stage
from advalign.training.trainer import Trainer

SECTIONS: dict[str, tuple[str, Any]] = {
    "learners": ("mapping", Learner),
    "sources": ("mapping", interfaces.Source),
    "objectives": ("mapping", interfaces.Objective),
    "adversaries": ("mapping", interfaces.Adversary),
    "frozen": ("mapping", Frozen),
    "evaluations": ("mapping", Evaluation),
    "schedules": ("mapping", Ramp),
    "stages": ("list", Stage),
    "gates": ("mapping", Gate),
    "rollout": ("one", interfaces.RolloutEngine),
    "args": ("one", TrainingArguments),
}
"""{section: (one, mapping or list, the type of its entries)}"""


def read(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A YAML file with dotted overrides (`objectives.robust.coef=0.3`) applied; plain dictionaries and lists."""
    if not Path(path).is_file():
        raise ConfigError(f"{path}: no such file.")
    try:
        config: Any = OmegaConf.load(path)
        if not OmegaConf.is_dict(config):
            raise ConfigError(f"{path}: a configuration is a mapping of {', '.join(SECTIONS)}.")
        for override in overrides:
            name, sign, _ = override.partition("=")
            if not sign:
                raise ConfigError(f"override '{override}': write it as path=value, for example objectives.robust.coef=0.3.")
            _check_override(OmegaConf.to_container(config, resolve=False), name)
        changes = OmegaConf.from_dotlist(list(overrides))
        if overrides:
            config = OmegaConf.create(_of_new_kinds(OmegaConf.to_container(config, resolve=False), OmegaConf.to_container(changes)))
        config = OmegaConf.merge(config, changes)
        container = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {str(error).splitlines()[0]}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: this is not YAML: {' '.join(str(error).split())}.") from error
    return typing.cast(dict[str, Any], container)


def dotted(overrides: Sequence[str]) -> dict[str, Any]:
    """`["a.b=1", "c=x"]` as nested dictionaries."""
    for override in overrides:
        if "=" not in override:
            raise ConfigError(f"'{override}': write it as path=value.")
    return typing.cast(dict[str, Any], OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides))))


def trainer(config: Mapping[str, Any], **options: Any) -> Trainer:
    """The trainer that a configuration describes; `options` go to `Trainer` (callbacks, networks)."""
    objects = sections(config)
    for name in ("sources", "objectives"):
        if name not in objects:
            raise ConfigError(f"configuration: no section '{name}' is given; a run needs learners, sources and objectives.")
    return Trainer(**objects, **options)


def sections(config: Mapping[str, Any]) -> dict[str, Any]:
    """{section: objects}. Raises ConfigError for unknown sections, kinds, fields and values."""
    objects: dict[str, Any] = {}
    for name, value in config.items():
        if name not in SECTIONS:
            raise unknown("configuration", "section", str(name), SECTIONS)
        shape, annotation = SECTIONS[name]
        if shape == "mapping":
            objects[name] = {k: _entry(annotation, v, f"{name}.{k}") for k, v in builder.expect(value, Mapping, name).items()}
        elif shape == "list":
            objects[name] = [_entry(annotation, v, f"{name}.{i}") for i, v in enumerate(builder.expect(value, Sequence, name))]
        else:
            objects[name] = _entry(annotation, value, name)
    return objects


def _entry(annotation: Any, value: Any, path: str) -> Any:
    """One entry of a section; a schedule with a metric follows it, and an evaluation has a kind."""
    if annotation is Ramp and (isinstance(value, Follow) or (isinstance(value, Mapping) and "metric" in value)):
        annotation = Follow
    if annotation is Evaluation:
        return builder.build_choice(EVALUATIONS, "kind of evaluations", value, path, default="answers")
    return builder.build(annotation, value, path)


def _of_new_kinds(config: Any, changes: Any, path: tuple[str, ...] = ()) -> Any:
    """`config` without the options of a kind that `changes` replace; the fields of the base that all kinds of a section have stay."""
    if not (isinstance(config, Mapping) and isinstance(changes, Mapping)):
        return config
    if {"kind"} <= config.keys() & changes.keys() and config["kind"] != changes["kind"]:
        base = SECTIONS.get(path[0], ("", None))[1] if 1 <= len(path) <= 2 else None
        names = {"kind", *(field.name for field in dataclasses.fields(base) if field.init)} if dataclasses.is_dataclass(base) else {"kind"}
        config = {name: value for name, value in config.items() if name in names}
    return {name: _of_new_kinds(value, changes.get(name), (*path, str(name))) for name, value in config.items()}


def _check_override(config: Any, path: str) -> None:
    """An override may add a field to an entry, but no section or entry: a new one is more likely a typing error."""
    section, *names = path.split(".")
    if section not in SECTIONS and not (isinstance(config, Mapping) and section in config):
        raise unknown(f"override {path}", "section", section, SECTIONS)
    entries = config.get(section) if isinstance(config, Mapping) else None
    if SECTIONS.get(section, ("",))[0] == "mapping" and isinstance(entries, Mapping) and len(names) > 1 and names[0] not in entries:
        raise unknown(f"override {path}", f"entry of {section}", names[0], map(str, entries))

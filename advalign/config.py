"""YAML <-> the frozen dataclasses that Python users build by hand.

`{kind: dapo, source: math, clip_high: 0.28}` and `DAPO(source="math", clip_high=0.28)` are the same object. Files are read
and overridden by OmegaConf (dotted paths, environment variables as ${oc.env:NAME}), fields are validated by pydantic
against their annotations, and every mistake is answered in one sentence with the nearest match.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ConfigDict, TypeAdapter, ValidationError

from advalign import interfaces, plugins
from advalign.engine.learner import Learner
from advalign.errors import ConfigError, unknown
from advalign.training.evaluate import KINDS as EVALUATIONS
from advalign.training.evaluate import Evaluation
from advalign.training.run_spec import Frozen, TrainingArguments
from advalign.training.schedule import Follow, Gate, Ramp, Stage
from advalign.training.trainer import Trainer

# Annotations of plugin fields -> the room whose kinds may stand there.
GROUP_OF: dict[Any, str] = {
    interfaces.Objective: "objectives",
    interfaces.Adversary: "adversaries",
    interfaces.Advantage: "advantages",
    interfaces.Reward: "rewards",
    interfaces.RolloutEngine: "rollout",
    interfaces.Source: "sources",
    interfaces.Task: "tasks",
    interfaces.Attack: "attacks",
    interfaces.Judge: "judges",
}
SECTIONS: dict[str, tuple[str, Any]] = {  # section -> (one | mapping | list, what its entries are)
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


def read(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A YAML file with dotted overrides (`objectives.robust.coef=0.3`) applied; plain dictionaries and lists."""
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"{path}: no such file.")
    try:
        loaded: Any = OmegaConf.load(file)
        if not OmegaConf.is_dict(loaded):
            raise ConfigError(f"{path}: a configuration is a mapping of {', '.join(SECTIONS)}.")
        for override in overrides:
            name, sign, _ = override.partition("=")
            if not sign:
                raise ConfigError(f"override '{override}': write it as path=value, for example objectives.robust.coef=0.3.")
            _known_path(OmegaConf.to_container(loaded, resolve=False), name)
        loaded = OmegaConf.merge(loaded, OmegaConf.from_dotlist(list(overrides)))
        container = OmegaConf.to_container(loaded, resolve=True)
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


def trainer(config: Mapping[str, Any], **more: Any) -> Trainer:
    """The trainer that a configuration describes; `more` goes to `Trainer` (callbacks, networks)."""
    built = sections(config)
    for name in ("sources", "objectives"):
        if name not in built:
            raise ConfigError(f"configuration: no section '{name}' is given; a run needs learners, sources and objectives.")
    return Trainer(**built, **more)


def sections(config: Mapping[str, Any]) -> dict[str, Any]:
    """{section: objects}. Raises ConfigError for unknown sections, kinds, fields and values."""
    built: dict[str, Any] = {}
    for name, value in config.items():
        if name not in SECTIONS:
            raise unknown("configuration", "section", str(name), SECTIONS)
        shape, what = SECTIONS[name]
        if shape == "mapping":
            built[name] = {k: build(what, v, f"{name}.{k}") for k, v in _expect(value, Mapping, name).items()}
        elif shape == "list":
            built[name] = [build(what, v, f"{name}.{i}") for i, v in enumerate(_expect(value, Sequence, name))]
        else:
            built[name] = build(what, value, name)
    return built


def build(what: Any, value: Any, where: str) -> Any:
    """An object of a plugin protocol (from {kind: ...} or a bare kind) or of a plain dataclass (from a mapping)."""
    if not isinstance(value, str | Mapping):
        return value
    if what in GROUP_OF:
        given = {"kind": value} if isinstance(value, str) else dict(value)
        if "kind" not in given:
            raise ConfigError(f"{where}: which one? Give kind: one of {', '.join(plugins.kinds(GROUP_OF[what]))}.")
        return _dataclass(plugins.resolve(GROUP_OF[what], str(given.pop("kind")), where), given, where)
    if what is Ramp and "metric" in value:
        what = Follow
    if what is Evaluation and isinstance(value, Mapping) and "kind" in value:
        value = dict(value)
        kind = str(value.pop("kind"))
        if kind not in EVALUATIONS:
            raise unknown(where, "kind of evaluations", kind, EVALUATIONS)
        what = EVALUATIONS[kind]
    return _dataclass(what, _expect(value, Mapping, where), where)


def _dataclass(cls: type, given: Mapping[str, Any], where: str) -> Any:
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls) if f.init]
    arguments = {}
    for key, value in given.items():
        if key not in names:
            raise unknown(where, f"field of {cls.__name__}", str(key), names)
        arguments[key] = _field(hints[key], value, f"{where}.{key}")
    required = [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
    missing = [name for name in required if name not in arguments]
    if missing:
        raise ConfigError(f"{where}: {cls.__name__} needs {', '.join(missing)}.")
    try:
        return cls(**arguments)
    except ConfigError as error:
        text = str(error)
        raise ConfigError(text if text.startswith(where) else f"{where}: {text}") from error


def _field(hint: Any, value: Any, where: str) -> Any:
    """One field: plugins and dataclasses are built, anything else is validated by pydantic."""
    options = _alternatives(hint)
    if value is None and type(None) in options:
        return None
    for option in options:
        if option in GROUP_OF or (dataclasses.is_dataclass(option) and isinstance(option, type)):
            if isinstance(value, str | Mapping):
                return build(option, value, where)
        elif typing.get_origin(option) in (collections.abc.Sequence, list, tuple) and typing.get_args(option)[0] in GROUP_OF:
            items = _expect(value, Sequence, where)
            return tuple(build(typing.get_args(option)[0], v, f"{where}.{i}") for i, v in enumerate(items))
    return _validated(hint, value, where)


def _validated(hint: Any, value: Any, where: str) -> Any:
    if hint is Any or any(dataclasses.is_dataclass(o) or o in GROUP_OF for o in _alternatives(hint)):
        return value
    try:
        return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{where}: {value!r} given; {first['msg'][0].lower() + first['msg'][1:]}.") from None


def _alternatives(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


def _expect(value: Any, kind: Any, where: str) -> Any:
    if not isinstance(value, kind) or isinstance(value, str):
        wanted = "a mapping of names" if kind is Mapping else "a list"
        raise ConfigError(f"{where}: {value!r} given; {wanted} is expected.")
    return value


def _known_path(tree: Any, path: str) -> None:
    """A new field of an entry may be added by an override; a new section or entry may not: it is more likely a typo."""
    parts = path.split(".")
    if parts[0] not in SECTIONS and not (isinstance(tree, Mapping) and parts[0] in tree):
        raise unknown(f"override {path}", "section", parts[0], SECTIONS)
    entries = tree.get(parts[0]) if isinstance(tree, Mapping) else None
    if SECTIONS.get(parts[0], ("",))[0] == "mapping" and isinstance(entries, Mapping) and len(parts) > 2 and parts[1] not in entries:
        raise unknown(f"override {path}", f"entry of {parts[0]}", parts[1], map(str, entries))

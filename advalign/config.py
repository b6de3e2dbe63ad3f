"""YAML <-> the frozen dataclasses that Python users build by hand.

Files are read and overridden by OmegaConf (dotted paths, environment variables as ${oc.env:NAME}); `advalign.builder` makes the objects.
"""

from __future__ import annotations

import collections.abc
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from advalign import builder, interfaces, plugins
from advalign import overrides as overriding
from advalign.engine.learner import Learner
from advalign.errors import ConfigError, unknown
from advalign.names import SettingPath
from advalign.training.discriminator_evaluation import DiscriminatorEvaluation
from advalign.training.evaluate import EVALUATIONS, Evaluation
from advalign.training.run_spec import Frozen, TrainingArguments
from advalign.training.schedule import Follow, Gate, Ramp, Stage
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


def read(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A YAML file with dotted overrides (`objectives.robust.coef=0.3`) applied; plain dictionaries and lists."""
    if not Path(path).is_file():
        raise ConfigError(f"{path}: no such file.")
    plugins.search_beside(path)
    try:
        config: Any = OmegaConf.load(path)
        if not OmegaConf.is_dict(config):
            raise ConfigError(f"{path}: a configuration is a mapping of {', '.join(SECTIONS)}.")
        changed = overriding.apply(OmegaConf.to_container(config, resolve=False), overrides, SECTIONS)
        config = OmegaConf.create(changed)
        container = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {str(error).splitlines()[0]}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: this is not YAML: {' '.join(str(error).split())}.") from error
    return typing.cast(dict[str, Any], container)


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
        annotation = SECTIONS[name]
        entry = typing.get_args(annotation)[-1] if typing.get_args(annotation) else None
        if typing.get_origin(annotation) is collections.abc.Mapping:
            objects[name] = {k: _entry(entry, v, f"{name}.{k}") for k, v in builder.expect(value, Mapping, name).items()}
        else:
            objects[name] = builder.build(annotation, value, name)
    return objects


def _entry(annotation: Any, value: Any, path: str) -> Any:
    """One entry of a section; a schedule with a metric follows it, and an evaluation has a kind."""
    if annotation == Ramp | Follow:
        follows = isinstance(value, Follow) or (isinstance(value, Mapping) and "metric" in value)
        return builder.build(Follow if follows else Ramp, value, path)
    if annotation == Evaluation | DiscriminatorEvaluation:
        return builder.build_choice(EVALUATIONS, "kind of evaluations", value, path, default="answers")
    return builder.build(annotation, value, path)

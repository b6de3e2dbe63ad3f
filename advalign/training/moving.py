"""Settings that change during a run, by stages and schedules: which can, and the values they take."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from advalign.builder import build
from advalign.errors import ConfigError, unknown
from advalign.names import changes_during_a_run, declared, options

MOVING = ("objectives", "adversaries", "learners")
"""Sections that a stage or a schedule may change; a source is started once."""

STARTED = ("sources", "frozen", "evaluations", "gates", "schedules", "stages", "rollout", "args")
"""The other sections."""


def check_path(config: Mapping[str, Any], path: str, error_path: str) -> None:
    """Raises ConfigError for a path to nothing, and for one to a setting that is read once, at the start."""
    section, *names = path.split(".")
    if section in STARTED:
        raise ConfigError(f"{error_path}: only objectives, adversaries and learners can change during a run; a source is started once.")
    if section not in MOVING:
        raise unknown(error_path, "section that can change during a run", section, MOVING)
    if len(names) < 2:
        raise ConfigError(f"{error_path}: it names no setting; write it as {section}.<name>.<field>.")
    if names[0] not in config[section]:
        raise unknown(error_path, "entry", names[0], config[section])
    moves = section != "learners"
    for node, name, _ in _places(config, path, error_path):
        if not dataclasses.is_dataclass(node):
            continue
        cls: Any = type(node)
        default, moves = moves, changes_during_a_run(cls, name, moves)
        if not moves:
            label = "a learner" if section == "learners" else cls.__name__
            movable = [field for field in declared(cls) if changes_during_a_run(cls, field, default)]
            raise unknown(error_path, f"field of {label} that can change during a run", name, movable)


def read_setting(config: Mapping[str, Any], path: str, value: Any, error_path: str) -> Any:
    """A value as the field at a dotted path asks for it. Raises ConfigError for a path or a value that cannot be."""
    check_path(config, path, error_path)
    *_, (_, _, hint) = _places(config, path, error_path)
    value = build(hint, _whole(value, hint), error_path)
    replace_leaf(config, path, value, error_path)
    return value


def replace_leaf(tree: Any, path: str, value: Any, error_path: str = "") -> Any:
    """`tree` with the leaf at a dotted path replaced by a value of its type. Raises ConfigError with the nearest name."""
    error_path = error_path or path
    places = list(_places(tree, path, error_path))
    value = _whole(value, places[-1][2])
    for node, name, _ in reversed(places):
        try:
            value = {**node, name: value} if isinstance(node, Mapping) else dataclasses.replace(node, **{name: value})
        except ConfigError as error:
            raise ConfigError(f"{error_path}: {error}") from error
    return value


def _whole(value: Any, hint: Any) -> Any:
    """A number of a ramp through whole numbers, such as steps, rounded."""
    whole = int in options(hint) and float not in options(hint)
    return round(value) if whole and isinstance(value, float) and math.isfinite(value) else value


def _places(tree: Any, path: str, error_path: str) -> Iterator[tuple[Any, str, Any]]:
    """(what holds it, its name, its type) of every part of a path, from the outside in."""
    hint: Any = Any
    for name in path.split("."):
        if isinstance(tree, Mapping):
            if name not in tree:
                raise unknown(error_path, "entry", name, map(str, tree))
            entry, hint = tree[name], _value_type(hint)
        elif dataclasses.is_dataclass(tree) and not isinstance(tree, type):
            if name not in declared(type(tree)):
                raise unknown(error_path, f"field of {type(tree).__name__}", name, declared(type(tree)))
            entry, hint = getattr(tree, name), declared(type(tree))[name]
        else:
            raise ConfigError(f"{error_path}: '{name}' is below a {type(tree).__name__}, which has no named parts.")
        yield tree, name, hint
        tree = entry


def _value_type(hint: Any) -> Any:
    """The type of the entries of a mapping."""
    types = (typing.get_args(option) for option in options(hint) if len(typing.get_args(option)) == 2)
    return next((arguments[1] for arguments in types), Any)

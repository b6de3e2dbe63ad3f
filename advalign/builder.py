"""From a mapping to the frozen dataclass it describes: one builder for runs, suites, tasks, certificates and attacks.

`{kind: dapo, source: math, clip_high: 0.28}` becomes `DAPO(source="math", clip_high=0.28)`. An annotation that is an interface takes a
plugin of its group, one that is a dataclass takes a mapping, and anything else is checked by its annotation (`checked.py`, `ranges.py`).
Every mistake is answered in one sentence with its path and the nearest match.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from advalign import checked, interfaces, plugins
from advalign.errors import ConfigError, unknown

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
"""{interface: the plugin group that implements it}"""


def build(annotation: Any, value: Any, path: str) -> Any:
    """`value` as the annotation of a field asks for it; what is built already passes. Raises ConfigError, its path `path`."""
    options = _alternatives(annotation)
    if value is None and type(None) in options:
        return None
    return checked.in_range(annotation, _built(annotation, options, value, path), path)


def _built(annotation: Any, options: tuple[Any, ...], value: Any, path: str) -> Any:
    for option in options:
        item, container = _item(option)
        if container is None:
            if isinstance(value, option):
                return value
            if option in GROUP_OF and isinstance(value, str | Mapping):
                return build_plugin(option, value, path)
            if isinstance(value, Mapping):
                return build_dataclass(option, value, path)
        elif container is Mapping:
            return {str(key): build(item, entry, f"{path}.{key}") for key, entry in expect(value, Mapping, path).items()}
        elif container is Sequence:
            return tuple(build(item, entry, f"{path}.{i}") for i, entry in enumerate(expect(value, Sequence, path)))
    return _validated(annotation, value, path)


def build_plugin(interface: Any, value: Any, path: str) -> Any:
    """A plugin from `{kind: ..., field: value}` or from a bare kind."""
    if isinstance(value, interface):
        return value
    group = GROUP_OF[interface]
    fields = {"kind": value} if isinstance(value, str) else dict(expect(value, Mapping, path))
    if "kind" not in fields:
        raise ConfigError(f"{path}: no 'kind' given; known kinds: {', '.join(plugins.kinds(group))}.")
    kind = checked.check(str, fields.pop("kind"), f"{path}.kind")
    cls = plugins.resolve(group, kind, path)
    _check_plugin(cls, interface, path)
    return build_dataclass(cls, fields, path)


def build_choice(classes: Mapping[str, type], label: str, value: Any, path: str, default: str) -> Any:
    """The same where `kind` chooses between a few dataclasses that are no plugin group; without a kind it is `default`."""
    if isinstance(value, tuple(classes.values())):
        return value
    fields = dict(expect(value, Mapping, path))
    kind = str(fields.pop("kind", default))
    if kind not in classes:
        raise unknown(path, label, kind, classes)
    return build_dataclass(classes[kind], fields, path)


def build_dataclass(cls: type, value: Any, path: str) -> Any:
    """A dataclass from a mapping of its fields."""
    fields = [field for field in dataclasses.fields(cls) if field.init]  # type: ignore[arg-type]
    names, hints = [field.name for field in fields], checked.fields(cls)
    arguments = {}
    for name, entry in expect(value, Mapping, path).items():
        if name not in names:
            raise unknown(path, f"field of {cls.__name__}", str(name), names)
        arguments[name] = build(hints[name], entry, f"{path}.{name}")
    required = [f.name for f in fields if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
    missing = [name for name in required if name not in arguments]
    if missing:
        raise ConfigError(f"{path}: {cls.__name__} needs {', '.join(missing)}.")
    try:
        built = cls(**arguments)
    except ConfigError as error:
        text = str(error)
        raise ConfigError(text if text.startswith(path) else f"{path}: {text}") from error
    return built


def expect(value: Any, container: Any, path: str) -> Any:
    """`value`, if it is a Mapping, or a Sequence that is not a text."""
    if not isinstance(value, container) or isinstance(value, str):
        wanted = "a mapping of names" if container is Mapping else "a list"
        raise ConfigError(f"{path}: {checked.shown(value)} given; {wanted} is expected.")
    return value


def _check_plugin(cls: type, interface: Any, path: str) -> None:
    """A class from outside the package is refused in a sentence where it cannot be a plugin."""
    if not issubclass(cls, interface):
        raise ConfigError(f"{path}: {plugins.kind_of(cls)} does not derive from advalign.interfaces.{interface.__name__}.")
    if not dataclasses.is_dataclass(cls) or plugins.lacks_decorator(cls):
        raise ConfigError(f"{path}: {plugins.kind_of(cls)} is not decorated with @dataclass(frozen=True, kw_only=True).")
    if missing := sorted(cls.__abstractmethods__):
        raise ConfigError(f"{path}: {plugins.kind_of(cls)} does not implement {', '.join(missing)} of {interface.__name__}.")


def _item(option: Any) -> tuple[Any, Any]:
    """(what is built, None, Mapping or Sequence of it) of an annotation; the container is `object` where pydantic takes over."""
    if _is_built(option):
        return option, None
    origin, arguments = typing.get_origin(option), typing.get_args(option)
    if origin in (collections.abc.Sequence, list, tuple) and any(map(_is_built, _alternatives(arguments[0]))):
        return arguments[0], Sequence
    if origin in (collections.abc.Mapping, dict) and any(map(_is_built, _alternatives(arguments[1]))):
        return arguments[1], Mapping
    return option, object


def _is_built(option: Any) -> bool:
    return option in GROUP_OF or (isinstance(option, type) and dataclasses.is_dataclass(option))


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) is typing.Annotated:
        return _alternatives(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def _validated(annotation: Any, value: Any, path: str) -> Any:
    options = _alternatives(annotation)
    if all(_is_built(option) or option is type(None) for option in options):
        raise ConfigError(f"{path}: {checked.shown(value)} given; {_wanted(options[0])} is expected.")
    return checked.check(annotation, value, path, from_text=True)


def _wanted(option: Any) -> str:
    return f"a mapping with 'kind', one of {', '.join(plugins.kinds(GROUP_OF[option]))}" if option in GROUP_OF else "a mapping of names"

"""From a mapping to the frozen dataclass it describes: one builder for runs, suites, tasks, certificates and attacks.

`{kind: dapo, source: math, clip_high: 0.28}` becomes `DAPO(source="math", clip_high=0.28)`. An annotation that is an interface takes a
plugin of its group, one that is a dataclass takes a mapping, and anything else is validated by pydantic. Every mistake is answered in one
sentence with its path and the nearest match.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import math
import operator
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from advalign import interfaces, plugins
from advalign.errors import ConfigError, unknown

UNBOUNDED = frozenset(
    "above away_cutoff below budget cap clip clip_high clip_low cutoff distance dual_clip edits high high_cov lengths low low_cov "
    "max_changed max_grad_norm radius seconds soft_clip threshold timeout tolerance toward_cutoff".split()
)
"""Fields that are bounds, for which an infinite number means that there is none."""

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
    cls = plugins.resolve(group, str(fields.pop("kind")), path)
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
    names, hints = [field.name for field in fields], typing.get_type_hints(cls)
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
    check_numbers(built, path)
    return built


def check_numbers(value: Any, path: str) -> None:
    """Refuses nan in a dataclass and in those below it, and infinite numbers where a field is not a bound. Rows at hand may have them."""
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            entry, inner = getattr(value, field.name), f"{path}.{field.name}"
            unbounded = field.name in UNBOUNDED or (isinstance(field.default, float) and math.isinf(field.default))
            if isinstance(entry, float) and (math.isnan(entry) or (math.isinf(entry) and not unbounded)):
                raise ConfigError(f"{inner}: {entry} given; a finite number is expected.")
            check_numbers(entry, inner)
    elif isinstance(value, Mapping):
        for name, entry in value.items():
            if isinstance(entry, float) and not math.isfinite(entry):
                raise ConfigError(f"{path}.{name}: {entry} given; a finite number is expected.")
            check_numbers(entry, f"{path}.{name}")
    elif isinstance(value, list | tuple):
        for number, entry in enumerate(value):
            if isinstance(entry, float) and math.isnan(entry):
                raise ConfigError(f"{path}.{number}: nan given; a finite number is expected.")
            if dataclasses.is_dataclass(entry):
                check_numbers(entry, f"{path}.{number}")


def expect(value: Any, container: Any, path: str) -> Any:
    """`value`, if it is a Mapping, or a Sequence that is not a text."""
    if not isinstance(value, container) or isinstance(value, str):
        wanted = "a mapping of names" if container is Mapping else "a list"
        raise ConfigError(f"{path}: {value!r} given; {wanted} is expected.")
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
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def _validated(annotation: Any, value: Any, path: str) -> Any:
    if annotation is Any:
        return value
    options = _alternatives(annotation)
    built, rest = [o for o in options if _is_built(o)], [o for o in options if not _is_built(o) and o is not type(None)]
    if not rest:
        raise ConfigError(f"{path}: {value!r} given; {_wanted(built[0])} is expected.")
    hint: Any = functools.reduce(operator.or_, rest) if built else annotation
    try:
        return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{path}: {value!r} given; {first['msg'][0].lower() + first['msg'][1:]}.") from None


def _wanted(option: Any) -> str:
    return f"a mapping with 'kind', one of {', '.join(plugins.kinds(GROUP_OF[option]))}" if option in GROUP_OF else "a mapping of names"

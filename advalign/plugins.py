"""The folder is the registry: `kind: dapo` is the one public class of `objectives/dapo.py`.

A dotted kind (`my_lab.losses.foo`) is the one class in `__all__` of that module, or the class itself
(`my_lab.losses.Foo`), so outsiders add an objective with one file and no registration.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from functools import cache
from typing import Any

from advalign.errors import ConfigError, unknown

GROUPS = ("objectives", "adversaries", "advantages", "rewards", "rollout", "sources", "tasks", "attacks", "judges")


def kinds(room: str) -> list[str]:
    """The kinds of one room, by file name; files that start with `_` are not plugins."""
    if room not in GROUPS:
        raise unknown("plugins", "room", room, GROUPS)
    package = importlib.import_module(f"advalign.{room}")
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))


@cache
def resolve(room: str, kind: str, where: str = "") -> type:
    """The class behind a kind. Raises ConfigError with the nearest known kind."""
    at = where or room
    if "." in kind:
        return _outside(kind, at)
    if kind not in kinds(room):
        raise unknown(at, f"kind of {room}", kind, kinds(room))
    return _only_class(importlib.import_module(f"advalign.{room}.{kind}"), at)


def all(room: str) -> list[type]:
    """Every plugin class of a room, for the contract tables and `advalign list`."""
    return [resolve(room, kind) for kind in kinds(room)]


def kind_of(cls: type) -> str:
    """The inverse of `resolve`."""
    inside = cls.__module__.startswith("advalign.")
    return cls.__module__.rsplit(".", 1)[-1] if inside else f"{cls.__module__}.{cls.__qualname__}"


def summary(cls: type) -> str:
    """The first line of a plugin's documentation: the formula."""
    doc = inspect.getdoc(cls) or ""
    return doc.splitlines()[0] if doc else ""


def exports(room: str) -> dict[str, str]:
    """{class name: kind}, so that `objectives.DAPO` works without importing every file."""
    return {resolve(room, kind).__name__: kind for kind in kinds(room)}


def function(given: str | Callable[..., Any], where: str) -> Callable[..., Any]:
    """A callable as it is, or the one behind a dotted path (`my_lab.rewards.brevity`)."""
    if callable(given):
        return given
    module, _, name = str(given).rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{where}: cannot import '{given}' ({error}).") from error
    if not callable(found):
        raise ConfigError(f"{where}: '{given}' is a {type(found).__name__}, not a function.")
    return found  # type: ignore[no-any-return]


def lazy(package: str) -> Callable[[str], type]:
    """A module's `__getattr__`: `objectives.DAPO` imports `objectives/dapo.py` and nothing else of the room by hand."""
    room = package.rsplit(".", 1)[-1]

    def find(name: str) -> type:
        known = exports(room) if name[:1].isupper() else {}
        if name not in known:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        return resolve(room, known[name])

    return find


def _outside(kind: str, where: str) -> type:
    try:
        return _only_class(importlib.import_module(kind), where)
    except ModuleNotFoundError as error:
        if error.name is None or not (kind == error.name or kind.startswith(error.name + ".")):
            raise
    module, _, name = kind.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ModuleNotFoundError, AttributeError, ValueError):
        raise ConfigError(f"{where}: cannot import '{kind}'; a dotted kind is a module with one class in __all__, or a class.") from None
    return found


def _only_class(module: object, where: str) -> type:
    names = getattr(module, "__all__", [])
    if len(names) != 1:
        raise ConfigError(f"{where}: {module.__name__} must name exactly one class in __all__, found {len(names)}.")  # type: ignore[attr-defined]
    return getattr(module, names[0])

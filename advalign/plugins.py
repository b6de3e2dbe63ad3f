"""The folder is the registry: `kind: dapo` is the one public class of `objectives/dapo.py`.

A dotted kind (`my_lab.losses.foo`) is the one class in `__all__` of that module, or the class itself
(`my_lab.losses.Foo`), so outsiders add an objective with one file and no registration. What is said about a built-in plugin (its class
name, its first docstring line) is read from the file without importing it.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from advalign import imports
from advalign.errors import ConfigError, unknown

GROUPS = ("objectives", "adversaries", "advantages", "rewards", "rollout", "sources", "tasks", "attacks", "judges")
"""The plugin groups; the name is that of the folder."""


def kinds(group: str) -> list[str]:
    """The kinds of a group, by file name; files that start with `_` are not plugins."""
    return sorted(path.stem for path in _folder(group).glob("*.py") if not path.stem.startswith("_"))


@cache
def resolve(group: str, kind: str, path: str = "") -> type:
    """The class behind a kind. Raises ConfigError, its path `path`, with the nearest known kind."""
    if "." in kind:
        return _outside(kind, path or group)
    if kind not in kinds(group):
        raise unknown(path or group, f"kind of {group}", kind, kinds(group))
    return _only_class(importlib.import_module(f"advalign.{group}.{kind}"), path or group)


def all(group: str) -> list[type]:
    """Every plugin class of a group, for the contract tables."""
    return [resolve(group, kind) for kind in kinds(group)]


def kind_of(cls: type) -> str:
    """The inverse of `resolve`."""
    built_in = cls.__module__.startswith("advalign.")
    return cls.__module__.rsplit(".", 1)[-1] if built_in else f"{cls.__module__}.{cls.__qualname__}"


def summary(cls: type) -> str:
    """The first line of a plugin's documentation: the formula."""
    return _first_line(inspect.getdoc(cls))


def summaries(group: str) -> dict[str, str]:
    """{kind: first line of its documentation}, without importing any of them."""
    return {kind: _first_line(ast.get_docstring(_parsed(group, kind))) for kind in kinds(group)}


def group_summary(group: str) -> str:
    """The first line of the documentation of a group."""
    return _first_line(ast.get_docstring(ast.parse((_folder(group) / "__init__.py").read_text(encoding="utf-8"))))


def exports(group: str) -> dict[str, str]:
    """{class name: kind}, without importing any of them."""
    return {_parsed(group, kind).name: kind for kind in kinds(group)}


def lacks_decorator(cls: type) -> bool:
    """Whether a class annotates fields and is not decorated with @dataclass itself, so that they are no options."""
    annotations = inspect.get_annotations(cls).values()
    fields = [a for a in annotations if "ClassVar" not in (a if isinstance(a, str) else repr(a))]
    return bool(fields) and "__dataclass_params__" not in vars(cls)


def lazy(package: str) -> Callable[[str], type]:
    """The `__getattr__` of a group: `objectives.DAPO` imports `objectives/dapo.py` and no other plugin."""
    group = package.rsplit(".", 1)[-1]

    def find(name: str) -> type:
        classes = exports(group) if name[:1].isupper() else {}
        if name not in classes:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        return resolve(group, classes[name])

    return find


def _folder(group: str) -> Path:
    if group not in GROUPS:
        raise unknown("plugins", "plugin group", group, GROUPS)
    return Path(__file__).parent / group


@cache
def _parsed(group: str, kind: str) -> ast.ClassDef:
    """The one class that a plugin file names in `__all__`, as its syntax tree."""
    tree = ast.parse((_folder(group) / f"{kind}.py").read_text(encoding="utf-8"))
    assigned = [node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"]
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    if len(assigned) != 1 or len(names := ast.literal_eval(assigned[0])) != 1 or names[0] not in classes:
        raise ConfigError(f"{group}.{kind}: the file must name exactly one class of its own in __all__.")
    return classes[names[0]]


def _first_line(doc: str | None) -> str:
    return doc.splitlines()[0] if doc else ""


def _outside(kind: str, path: str) -> type:
    """The class behind a dotted kind: the one in `__all__` of a module, or a class of a module."""
    module = imports.module(kind, path, kind)
    if module is not None:
        return _only_class(module, path)
    name, _, attribute = kind.rpartition(".")
    owner = imports.module(name, path, kind)
    try:
        cls = getattr(owner, attribute)
    except AttributeError as error:
        rule = "a dotted kind is a module with one class in __all__, or a class."
        raise ConfigError(f"{path}: cannot import '{kind}'; {rule} {imports.ALSO_SEARCHED}") from error
    if not isinstance(cls, type):
        raise ConfigError(f"{path}: '{kind}' is a {type(cls).__name__}, not a class.")
    return cls


def _only_class(module: Any, path: str) -> type:
    names = getattr(module, "__all__", [])
    if len(names) != 1:
        raise ConfigError(f"{path}: {module.__name__} must name exactly one class in __all__, found {len(names)}.")
    cls = getattr(module, names[0], None)
    if not isinstance(cls, type):
        raise ConfigError(f"{path}: {module.__name__} names '{names[0]}' in __all__, which is a {type(cls).__name__}, not a class.")
    return cls

"""Dotted overrides of a configuration: `objectives.robust.coef=0.3`, `stages.mix.steps=10`, `sources.write.rewards.0.weight=2`.

A path goes through mappings by their keys (which may have dots of their own, as those of `schedules`), and through lists by an index,
by the `name` of an entry or by its `kind`. It is resolved against the file and, where that says nothing, against the fields of what is
built from it, so that a mistake is answered with the nearest name.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from advalign import plugins, yaml_files
from advalign.builder import GROUP_OF
from advalign.errors import ConfigError, excerpt, unknown
from advalign.names import is_path, options


@dataclass(frozen=True, kw_only=True)
class Override:
    """One override, as it was written."""

    path: str
    """The dotted path."""
    names: tuple[str, ...]
    """Its parts."""
    value: Any
    """The value, read as YAML."""

    @property
    def changes_kind(self) -> bool:
        """Whether it may put another kind in the place of one, whose options then go."""
        return self.names[-1] == "kind" or (isinstance(self.value, Mapping) and "kind" in self.value)


def apply(config: Any, overrides: Sequence[str], fields: Mapping[str, Any], label: str = "section") -> dict[str, Any]:
    """`config` with every override applied, new kinds first; `config` itself stays. `fields`: {top-level name: its type}, a `label` each.

    Raises ConfigError for a path that leads nowhere."""
    result = dict(config or {})
    for override in sorted(map(parsed, overrides), key=lambda o: not o.changes_kind):
        name, rest = override.names[0], override.names[1:]
        if name not in fields and name not in result:
            raise unknown(f"override {override.path}", label, name, {**fields, **result})
        result[name] = _replaced(result.get(name), fields.get(name, Any), rest, override)
    return result


def within(config: Any, hint: Any, overrides: Sequence[str]) -> Any:
    """The same for one thing of a type: the paths begin at its fields."""
    for override in sorted(map(parsed, overrides), key=lambda o: not o.changes_kind):
        config = _replaced(config, hint, override.names, override)
    return config


def parsed(text: str) -> Override:
    """An override from `path=value`."""
    if not isinstance(text, str):
        raise ConfigError(f"override {excerpt(repr(text))}: write it as a text, path=value.")
    path, sign, value = text.partition("=")
    names = tuple(re.sub(r"\[(-?\d+)\]", r".\1", path.strip()).split("."))
    if not sign or not all(names):
        raise ConfigError(f"override '{text}': write it as path=value.")
    return Override(path=path.strip(), names=names, value=yaml_files.parse_value(value, f"override '{text}'"))


def _replaced(node: Any, hint: Any, names: tuple[str, ...], override: Override) -> Any:
    """`node`, which the type `hint` is built from, with what `names` lead to replaced by the value of the override."""
    node = _opened(node, hint) if names or isinstance(override.value, Mapping) else node
    if not names:
        return _merged(node, override.value, hint)
    if isinstance(node, Mapping):
        if names == ("kind",) and node.get("kind") != override.value:
            node = _without_options(node, hint)
        key, rest = _key(node, hint, names, override)
        return {**node, key: _replaced(node.get(key), _entry_hint(hint, node, key), rest, override)}
    if isinstance(node, list):
        index = _index(node, names[0], override)
        return [*node[:index], _replaced(node[index], _item_hint(hint), names[1:], override), *node[index + 1 :]]
    raise ConfigError(f"override {override.path}: '{names[0]}' is below {node!r}, which has no named parts.")


def _opened(node: Any, hint: Any) -> Any:
    """A bare kind as a mapping, and nothing as an empty one, so that it can have parts."""
    if isinstance(node, str) and any(option in GROUP_OF for option in options(hint)):
        return {"kind": node}
    if node is None:
        return [] if _is_list(hint) else {}
    return node


def _merged(old: Any, new: Any, hint: Any) -> Any:
    """A mapping is merged into the mapping in its place; anything else replaces it."""
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return new
    if "kind" in new and old.get("kind", new["kind"]) != new["kind"]:
        old = _without_options(old, hint)
    merged = {name: _merged(old[name], value, _entry_hint(hint, old, name)) if name in old else value for name, value in new.items()}
    return {**old, **merged}


def _without_options(node: Mapping[str, Any], hint: Any) -> dict[str, Any]:
    """A mapping without the options of its kind: fields of the base, which all kinds have, stay."""
    bases = [option for option in options(hint) if dataclasses.is_dataclass(option)]
    names = {"kind", *(field.name for base in bases for field in dataclasses.fields(base) if field.init)}
    return {name: value for name, value in node.items() if name in names}


def _key(node: Mapping[Any, Any], hint: Any, names: tuple[str, ...], override: Override) -> tuple[Any, tuple[str, ...]]:
    """(the key of the entry that `names` begin with, the names behind it); a key may have dots."""
    for number in range(1, len(names) + 1):
        for key in node:
            if str(key) == ".".join(names[:number]):
                return key, names[number:]
    prefix = ".".join(override.names[: len(override.names) - len(names)])
    fields, items = _fields(hint, node), _mapping_arguments(hint)
    if fields is not None and len(names) > 1 and names[0] not in fields:
        raise unknown(f"override {override.path}", f"field of {prefix}", names[0], fields)
    if items is not None and fields is None:
        key_hint, item = items
        if node and len(names) > 1 and any(map(_is_built, options(item))):
            raise unknown(f"override {override.path}", f"entry of {prefix}", names[0], map(str, node))
        if is_path(key_hint) and not any(map(_is_built, options(item))):
            return ".".join(names), ()
    return names[0], names[1:]


def _index(node: list[Any], name: str, override: Override) -> int:
    """The index of an entry of a list: a number, or the `name` or `kind` of one entry alone."""
    if name.lstrip("-").isdigit() and -len(node) <= int(name) < len(node):
        return int(name) % len(node)
    labels = [{entry} if isinstance(entry, str) else _labels(entry) for entry in node]
    places = [i for i, label in enumerate(labels) if name in label]
    if len(places) > 1:
        raise ConfigError(f"override {override.path}: entries {', '.join(map(str, places))} are all called '{name}'; give an index.")
    if not places:
        known = [*map(str, range(len(node))), *sorted({text for label in labels for text in label})]
        prefix = ".".join(override.names[: override.names.index(name)])
        raise unknown(f"override {override.path}", f"entry of {prefix}", name, known)
    return places[0]


def _labels(entry: Any) -> set[str]:
    names = [entry.get("name"), entry.get("kind")] if isinstance(entry, Mapping) else []
    return {name for name in names if isinstance(name, str) and name}


# ------------------------------------------------------------------------------------------------------------ types


def _is_built(option: Any) -> bool:
    return option in GROUP_OF or (isinstance(option, type) and dataclasses.is_dataclass(option))


def _fields(hint: Any, node: Mapping[str, Any]) -> dict[str, Any] | None:
    """{field: its type} of what a mapping describes; None where that is not known without an import."""
    fields: dict[str, Any] = {}
    for option in options(hint):
        if option in GROUP_OF:
            kind = node.get("kind")
            if kind not in plugins.kinds(GROUP_OF[option]):
                return None
            fields |= {"kind": str, **typing.get_type_hints(plugins.resolve(GROUP_OF[option], kind), include_extras=True)}
        elif _is_built(option):
            fields |= {"kind": str} if len(options(hint)) > 1 else {}
            fields |= typing.get_type_hints(option, include_extras=True)
    return {name: hint for name, hint in fields.items() if typing.get_origin(hint) is not typing.ClassVar} or None


def _entry_hint(hint: Any, node: Mapping[str, Any], name: str) -> Any:
    fields, items = _fields(hint, node), _mapping_arguments(hint)
    if fields is not None and name in fields:
        return fields[name]
    return items[1] if items is not None else Any


def _mapping_arguments(hint: Any) -> tuple[Any, Any] | None:
    """(type of the keys, type of the values) where a mapping of names is expected."""
    for option in options(hint):
        origin = typing.get_origin(option)
        if isinstance(origin, type) and issubclass(origin, Mapping):
            key, item = typing.get_args(option)
            return key, item
    return None


def _item_hint(hint: Any) -> Any:
    """The type of the entries of a list."""
    return next((typing.get_args(option)[0] for option in options(hint) if _is_list_type(option)), Any)


def _is_list(hint: Any) -> bool:
    present = [option for option in options(hint) if option is not type(None)]
    return bool(present) and all(map(_is_list_type, present))


def _is_list_type(option: Any) -> bool:
    origin = typing.get_origin(option)
    return isinstance(origin, type) and issubclass(origin, Sequence) and bool(typing.get_args(option))

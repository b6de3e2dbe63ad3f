"""References in the texts of a configuration, resolved after the overrides.

    ${args.seed}              the value at a path from the top; a text that is nothing but a reference becomes that value, whatever its type
    ${.radius} ${..radius}    the same, from the mapping that holds the text, or from the one above it
    ${oc.env:NAME}            an environment variable, a text
    ${oc.env:NAME,default}    the same, with what stands for one that is not set (null: nothing)
    \\${...}                   the characters ${...} as they are

The notation is OmegaConf's; its other functions are refused. A reference that leads back to itself is refused, and so is a configuration
that references make larger than MAX_SIZE.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

from advalign.errors import ConfigError, unknown

MAX_SIZE = 1_000_000
"""Characters and entries that references may add."""
MAX_CHAIN = 50
"""References that lead to references."""
ENVIRONMENT = "oc.env"
BEGIN = re.compile(r"(\\*)\$\{")

Keys = tuple[str | int, ...]


def resolve(values: Any, where: Callable[..., str] = lambda *keys: "configuration") -> Any:
    """`values` with its references resolved. `where(*keys)`: the file and line of an entry, for errors."""
    try:
        return _Resolver(values, where).at(())
    except RecursionError as error:
        raise ConfigError(f"{where()}: references and mappings are nested too deep to be resolved.") from error


class _Resolver:
    def __init__(self, values: Any, where: Callable[..., str]) -> None:
        self.values, self.where = values, where
        self.resolved: dict[Keys, Any] = {}
        self.open: list[Keys] = []
        self.chain: list[str] = []
        self.size = 0

    def at(self, keys: Keys) -> Any:
        """The resolved value of an entry."""
        if keys in self.resolved:
            return self.resolved[keys]
        if keys in self.open:
            raise self.error(self.open[-1], f"the references {' -> '.join([*self.chain, *self.chain[:1]])} lead in a circle")
        self.open.append(keys)
        value = self._entry(_look_up(self.values, keys), keys)
        self.open.pop()
        self.resolved[keys] = value
        return value

    def _entry(self, value: Any, keys: Keys) -> Any:
        if isinstance(value, dict):
            return {name: self.at((*keys, name)) for name in value}
        if isinstance(value, list):
            return [self.at((*keys, number)) for number in range(len(value))]
        return self._text(value, keys) if isinstance(value, str) and "${" in value else value

    def _text(self, text: str, keys: Keys) -> Any:
        """A text with its references replaced."""
        parts: list[Any] = []
        position = 0
        while match := BEGIN.search(text, position):
            slashes = len(match[1])
            parts.append(text[position : match.start()] + "\\" * (slashes // 2))
            if slashes % 2:
                parts.append("${")
                position = match.end()
                continue
            end = self._end(text, match.end(), keys)
            parts.append(_Value(self._reference(text[match.end() : end], keys)))
            position = end + 1
        parts = [part for part in [*parts, text[position:]] if part != ""]
        if len(parts) == 1 and isinstance(parts[0], _Value):
            return parts[0].value
        return "".join(self._as_text(part, keys) for part in parts)

    def _end(self, text: str, start: int, keys: Keys) -> int:
        """Where the reference that begins at `start` is closed."""
        depth = 1
        for position in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[position], 0)
            if depth == 0:
                return position
        raise self.error(keys, f"'{text[start - 2 : start + 38]}' is not closed with }}; write \\${{ for the characters themselves")

    def _as_text(self, part: Any, keys: Keys) -> str:
        value = part.value if isinstance(part, _Value) else part
        if isinstance(value, dict | list):
            raise self.error(keys, "a reference within a text leads to a mapping or a list; only a text that is nothing else may")
        return str(value)

    def _reference(self, inside: str, keys: Keys) -> Any:
        if len(self.chain) >= MAX_CHAIN:
            raise self.error(keys, f"more than {MAX_CHAIN} references lead to each other")
        self.chain.append(f"${{{inside}}}")
        name, colon, argument = inside.partition(":")
        value = self._function(name.strip(), argument, keys) if colon else self._target(str(self._text(inside, keys)).strip(), keys)
        self.chain.pop()
        self.size += _size(value, MAX_SIZE)
        if self.size > MAX_SIZE:
            raise self.error(keys, f"references make the configuration larger than {MAX_SIZE:,} characters and entries")
        return copy.deepcopy(value)

    def _function(self, name: str, argument: str, keys: Keys) -> Any:
        """${oc.env:NAME,default}"""
        if name != ENVIRONMENT:
            raise self.error(keys, f"no function '{name}' in a reference; known: {ENVIRONMENT} (${{{ENVIRONMENT}:NAME,default}})")
        variable, comma, default = argument.partition(",")
        variable = str(self._text(variable, keys)).strip()
        if variable in os.environ:
            return os.environ[variable]
        if not comma:
            write = f"export {variable}=..., or write a default: ${{{ENVIRONMENT}:{variable},default}}"
            raise self.error(keys, f"${{{ENVIRONMENT}:{variable}}} needs the environment variable {variable}, which is not set; {write}")
        default = default.strip()
        quoted = len(default) > 1 and default[0] == default[-1] and default[0] in "'\""
        value = self._text(default[1:-1] if quoted else default, keys)
        return None if value == "null" and not quoted else value

    def _target(self, path: str, keys: Keys) -> Any:
        """The value at a path."""
        dots = len(path) - len(path.lstrip("."))
        target = keys[: max(len(keys) - dots, 0)] if dots else ()
        names = re.sub(r"\[([^\]]*)\]", r".\1", path.lstrip(".")).split(".")
        for number, name in enumerate(names):
            container = _look_up(self.values, target)
            if isinstance(container, str) and "${" in container:  # a reference itself: the rest of the path is inside its value
                value = self.at(target)
                for inner in names[number:]:
                    value = value[self._key(value, inner, path, keys)]
                return value
            target = (*target, self._key(container, name, path, keys))
        return self.at(target)

    def _key(self, container: Any, name: str, path: str, keys: Keys) -> str | int:
        """The key of an entry of a container."""
        if isinstance(container, list) and name.isdigit() and int(name) < len(container):
            return int(name)
        if isinstance(container, dict) and name in container:
            return name
        known = container if isinstance(container, dict) else map(str, range(len(container))) if isinstance(container, list) else ()
        error = unknown(f"{self.where(*keys)}: {_dotted(keys)}: ${{{path}}}", "entry", name, known)
        hint = f" An environment variable is ${{{ENVIRONMENT}:{path}}}." if path.isidentifier() else ""
        raise ConfigError(f"{error}{hint}")

    def error(self, keys: Keys, sentence: str) -> ConfigError:
        return ConfigError(f"{self.where(*keys)}: {_dotted(keys)}: {sentence}.")


class _Value:
    """What a reference stands for, beside the texts around it."""

    def __init__(self, value: Any) -> None:
        self.value = value


def _dotted(keys: Keys) -> str:
    return ".".join(map(str, keys))


def _look_up(values: Any, keys: Sequence[str | int]) -> Any:
    for key in keys:
        values = values[key]
    return values


def _size(value: Any, most: int) -> int:
    """Characters and entries of a value, counted up to `most`."""
    waiting, total = [value], 0
    while waiting and total <= most:
        value = waiting.pop()
        total += 1 + (len(value) if isinstance(value, str) else 0)
        waiting += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return total

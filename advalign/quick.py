"""Annotations as quick tests: for values that are what their field asks for, which is nearly always, nothing more is run.

A test that fails says nothing yet: `checked.check` then converts the value, or refuses it in a sentence.
"""

from __future__ import annotations

import collections.abc
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from advalign.errors import ConfigError
from advalign.ranges import Range

Test = Callable[[Any], bool]


def test(annotation: Any) -> Test:
    """Whether a value is what an annotation says, unchanged."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any or annotation is object:
        return lambda value: True
    if annotation is None or annotation is type(None):
        return lambda value: value is None
    if annotation in (str, int, bool):
        return lambda value: type(value) is annotation
    if origin is Annotated:
        return _in_range(arguments)
    if origin in (typing.Union, types.UnionType):
        options = [test(option) for option in arguments]
        return lambda value: any(option(value) for option in options)
    if origin is tuple and arguments[-1:] == (...,):
        entry = test(arguments[0])
        return lambda value: type(value) is tuple and all(map(entry, value))
    if origin is collections.abc.Mapping and arguments[1] is Any:
        return lambda value: isinstance(value, Mapping) and all(type(key) is str for key in value)
    if origin is None and isinstance(annotation, type) and annotation is not float and _can_be_asked(annotation):
        return lambda value: isinstance(value, annotation)
    return lambda value: False


def _can_be_asked(kind: type) -> bool:
    """Whether `isinstance` works with a class; with a protocol that is not for run time it does not."""
    try:
        isinstance(None, kind)
    except TypeError:
        return False
    return True


def _in_range(arguments: tuple[Any, ...]) -> Test:
    ranges = [mark for mark in arguments[1:] if isinstance(mark, Range)]
    base: Test = (lambda value: type(value) is float) if arguments[0] is float else test(arguments[0])

    def holds(value: Any) -> bool:
        if not base(value):
            return False
        try:
            for declared in ranges:
                declared.check(value, "")
        except ConfigError:
            return False
        return True

    return holds


__all__ = ["Test", "test"]

"""Values against the annotations of their fields: types and ranges, in one sentence with the path.

One reading of annotations serves the builder, which also reads numbers that are written as text (YAML takes `1e-3` for a text), and
dataclasses that derive from `Checked`, which check themselves wherever they are made.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import inspect
import math
import numbers
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from advalign import quick
from advalign.errors import ConfigError, excerpt, unknown
from advalign.ranges import Range

Function = TypeVar("Function", bound=Callable[..., Any])
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
LISTS = (list, tuple, collections.abc.Sequence, set, frozenset, collections.abc.Set)
MAPPINGS = (dict, collections.abc.Mapping)


class WrongType(ConfigError):
    """A value whose type is not that of its field."""


def check(annotation: Any, value: Any, path: str, *, from_text: bool = False) -> Any:
    """`value`, if it is what the annotation says; lists become tuples and whole numbers floats where these are asked for.

    `from_text`: numbers that are written as text are read. Raises ConfigError, its path `path`.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        if _is_number(arguments[0]):
            value = _number(annotation, value, path, from_text)
        else:
            value = check(arguments[0], value, path, from_text=from_text)
        return in_range(annotation, value, path)
    if origin in (typing.Union, types.UnionType):
        return _one_of(arguments, value, path, from_text)
    if origin is Literal:
        if value not in arguments or isinstance(value, bool) != any(value is a for a in arguments if isinstance(a, bool)):
            raise unknown(path, "choice", str(value), map(str, arguments))
        return value
    if origin in LISTS:
        return _list(origin, arguments, value, path, from_text)
    if origin is collections.abc.Iterable and isinstance(value, str | bytes | Mapping):
        raise _wrong(annotation, value, path)
    if origin in MAPPINGS:
        if not isinstance(value, Mapping):
            raise _wrong(annotation, value, path)
        key, entry = arguments
        if entry is Any and all(isinstance(k, str) for k in value):
            return value
        keys = [str(k) if from_text and isinstance(k, int | float) else check(key, k, path) for k in value]
        return {k: check(entry, v, f"{path}.{k}", from_text=from_text) for k, v in zip(keys, value.values(), strict=True)}
    return _plain(annotation if origin is None else origin, value, path, from_text)


def in_range(annotation: Any, value: Any, path: str) -> Any:
    """`value`, if the ranges of an annotation have no objection; its type is not looked at."""
    if typing.get_origin(annotation) is Annotated:
        for entry in typing.get_args(annotation)[1:]:
            if isinstance(entry, Range):
                entry.check(value, path)
    return value


def words(annotation: Any) -> str:
    """What an annotation asks for, as in `a whole number`."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        ranged = [entry.words for entry in arguments[1:] if isinstance(entry, Range) and entry.words]
        return ranged[0] if ranged else words(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(words(option) for option in arguments))
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    simple = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "null", type(...): "..."}
    if annotation in simple:
        return simple[annotation]
    base = annotation if origin is None else origin
    if base in (*LISTS, collections.abc.Iterable):
        return f"a list{_each(arguments[:1])}"
    if base in MAPPINGS:
        return f"a mapping of names{_each(arguments[1:])}"
    if base is Any or base is object:
        return "any value"
    if base is collections.abc.Callable:
        return "a function"
    return f"{_article(base.__name__)} {base.__name__}"


def _each(arguments: tuple[Any, ...]) -> str:
    """What every entry of a list or mapping is, where that is not left open."""
    return f" ({words(arguments[0])} each)" if arguments and arguments[0] is not Any else ""


class Checked:
    """Base of dataclasses that check their fields, before their own `__post_init__`, wherever they are made.

    Lists become tuples and whole numbers floats, where the annotation asks for these. Raises ConfigError, its path the class and field.
    """

    _field_hints: ClassVar[Mapping[str, Any] | None] = None
    _field_tests: ClassVar[Mapping[str, Any] | None] = None
    _section: ClassVar[str] = ""

    def __init_subclass__(cls, *, section: str = "", **arguments: Any) -> None:
        """`section`: of a configuration, where instances of this class and of those derived from it are named."""
        super().__init_subclass__(**arguments)
        cls._field_hints, cls._field_tests, cls._section = None, None, section or cls._section
        if (after := cls.__dict__.get("__post_init__")) is not None:

            @functools.wraps(after)
            def __post_init__(self: Any) -> None:
                check_fields(self)
                after(self)

            cls.__post_init__ = __post_init__  # type: ignore[method-assign]

    def __post_init__(self) -> None:
        check_fields(self)


def arguments(prefix: str = "") -> Callable[[Function], Function]:
    """A decorator: the arguments of a public function are checked by their annotations. `prefix` stands before their names in errors."""

    def decorate(function: Function) -> Function:
        signature, hints = inspect.signature(function), functools.cache(lambda: typing.get_type_hints(function, include_extras=True))

        @functools.wraps(function)
        def call(*positional: Any, **named: Any) -> Any:
            bound = signature.bind(*positional, **named)
            for name, value in bound.arguments.items():
                if name in hints() and signature.parameters[name].kind not in VARIADIC:
                    bound.arguments[name] = check(hints()[name], value, f"{prefix}{name}")
            return function(*bound.args, **bound.kwargs)

        return typing.cast(Function, call)

    return decorate


def check_fields(instance: Any) -> None:
    """Every field of a dataclass against its annotation; what is converted is put back."""
    cls = type(instance)
    values = vars(instance)
    for field, (hint, holds) in _compiled(cls).items():
        value = values[field]
        if holds(value):
            continue
        checked = check(hint, value, f"{_path(cls)}.{field}")
        if checked is not value:
            object.__setattr__(instance, field, checked)


def _compiled(cls: type) -> Mapping[str, tuple[Any, Callable[[Any], bool]]]:
    """{field: (its annotation, its quick test)} of a dataclass, made once."""
    compiled = cls.__dict__.get("_field_tests")
    if compiled is None:
        compiled = {name: (hint, quick.test(hint)) for name, hint in fields(cls).items()}
        cls._field_tests = compiled  # type: ignore[attr-defined]
    return compiled


def _path(cls: type) -> str:
    """objectives.dapo for a plugin of this package, the section for others of its classes that have one, else the name of the class."""
    section = cls._section if issubclass(cls, Checked) else ""
    package, _, module = cls.__module__.rpartition(".")
    if not section or not package.startswith("advalign."):
        return cls.__name__
    return f"{section}.{module}" if package == f"advalign.{section}" else section


def fields(cls: type) -> Mapping[str, Any]:
    """{field that the constructor takes: its annotation}, of a dataclass."""
    hints = cls.__dict__.get("_field_hints")
    if hints is None:
        resolved = typing.get_type_hints(cls, include_extras=True)
        hints = {f.name: resolved[f.name] for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
        if issubclass(cls, Checked):
            cls._field_hints = hints
    return hints


def _one_of(options: tuple[Any, ...], value: Any, path: str, from_text: bool) -> Any:
    """What the first option says that takes a value of this type; where none does, all of them are named."""
    if value is None and type(None) in options:
        return None
    containers = [option for option in options if _holds(option, value)]
    if len(containers) == 1:  # its entries are named in what is wrong with them
        return check(containers[0], value, path, from_text=from_text)
    refused = None
    for reading in (False, True) if from_text else (False,):
        for option in options:
            try:
                return check(option, value, path, from_text=reading)
            except WrongType:
                continue
            except ConfigError as error:
                refused = refused or error
    several = len([option for option in options if option is not type(None)]) > 1
    raise refused if refused is not None and not several else _wrong(typing.Union[options], value, path)  # noqa: UP007


def _holds(option: Any, value: Any) -> bool:
    """Whether an annotation is a list or a mapping, and the value is one too."""
    origin = typing.get_origin(option)
    return (origin in LISTS and isinstance(value, list | tuple)) or (origin in MAPPINGS and isinstance(value, Mapping))


def _list(origin: Any, arguments: tuple[Any, ...], value: Any, path: str, from_text: bool) -> Any:
    """A list's entries, each by its annotation; what is no list or tuple, as rows of a data set, stays as it is."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, list | tuple | origin):
        raise WrongType(f"{path}: {shown(value)} given; a list is expected.")
    if origin in (set, frozenset, collections.abc.Set):
        return frozenset(check(arguments[0], entry, path, from_text=from_text) for entry in value)
    if not isinstance(value, list | tuple) or (arguments[0] is Any and origin is not tuple):
        return value
    if origin is tuple and arguments[-1:] != (...,):
        if len(value) != len(arguments):
            raise WrongType(f"{path}: {shown(value)} given; a list of {len(arguments)} is expected.")
        entries: list[Any] = list(arguments)
    else:
        entries = [arguments[0]] * len(value)
    checked = [check(e, v, f"{path}.{i}", from_text=from_text) for i, (e, v) in enumerate(zip(entries, value, strict=True))]
    return checked if origin is list else tuple(checked)


def _plain(kind: Any, value: Any, path: str, from_text: bool) -> Any:
    """A value of a type that holds no others."""
    if kind is Any or kind is object or isinstance(kind, typing.TypeVar):
        return value
    if _is_number(kind):
        value = _number(kind, value, path, from_text)
        if kind is float and not math.isfinite(value):
            raise ConfigError(f"{path}: {value} given; a finite number is expected.")
        return value
    if kind is collections.abc.Callable:
        kind = Callable
    try:
        right = isinstance(value, kind)
    except TypeError:  # a protocol that is not for run time
        return value
    if not right:
        raise _wrong(kind, value, path)
    return value


def _number(annotation: Any, value: Any, path: str, from_text: bool) -> Any:
    """A whole number or any other, before its range; from text also `1e-3` and, for whole numbers, `10.0`."""
    kind: type = typing.get_args(annotation)[0] if typing.get_origin(annotation) is Annotated else annotation
    if from_text and isinstance(value, str):
        value = _read(value)
    if from_text and kind is int and isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    abstract = numbers.Integral if kind is int else numbers.Real
    if isinstance(value, bool) or not isinstance(value, abstract):
        raise _wrong(annotation, value, path)
    try:
        return kind(value)
    except OverflowError:
        raise ConfigError(f"{path}: {shown(value)} given; a finite number is expected.") from None


def _is_number(annotation: Any) -> bool:
    return annotation is int or annotation is float


def _read(text: str) -> Any:
    """The number that a text is; the text where it is none."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _wrong(annotation: Any, value: Any, path: str) -> WrongType:
    return WrongType(f"{path}: {shown(value)} given; {words(annotation)} is expected.")


def shown(value: Any) -> str:
    """A value as it stands in a sentence."""
    return excerpt(repr(value))


def _article(name: str) -> str:
    return "an" if name[:1].lower() in "aeiou" else "a"

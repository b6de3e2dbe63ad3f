"""The one door for what a configuration names in Python: dotted kinds, functions (`fn:`) and folders of packages (`package:`).

Importing a module runs it, so a configuration is code. Under `held_back` nothing is imported; what was named is noted instead. A function
that a configuration names is a plain function from outside the standard library, whose arguments fit what it is handed.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advalign.errors import ConfigError, NotImported

ALSO_SEARCHED = (
    "It is looked for where packages are installed and beside the configuration; `python -m advalign` also looks in the current folder."
)
"""What an error about a missing module adds."""

_held_back: ContextVar[list[str] | None] = ContextVar("held_back", default=None)


@dataclass(frozen=True, kw_only=True)
class Handed:
    """What a function that a configuration names is called with."""

    arguments: str
    """As a sentence says it: `(prompt, response, example)`."""
    fits: Callable[[inspect.Signature], bool]
    """Whether a function with this signature can be called so."""
    may_be_async: bool = False
    """Whether what it returns is awaited."""


@contextmanager
def held_back(active: bool = True) -> Iterator[list[str]]:
    """If `active`, nothing that a configuration names is imported; the list fills with what would have been."""
    names: list[str] = []
    token = _held_back.set(names if active else None)
    try:
        yield names
    finally:
        _held_back.reset(token)


def search_beside(file: str | Path) -> None:
    """From now on, modules are also found in the folder of a configuration, behind everything that is installed."""
    folder = str(Path(file).resolve().parent)
    if _held_back.get() is None and folder not in sys.path:
        sys.path.append(folder)


def module(name: str, path: str, reference: str) -> types.ModuleType | None:
    """The module of this name; None: there is none. Raises ConfigError, its path `path`, for one that cannot be imported."""
    if not all(part.isidentifier() for part in name.split(".")):
        raise ConfigError(f"{path}: '{reference}' given; a dotted path of names is expected, such as my_lab.rewards.brevity.")
    if name.partition(".")[0] in sys.stdlib_module_names:
        raise ConfigError(f"{path}: '{reference}' is of Python's standard library; name a module of your own, such as my_lab.rewards.")
    names = _held_back.get()
    if names is not None and name not in sys.modules and name.partition(".")[0] != "advalign":
        names.append(reference)
        raise NotImported(f"{path}: '{reference}' would be imported, which runs its module; --allow-imports does it.")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            return None
        raise _failed(path, name, error) from error
    except (Exception, SystemExit) as error:  # a module may raise anything while it runs
        raise _failed(path, name, error) from error


def function(reference: str, path: str, handed: Handed) -> Callable[..., Any]:
    """The function behind a dotted path, which is one that can be called with what is `handed`. Raises ConfigError."""
    name, _, attribute = reference.rpartition(".")
    owner = module(name, path, reference)
    if owner is None:
        raise ConfigError(f"{path}: cannot import '{reference}' (no module named '{name}'). {ALSO_SEARCHED}")
    try:
        value = getattr(owner, attribute)
    except AttributeError as error:
        names = [key for key, entry in vars(owner).items() if callable(entry)]
        nearest = difflib.get_close_matches(attribute, names, n=1)
        hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
        raise ConfigError(f"{path}: cannot import '{reference}' (module '{name}' has no '{attribute}').{hint}") from error
    problem = _problem(value, handed)
    if problem:
        raise ConfigError(f"{path}: '{reference}' is {problem}; a plain Python function of {handed.arguments} is expected.")
    return value  # type: ignore[no-any-return]


def check_function(reference: Any, path: str, handed: Handed) -> None:
    """The same, before anything is loaded; a callable that Python handed over passes. Under `held_back` it is noted."""
    if callable(reference):
        return
    if not isinstance(reference, str):
        raise ConfigError(f"{path}: {reference!r} is neither a function nor a dotted path such as my_lab.rewards.brevity.")
    names = _held_back.get()
    if names is None:
        function(reference, path, handed)
    else:
        names.append(reference)


def binds(signature: inspect.Signature, number: int, names: Iterable[str] = ()) -> bool:
    """Whether a call with so many arguments by place and these by name fits."""
    try:
        signature.bind(*[None] * number, **dict.fromkeys(names))
    except TypeError:
        return False
    return True


def package_folder(name: str, path: str) -> Path | None:
    """The folder of an installed package or of one in it, which is not imported; None: there is none."""
    top, *rest = name.split(".")
    if not all(part.isidentifier() for part in (top, *rest)):
        raise ConfigError(f"{path}: 'package:{name}' given; the name of a package is expected.")
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # a module without a specification, such as __main__
        spec = None
    places = [Path(place) for place in (spec.submodule_search_locations or ())] if spec is not None else []
    if spec is not None and spec.origin is not None and not places:
        places = [Path(spec.origin).parent]
    folders = [place.joinpath(*rest) for place in places]
    return next((folder for folder in folders if folder.is_dir()), None)


def _problem(value: Any, handed: Handed) -> str:
    """What keeps a value from being a function that can be called with what is handed over; empty: nothing."""
    if not isinstance(value, types.FunctionType):
        kinds = {type: "a class", types.ModuleType: "a module", types.BuiltinFunctionType: "a built-in function"}
        return next((text for kind, text in kinds.items() if isinstance(value, kind)), f"a {type(value).__name__}")
    if value.__name__ == "<lambda>":
        return "a lambda"
    home = value.__module__.partition(".")[0]
    if home in sys.stdlib_module_names:
        return f"a function of Python's standard library ({value.__module__}.{value.__name__})"
    if inspect.isasyncgenfunction(value) or (inspect.iscoroutinefunction(value) and not handed.may_be_async):
        return "an async function"
    signature = inspect.signature(value)
    return "" if handed.fits(signature) else f"a function of {str(signature).partition(' -> ')[0]}"


def _failed(path: str, name: str, error: BaseException) -> ConfigError:
    text = " ".join(str(error).split())
    return ConfigError(f"{path}: importing '{name}' failed with {type(error).__name__}: {text}.")


__all__ = ["ALSO_SEARCHED", "Handed", "binds", "check_function", "function", "held_back", "module", "package_folder", "search_beside"]

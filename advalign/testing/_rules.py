"""How a broken rule is reported, and the rules that hold for every plugin."""

from __future__ import annotations

import copy
import dataclasses
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from advalign.errors import AdvalignError
from advalign.plugins import lacks_decorator
from advalign.types import Rows


class BrokenRule(AssertionError):
    """A rule of an extension point that a plugin breaks."""


def require(holds: bool, plugin: object, sentence: str) -> None:
    """Raises BrokenRule "<class>: <sentence>" unless the rule holds."""
    if not holds:
        raise BrokenRule(f"{type(plugin).__name__}: {sentence}")


@contextmanager
def explained(plugin: object, sentence: str) -> Iterator[None]:
    """An exception of the plugin's own code becomes a broken rule with a sentence; errors of this library pass."""
    try:
        yield
    except (AdvalignError, BrokenRule):
        raise
    except Exception as error:
        raise BrokenRule(f"{type(plugin).__name__}: {sentence} ({type(error).__name__}: {error})") from error


def is_plugin(plugin: object, base: type, group: str) -> None:
    """Derives from the abstract base of its group, and is a frozen dataclass built by keyword."""
    require(isinstance(plugin, base), plugin, f"it does not derive from advalign.interfaces.{base.__name__}, the base of all {group}.")
    cls: Any = type(plugin)
    frozen = bool(dataclasses.is_dataclass(plugin)) and cls.__dataclass_params__.frozen
    decorated = bool(frozen) and not lacks_decorator(cls)
    require(decorated, plugin, f"{cls.__name__} is not decorated with @dataclass(frozen=True, kw_only=True); its fields are its options.")
    by_position = [f.name for f in dataclasses.fields(cls) if f.init and not f.kw_only]
    require(not by_position, plugin, f"field '{(by_position or [''])[0]}' can be given by position; use @dataclass(kw_only=True).")


def seed_global_generators(seed: int) -> None:
    """Two runs under different global seeds agree only where a plugin draws from the generators it is given."""
    random.seed(seed)
    torch.manual_seed(seed)


def snapshot(value: Any) -> Any:
    """A copy to compare with later."""
    return copy.deepcopy(value)


def same(first: Any, second: Any) -> bool:
    """Equality of nested containers with tensors in them, nan equal to nan; functions and other objects are not compared."""
    if isinstance(first, Tensor) or isinstance(second, Tensor):
        return (
            isinstance(first, Tensor)
            and isinstance(second, Tensor)
            and first.shape == second.shape
            and first.dtype == second.dtype
            and torch.equal(first.nan_to_num(nan=1e300), second.nan_to_num(nan=1e300))
        )
    if dataclasses.is_dataclass(first) and not isinstance(first, type):
        names = [f.name for f in dataclasses.fields(first)]
        return type(first) is type(second) and all(same(getattr(first, name), getattr(second, name)) for name in names)
    if isinstance(first, dict):
        return isinstance(second, dict) and first.keys() == second.keys() and all(same(x, second[name]) for name, x in first.items())
    if isinstance(first, list | tuple):
        return isinstance(second, list | tuple) and len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, str | int | bool | None):
        return bool(first == second)
    if isinstance(first, float):
        return isinstance(second, float) and (first == second or (first != first and second != second))
    return True


def floats(rows: Rows, dtype: torch.dtype) -> Any:
    """Every floating-point column of the rows in another precision."""
    columns = {f.name: getattr(rows, f.name) for f in dataclasses.fields(rows)}  # type: ignore[arg-type]
    moved = {name: x.to(dtype) for name, x in columns.items() if isinstance(x, Tensor) and x.is_floating_point()}
    return dataclasses.replace(rows, **moved)  # type: ignore[type-var]

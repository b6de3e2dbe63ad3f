"""Labels as class indices: whole numbers, or names of classes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from advalign.errors import ConfigError, unknown


def as_integer(value: Any) -> int | None:
    """The whole number that a value is or spells; None: it is none."""
    if isinstance(value, list | tuple):
        return None
    try:
        number = int(value)
        return number if number == float(value) else None
    except (TypeError, ValueError, OverflowError):
        return None


def names_of(values: Iterable[Any]) -> tuple[str, ...]:
    """The class names of a column, sorted; empty where no value is a name."""
    names = {value for value in values if isinstance(value, str) and value.strip() and not _is_number(value)}
    return tuple(sorted(names))


def class_index(value: Any, names: Sequence[str], location: str) -> int:
    """The index of a label among `names` (empty: classes have no names). Raises ConfigError with the row and the value."""
    if value is None or (isinstance(value, str) and not value.strip()):
        raise ConfigError(f"{location} has no label; name its column with columns: {{label: ...}}.")
    if isinstance(value, list | tuple):
        raise ConfigError(f"{location} has the labels {list(value)}; a classifier here has one label per text.")
    if isinstance(value, str) and value in names:
        return names.index(value)
    index = as_integer(value)
    if index is None and isinstance(value, str) and not _is_number(value):
        same = [i for i, name in enumerate(names) if name.casefold() == value.strip().casefold()]
        if len(same) == 1:
            return same[0]
        raise unknown(location, "class", value, names)
    if index is None or index < 0 or (names and index >= len(names)):
        classes = f"a class index from 0 to {len(names) - 1}, or one of {', '.join(names)}" if names else "a class index (0, 1, 2, ...)"
        raise ConfigError(f"{location} has label {value}, which is not {classes}.")
    return index


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

"""Labels as class indices: whole numbers, or names of classes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from advalign.errors import ConfigError, unknown


@dataclass(frozen=True, kw_only=True)
class Classes:
    """How the labels of a column become class indices."""

    names: tuple[str, ...] = ()
    """Names of the classes, by index; empty: they have none."""
    declared: tuple[str, ...] = ()
    """Names that the data gives its own indices (ClassLabel), where they are not `names`; indices of the data are looked up by name."""
    only_names: bool = False
    """The names are the texts of the column itself, so a number in it is not a class."""
    number: int | None = None
    """How many classes the model has; 0: not known, but it has no names. None: there is no model yet, and the data says how many."""

    def index(self, value: Any, location: str) -> int:
        """The class index of a label. Raises ConfigError with the row and the value."""
        if self.declared and not isinstance(value, str):
            value = self.declared[class_index(value, self.declared, location)]
        if self.only_names and not is_text(value) and not is_missing(value):
            raise ConfigError(f"{location} has label {value}, and the column's other labels are names ({', '.join(self.names)}).")
        names = self.names or tuple(f"LABEL_{i}" for i in range(self.number or 0))
        if self.number is not None:
            self._require_class(value, names, location)
        return class_index(value, names if self.names or isinstance(value, str) else (), location)

    def _require_class(self, value: Any, names: Sequence[str], location: str) -> None:
        """Raises ConfigError for a label that is not a class of the model, whose classes have these names."""
        assert self.number is not None
        index = as_integer(value)
        if is_text(value) and value.strip().casefold() not in map(str.casefold, names):
            called = ", ".join(names) or "nothing"
            raise ConfigError(
                f"{location} has the label '{value}', and the model's classes are called {called}; give those names, or class indices."
            )
        if index is not None and 0 < self.number <= index and value not in names:
            raise ConfigError(f"{location} has label {value}, and the model knows {self.number} classes, 0 to {self.number - 1}.")


def classes_of(
    column: str, values: Iterable[Any], *, declared: Sequence[str], class_names: Sequence[str], number: int | None, path: str
) -> Classes:
    """The classes of a column of the data at `path`: those of the model (`class_names`) where they have names, else `declared`, else,
    before there is a model (`number` None), the texts in the column, sorted.

    Raises ConfigError where a class of the data has no name among the model's."""
    if class_names and declared:
        names = [name.casefold() for name in class_names]
        absent = [name for name in declared if name.casefold() not in names]
        if absent:
            raise ConfigError(
                f"{path}: column '{column}' names its classes {', '.join(declared)}, and the model's are {', '.join(class_names)}, without "
                f"'{absent[0]}'; rename the classes of one of them."
            )
        return Classes(names=tuple(class_names), declared=tuple(declared), number=number)
    if class_names or declared or number is not None:
        return Classes(names=tuple(class_names or declared), number=number)
    names_in_column = names_of(values)
    return Classes(names=names_in_column, only_names=bool(names_in_column))


def as_integer(value: Any) -> int | None:
    """The whole number that a value is or spells; None: it is none."""
    if isinstance(value, list | tuple):
        return None
    try:
        number = float(value)
        return int(number) if number.is_integer() else None
    except (TypeError, ValueError, OverflowError):
        return None


def names_of(values: Iterable[Any]) -> tuple[str, ...]:
    """The class names of a column, sorted; empty where no value is a name."""
    names = {value for value in values if is_text(value)}
    return tuple(sorted(names))


def is_missing(value: Any) -> bool:
    """Whether there is no label."""
    return value is None or (isinstance(value, str) and not value.strip())


def is_text(value: Any) -> bool:
    """Whether a label is a name, and not a number or missing."""
    return isinstance(value, str) and not is_missing(value) and not _is_number(value)


def class_index(value: Any, names: Sequence[str], location: str) -> int:
    """The index of a label among `names` (empty: classes have no names). Raises ConfigError with the row and the value."""
    if is_missing(value):
        raise ConfigError(f"{location} has no label; name its column with columns: {{label: ...}}.")
    if isinstance(value, list | tuple):
        raise ConfigError(f"{location} has the labels {list(value)}; a classifier here has one label per text.")
    if isinstance(value, str) and value in names:
        return names.index(value)
    index = as_integer(value)
    if is_text(value):
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

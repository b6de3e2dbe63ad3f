"""The data of a suite."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from advalign.targets.examples import with_ids
from advalign.types import Example

Data = str | Mapping[str, Any] | Sequence[Any]
"""Examples, mappings of their fields, or a reference to a data set (see `advalign.data`)."""


def read_examples(data: Data, read: Callable[..., Sequence[Example]], *, seed: int) -> list[Example]:
    """The examples, each with an id; `read` resolves a reference to its test split."""
    rows: Sequence[Any] = read(data, split="test", seed=seed) if isinstance(data, str | Mapping) else data
    return with_ids([Example(**row) if isinstance(row, Mapping) else row for row in rows])


__all__ = ["Data", "read_examples"]

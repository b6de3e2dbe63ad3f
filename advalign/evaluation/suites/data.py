"""The data of a suite."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from advalign.ranges import Words
from advalign.targets.examples import with_ids
from advalign.types import Conversation, Example

Data = Words | Mapping[str, Any] | Sequence[Any]
"""Examples, mappings of their fields, or a reference to a data set (see `advalign.data`)."""


FIELDS = {field.name for field in fields(Example)}


def read_examples(data: Data, read: Callable[..., Sequence[Example]], *, seed: int) -> list[Example]:
    """The examples, each with an id; `read` resolves a reference to its test split, and rows of a data set."""
    rows: Sequence[Any] = () if isinstance(data, str | Mapping) else data
    if rows and all(_is_example(row) for row in rows):
        return with_ids([row if isinstance(row, Example) else Example.from_mapping(row) for row in rows])
    return with_ids(read(data, split="test", seed=seed))


def _is_example(row: Any) -> bool:
    """Whether it is an example or a mapping of the fields of one; else it is a row of a data set, with columns of its own."""
    if isinstance(row, Example):
        return True
    return isinstance(row, Mapping) and set(row) <= FIELDS and isinstance(row.get("prompt"), str | Conversation)


__all__ = ["Data", "read_examples"]

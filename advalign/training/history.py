"""The log of a run as `Trainer.train` returns it: one mapping per step, held in a file, so that a long run needs no more memory."""

from __future__ import annotations

import json
import tempfile
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

IN_MEMORY = 2**20
"""Bytes that are held in memory; a longer log is in a file without a name, which ends with the object."""


class History(Sequence[dict[str, Any]]):
    """The steps of one call of `Trainer.train`, read when they are asked for. Numbers are exact, nan and infinite ones included."""

    def __init__(self, folder: Path | None = None) -> None:
        """`folder`: that of the file; None: the system's folder for such files."""
        self._file = tempfile.SpooledTemporaryFile(IN_MEMORY, dir=None if folder is None else str(folder))  # noqa: SIM115
        self._starts = array("Q")

    def append(self, entry: Mapping[str, Any]) -> None:
        """Adds a step."""
        self._starts.append(self._file.seek(0, 2))
        self._file.write(json.dumps(entry, default=float).encode() + b"\n")

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self._read(start) for start in self._starts[index]]
        return self._read(self._starts[index])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self._read(start) for start in self._starts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and not isinstance(other, str) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def _read(self, start: int) -> dict[str, Any]:
        self._file.seek(start)
        entry: dict[str, Any] = json.loads(self._file.readline())
        return entry


__all__ = ["History"]

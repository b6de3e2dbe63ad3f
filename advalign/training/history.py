"""The log of a run as `Trainer.train` returns it: one mapping per step, held in a file, so that a long run needs no more memory."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import tempfile
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

IN_MEMORY = 2**16
"""Bytes that are held in memory; a longer log is in a file without a name, which ends with the object."""


class History(Sequence[dict[str, Any]]):
    """The steps of one call of `Trainer.train`, read when they are asked for. Numbers are exact, nan and infinite ones included."""

    def __init__(self, folder: Path | None = None) -> None:
        """`folder`: that of the file; None: the system's folder for such files."""
        self._folder = folder
        self._file: Any = io.BytesIO()
        self._size = 0
        self._starts = array("Q")

    def append(self, entry: Mapping[str, Any]) -> None:
        """Adds a step. What does not fit on a disk stays in memory."""
        line = json.dumps(entry, default=float).encode() + b"\n"
        if self._size <= IN_MEMORY < self._size + len(line):
            with contextlib.suppress(OSError):
                self._move(tempfile.TemporaryFile(dir=self._folder, buffering=0))  # noqa: SIM115
        try:
            self._write(line)
        except OSError:
            self._move(io.BytesIO())
            self._write(line)
        self._starts.append(self._size)
        self._size += len(line)

    def _write(self, content: bytes) -> None:
        self._file.seek(self._size)
        if self._file.write(content) != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _move(self, target: Any) -> None:
        """Everything so far into another file, which takes the place of this one if it can hold it."""
        self._file.seek(0)
        content = self._file.read(self._size)
        if target.write(content) == len(content):
            self._file = target

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        chosen = range(len(self))[index]
        return [self._read(i) for i in chosen] if isinstance(chosen, range) else self._read(chosen)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self._read(i) for i in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and not isinstance(other, str) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def _read(self, index: int) -> dict[str, Any]:
        start, *following = self._starts[index : index + 2]
        self._file.seek(start)
        entry: dict[str, Any] = json.loads(self._file.read((following or [self._size])[0] - start))
        return entry


__all__ = ["History"]

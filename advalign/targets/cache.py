"""Answers of a classifier, kept on disk by text, so that a second attack or a second run does not ask again."""

import hashlib
import os
import sqlite3
import struct
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

Row = tuple[str, str]


class AnswerCache:
    """{(model, text, second text): logits} in one SQLite file. `mark`: the fingerprint of the model (weights, tokenizer): answers of
    another model are never served. Logits are stored as float32, which is what a target returns. Safe for several processes."""

    def __init__(self, path: str | Path, mark: str) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self.path, self.mark = str(path), mark
        self._connection: sqlite3.Connection | None = None
        self._owner = 0
        self._open().execute("CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, logits BLOB NOT NULL) WITHOUT ROWID")

    def get(self, rows: Sequence[Row]) -> dict[Row, Float[Tensor, "C"]]:
        """Those that are known."""
        keys = {self._key(row): row for row in rows}
        found: dict[Row, Tensor] = {}
        asked = list(keys)
        for start in range(0, len(asked), 500):
            part = asked[start : start + 500]
            marks = ",".join("?" * len(part))
            for key, logits in self._open().execute(f"SELECT key, logits FROM answers WHERE key IN ({marks})", part):
                found[keys[key]] = torch.tensor(struct.unpack(f"<{len(logits) // 4}f", logits))
        return found

    def put(self, rows: Sequence[Row], logits: Float[Tensor, "B C"]) -> dict[Row, Float[Tensor, "C"]]:
        """Keeps them, and returns them as they will be served."""
        values = logits.detach().float().cpu()
        lines = [(self._key(row), struct.pack(f"<{len(x)}f", *x)) for row, x in zip(rows, values.tolist(), strict=True)]
        with self._open() as connection:
            connection.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?)", lines)
        return dict(zip(rows, values, strict=True))

    def __len__(self) -> int:
        return int(self._open().execute("SELECT COUNT(*) FROM answers").fetchone()[0])

    def __getstate__(self) -> dict[str, str]:
        return {"path": self.path, "mark": self.mark}  # a connection belongs to its process

    def __setstate__(self, state: dict[str, str]) -> None:
        self.path, self.mark, self._connection, self._owner = state["path"], state["mark"], None, 0

    def _open(self) -> sqlite3.Connection:
        if self._connection is None or self._owner != os.getpid():  # a forked process opens its own
            self._connection, self._owner = sqlite3.connect(self.path, timeout=60.0), os.getpid()
        return self._connection

    def _key(self, row: Row) -> bytes:
        return hashlib.sha256("\0".join([self.mark, *row]).encode()).digest()


__all__ = ["AnswerCache"]

"""Answers of a classifier, kept on disk by text, so that a second attack or a second run does not ask again."""

import hashlib
import json
import os
import sqlite3
import struct
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from advalign.errors import ConfigError
from advalign.types import Conversation, Prompt
from advalign.types.messages import to_plain

Row = tuple[Prompt, str | None]
"""A text or a conversation, and its second sentence, if it has one."""


class AnswerCache:
    """{(model, text, second text): logits} in one SQLite file, safe for several processes.

    Logits are stored as float32, which is what a target returns.
    """

    def __init__(self, path: str | Path, fingerprint: str) -> None:
        """`fingerprint`: of the model (weights, tokenizer); answers of another model are never served."""
        self.path, self.fingerprint = str(path), fingerprint
        self._connection: sqlite3.Connection | None = None
        self._owner = 0
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._open().execute("CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, logits BLOB NOT NULL) WITHOUT ROWID")
        except (OSError, sqlite3.Error) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise ConfigError(f"cache: {path} cannot be used ({reason}); give a new file, or one that an evaluation wrote.") from error

    def get(self, rows: Sequence[Row]) -> dict[Row, Float[Tensor, "C"]]:
        """The logits of those rows that are stored."""
        row_of = {self._key(row): row for row in rows}
        logits_of: dict[Row, Tensor] = {}
        keys = list(row_of)
        for start in range(0, len(keys), 500):
            part = keys[start : start + 500]
            marks = ",".join("?" * len(part))
            for key, logits in self._open().execute(f"SELECT key, logits FROM answers WHERE key IN ({marks})", part):
                logits_of[row_of[key]] = torch.tensor(struct.unpack(f"<{len(logits) // 4}f", logits))
        return logits_of

    def put(self, rows: Sequence[Row], logits: Float[Tensor, "B C"]) -> dict[Row, Float[Tensor, "C"]]:
        """Stores them, and returns them as they will be served."""
        values = logits.detach().float().cpu()
        entries = [(self._key(row), struct.pack(f"<{len(x)}f", *x)) for row, x in zip(rows, values.tolist(), strict=True)]
        with self._open() as connection:
            connection.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?)", entries)
        return dict(zip(rows, values, strict=True))

    def __len__(self) -> int:
        return int(self._open().execute("SELECT COUNT(*) FROM answers").fetchone()[0])

    def __getstate__(self) -> dict[str, str]:
        return {"path": self.path, "fingerprint": self.fingerprint}  # a connection belongs to its process

    def __setstate__(self, state: dict[str, str]) -> None:
        self.path, self.fingerprint, self._connection, self._owner = state["path"], state["fingerprint"], None, 0

    def _open(self) -> sqlite3.Connection:
        if self._connection is None or self._owner != os.getpid():  # a forked process opens its own
            self._connection, self._owner = sqlite3.connect(self.path, timeout=60.0), os.getpid()
        return self._connection

    def _key(self, row: Row) -> bytes:
        text, pair = row
        if isinstance(text, Conversation):
            text = "\0".join(["conversation", json.dumps(to_plain(text), default=str)])
        key = "\0".join([self.fingerprint, text, *([] if pair is None else [pair])])
        return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


__all__ = ["AnswerCache", "Row"]

"""Answers of a classifier, kept on disk by text, so that a second attack or a second run does not ask again."""

import contextlib
import hashlib
import json
import os
import sqlite3
import struct
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from advalign.errors import ConfigError
from advalign.types import Conversation, Prompt
from advalign.types.messages import to_plain

Row = tuple[Prompt, str | None]
"""A text or a conversation, and its second sentence, if it has one."""
TABLE = "checked_answers"
"""Its rows carry a hash; those of `answers`, the table of earlier versions, do not and are left alone."""
NUM_HASHED = 16
"""Bytes of the hash behind the logits of a row."""
SECONDS = 60.0
"""How long a file that another process has locked is waited for."""


class AnswerCache:
    """{(model, text, second text): logits} in one SQLite file, safe for several processes.

    Logits are stored as float32, which is what a target returns, with a hash: a row that was damaged is asked again. Where the file cannot
    be read or written later on, the rest is asked and not kept, with a warning: answers are the same with and without a cache.
    """

    def __init__(self, path: str | Path, fingerprint: str) -> None:
        """`fingerprint`: of the model (weights, tokenizer); answers of another model are never served. Raises ConfigError for a file that
        is something else, or that cannot be opened."""
        self.path, self.fingerprint = str(path), fingerprint
        self._connection: sqlite3.Connection | None = None
        self._owner = 0
        self._is_broken = False
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            tables = {name for (name,) in self._open().execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if tables and not tables & {TABLE, "answers"}:
                raise ConfigError(f"cache: '{path}' is an SQLite database of something else; give another file.")
            self._open().execute(f"CREATE TABLE IF NOT EXISTS {TABLE} (key BLOB PRIMARY KEY, logits BLOB NOT NULL) WITHOUT ROWID")
        except (OSError, sqlite3.Error) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ConfigError(f"cache: {path} cannot be used ({reason}); give a new file, or one that an evaluation wrote.") from error

    def get(self, rows: Sequence[Row]) -> dict[Row, Float[Tensor, "C"]]:
        """The logits of those rows that are stored, and as they were stored."""
        row_of = {self._key(row): row for row in rows}
        logits_of: dict[Row, Tensor] = {}
        keys = list(row_of)
        for start in range(0, len(keys), 500):
            part = keys[start : start + 500]
            marks = ",".join("?" * len(part))
            stored: list[tuple[bytes, bytes]] = []
            with self._or_without():
                stored = self._open().execute(f"SELECT key, logits FROM {TABLE} WHERE key IN ({marks})", part).fetchall()
            for key, content in stored:
                logits = content[:-NUM_HASHED] if isinstance(content, bytes) else b""
                if logits and len(logits) % 4 == 0 and content == _hashed(key, logits):
                    logits_of[row_of[key]] = torch.tensor(struct.unpack(f"<{len(logits) // 4}f", logits))
        return logits_of

    def put(self, rows: Sequence[Row], logits: Float[Tensor, "B C"]) -> dict[Row, Float[Tensor, "C"]]:
        """Stores them, and returns them as they will be served."""
        values = logits.detach().float().cpu()
        keys = [self._key(row) for row in rows]
        entries = [(key, _hashed(key, struct.pack(f"<{len(x)}f", *x))) for key, x in zip(keys, values.tolist(), strict=True)]
        with self._or_without(), self._open() as connection:
            connection.executemany(f"INSERT OR REPLACE INTO {TABLE} VALUES (?, ?)", entries)
        return dict(zip(rows, values, strict=True))

    def __len__(self) -> int:
        return int(self._open().execute(f"SELECT COUNT(*) FROM {TABLE}").fetchone()[0])

    def __getstate__(self) -> dict[str, str]:
        return {"path": self.path, "fingerprint": self.fingerprint}  # a connection belongs to its process

    def __setstate__(self, state: dict[str, str]) -> None:
        self.path, self.fingerprint, self._connection, self._owner = state["path"], state["fingerprint"], None, 0
        self._is_broken = False

    @contextlib.contextmanager
    def _or_without(self) -> Iterator[None]:
        """What fails inside the block is left out, with one warning."""
        try:
            yield
        except sqlite3.Error as error:
            if not self._is_broken:
                warnings.warn(f"cache: '{self.path}' cannot be used ({error}); answers that it does not give are asked.", stacklevel=3)
            self._is_broken = True

    def _open(self) -> sqlite3.Connection:
        if self._connection is None or self._owner != os.getpid():  # a forked process opens its own
            self._connection, self._owner = sqlite3.connect(self.path, timeout=SECONDS), os.getpid()
        return self._connection

    def _key(self, row: Row) -> bytes:
        text, pair = row
        if isinstance(text, Conversation):
            text = "\0".join(["conversation", json.dumps(to_plain(text), default=str)])
        key = "\0".join([self.fingerprint, text, *([] if pair is None else [pair])])
        return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def _hashed(key: bytes, logits: bytes) -> bytes:
    """Logits with a hash of themselves and of their key behind them."""
    return logits + hashlib.sha256(key + logits).digest()[:NUM_HASHED]


__all__ = ["AnswerCache", "Row"]

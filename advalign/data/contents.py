"""What the first bytes of a file say of it, where that is something else than its name promises."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from advalign.errors import ConfigError

NUM_BYTES = 64
"""Read from the beginning of a file."""
BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a pointer of git-lfs instead of the file; fetch it (git lfs pull)"),
    (b"PK\x03\x04", "a zip archive; unpack it"),
    (b"\x1f\x8b", "compressed by gzip; add .gz to its name"),
    (b"BZh", "compressed by bzip2; unpack it"),
    (b"\xfd7zXZ", "compressed by xz; unpack it"),
    (b"(\xb5/\xfd", "compressed by zstd; unpack it"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it"),
    (b"PAR1", "a Parquet file; call it .parquet"),
    (b"ARROW1", "an Arrow file; call it .arrow"),
    (b"SQLite format 3", "an SQLite database; export its table"),
    (b"%PDF-", "a PDF document; extract its text"),
    (b"\xff\xfe", "text in UTF-16; save it as UTF-8"),
    (b"\xfe\xff", "text in UTF-16; save it as UTF-8"),
    *(
        (bytes([0x80, protocol]), "a pickle, which is not read, since reading runs code; save it as JSON or Parquet")
        for protocol in range(2, 6)
    ),
)
"""(beginning, what such a file is and what to do)"""
PAGES = (b"<!doctype html", b"<html")
OWN = {".parquet": b"PAR1", ".arrow": b"ARROW1"}
"""How files of these endings begin."""


def check_beginning(path: Path, kind: str) -> None:
    """Raises ConfigError for a file whose first bytes are not those of its `kind` (.jsonl, .parquet, ...), whatever its name is."""
    with path.open("rb") as file:
        begin = file.read(NUM_BYTES)
    if path.suffix == ".gz" and begin.startswith(b"\x1f\x8b"):
        with gzip.open(path) as unpacked:
            begin = unpacked.read(NUM_BYTES)
    reason = next((text for start, text in BEGINNINGS if begin.startswith(start) and start != OWN.get(kind)), None)
    if kind != ".txt" and begin.lstrip().lower().startswith(PAGES):
        reason = "a web page; download the file itself"
    if reason is not None:
        raise ConfigError(f"data: {path} is called {kind} and is {reason}.")


def undecodable_line(path: Path) -> str:
    """Where a file stops to be UTF-8, in words."""
    opener = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opener(path, "rb") as file:
            for line in file:
                number += 1
                line.decode("utf-8")
    except UnicodeDecodeError as error:
        return f"row {number}: byte 0x{error.object[error.start]:02x} in place {error.start + 1} of the line"
    except (OSError, EOFError, zlib.error):  # of a damaged archive
        return f"after row {number}"
    return f"row {number}"


__all__ = ["check_beginning", "undecodable_line"]

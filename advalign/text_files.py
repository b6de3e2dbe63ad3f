"""A text that people write, from a file: UTF-8, bounded, and one sentence for what is no such file."""

from __future__ import annotations

import difflib
from pathlib import Path

from advalign.errors import ConfigError

MAX_BYTES = 4 * 2**20
UTF16_AND_32 = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")


def read_text(path: Path) -> str:
    """The text of a file that people write: UTF-8, of at most MAX_BYTES."""
    try:
        if path.is_dir():
            raise ConfigError(f"{path}: this is a folder; give a file in it{_files_in(path)}.")
        if not path.exists():
            raise ConfigError(f"{path}: no such file.{_nearest_file(path)}")
        if not path.is_file():
            raise ConfigError(f"{path}: this is not a regular file; give a text file.")
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"{path}: the file cannot be read ({reason}).") from error
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{path}: more than {MAX_BYTES // 2**20} MiB; put rows into a data file and name it (data: {{path: ...}}).")
    return _decode(raw, path)


def _decode(raw: bytes, path: Path) -> str:
    if raw.startswith(UTF16_AND_32):
        raise ConfigError(f"{path}: the file is written in UTF-16 or UTF-32; save it as UTF-8.")
    if b"\0" in raw:
        line = raw.count(b"\n", 0, raw.index(b"\0")) + 1
        raise ConfigError(f"{path}, line {line}: a zero byte, so this is not text in UTF-8; save it as UTF-8.")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}, line {line}: byte 0x{raw[error.start]:02x} is not UTF-8; save the file as UTF-8.") from error


def _nearest_file(path: Path) -> str:
    names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    nearest = difflib.get_close_matches(path.name, names, n=1)
    return f" Did you mean '{path.parent / nearest[0]}'?" if nearest else ""


def _files_in(path: Path) -> str:
    names = sorted(p.name for p in path.iterdir() if p.suffix in (".yaml", ".yml"))
    return f": {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}" if names else ""

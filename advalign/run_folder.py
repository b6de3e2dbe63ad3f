"""The folder that a run or an evaluation writes to: one writer at a time, and names that stay inside it."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from advalign.errors import ConfigError

LOCK = ".lock"
"""Locked by the process that writes to the folder. The kernel releases it when that process ends, however it ends, so the file itself
may stay and blocks nobody."""
OWNER = ".lock-owner.json"
"""Which process holds the lock, for the sentence that refuses another one."""

MAX_NAME = 64
NAME = re.compile(rf"(?=.{{1,{MAX_NAME}}}\Z)[A-Za-z0-9_-]+(?:\.+[A-Za-z0-9_-]+)*")
DEVICES = {"con", "prn", "aux", "nul", "conin$", "conout$"} | {f"{device}{number}" for device in ("com", "lpt") for number in range(10)}
"""Names that Windows gives to devices, with whatever ending."""


@contextlib.contextmanager
def locked(folder: str | Path, path: str) -> Iterator[Path]:
    """The folder, created where there is none, with no second writer while the block runs. `path`: of the setting or option that names it.

    Raises ConfigError where another process, or this one, writes there already, and where nothing can be written.
    """
    folder = Path(folder)
    if "\0" in str(folder):
        raise ConfigError(f"{path}: {str(folder)!r} holds a NUL character; give a folder.")
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        (folder / OWNER).write_text(json.dumps({"pid": os.getpid(), "host": platform.node(), "since": _now()}), encoding="utf-8")
    except Timeout:
        raise ConfigError(
            f"{path}: {folder} is being written to by {_owner(folder)}; wait until it ends, stop it, or give another folder."
        ) from None
    except OSError as error:
        lock.release()
        raise unwritable(path, folder, error) from error
    try:
        yield folder
    finally:
        (folder / OWNER).unlink(missing_ok=True)
        lock.release()


def check_name(name: object, path: str) -> None:
    """Raises ConfigError for a name that is not safe as the name of a file on every system. `path`: of what is named."""
    if not isinstance(name, str) or not NAME.fullmatch(name) or name.partition(".")[0].lower() in DEVICES:
        shown = ascii(name)  # what looks like another letter is seen to be none
        raise ConfigError(
            f"{path}: {shown if len(shown) <= 80 else f'{shown[:80]}... ({len(str(name))} characters)'} given as a name, and files are "
            f"named after it; use 1 to {MAX_NAME} letters a-z, digits, _, - and dots inside, and no device of Windows (con, nul, com1)."
        )


def unwritable(path: str, folder: Path, error: OSError) -> ConfigError:
    """The sentence for a folder that cannot be created or written to."""
    file = next((p for p in (folder, *folder.parents) if os.path.isfile(p)), None)
    reason = f"{file} is a file" if file is not None else (error.strerror or type(error).__name__)
    return ConfigError(f"{path}: {folder} cannot be written to ({reason}); give a folder that can.")


def _owner(folder: Path) -> str:
    try:
        owner = json.loads((folder / OWNER).read_text(encoding="utf-8"))
        return f"process {owner['pid']} on {owner['host']}, since {owner['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has the lock, and has not written who it is
        return "another process"


def _now() -> str:
    return datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")


__all__ = ["LOCK", "OWNER", "check_name", "locked", "unwritable"]

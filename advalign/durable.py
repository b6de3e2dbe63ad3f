"""Folders that are whole or absent: written beside their name, flushed to the disk, described by a manifest and renamed when complete.

.partial-checkpoint-8/    being written          a kill or a full disk leaves it, and the next writer removes it
checkpoint-8/             complete               every file with its size and SHA-256 in manifest.json, which is written last
.replaced-policy/         the folder before      for as long as two renames take; put back if a kill comes between them
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from advalign.errors import StorageError

MANIFEST = "manifest.json"
PARTIAL = ".partial-"
REPLACED = ".replaced-"


@contextlib.contextmanager
def replacing(final: Path, path: str) -> Iterator[Path]:
    """An empty folder for the files of `final`, which takes their place once the block has written them.

    Raises StorageError where they cannot be written; `final` is then what it was, and the new folder is removed. `path`: of the setting.
    """
    with writing(final, path):
        partial = begin(final)
        try:
            yield partial
            complete(final)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


@contextlib.contextmanager
def writing(final: Path, path: str) -> Iterator[None]:
    """Errors of a disk inside the block as one sentence."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:  # torch raises a RuntimeError over the error of the file
        reason = _reason(error)
        if reason is None:
            raise
        raise StorageError(f"{path}: {final} could not be written ({reason}).") from error


def begin(final: Path) -> Path:
    """The empty folder in which `final` is put together."""
    partial = partial_of(final)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def partial_of(final: Path) -> Path:
    """The name of `final` while it is written."""
    return final.with_name(f"{PARTIAL}{final.name}")


def complete(final: Path) -> None:
    """Flushes what was put together to the disk and gives it its name."""
    partial = partial_of(final)
    for file in sorted(partial.rglob("*"), reverse=True):
        sync(file)
    sync(partial)
    replaced = final.with_name(f"{REPLACED}{final.name}")
    shutil.rmtree(replaced, ignore_errors=True)
    if final.exists():
        os.replace(final, replaced)
    os.replace(partial, final)
    sync(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def recover(folder: Path) -> None:
    """Removes what an interrupted writer has left in a folder. Only its one writer may call this."""
    for replaced in folder.glob(f"{REPLACED}*"):
        final = folder / replaced.name.removeprefix(REPLACED)
        if final.exists():
            shutil.rmtree(replaced)
        else:
            os.replace(replaced, final)
    for partial in folder.glob(f"{PARTIAL}*"):
        shutil.rmtree(partial) if partial.is_dir() else partial.unlink()


def reserve(file: Path, size: int, path: str) -> None:
    """Takes `size` bytes of the disk for a file, where the file system can do that at once. Raises StorageError where they are not free."""
    try:
        fallocate = ctypes.CDLL(None, use_errno=True).fallocate  # posix_fallocate writes to every block where it cannot
    except AttributeError:  # not Linux
        return
    with writing(file.parent, path), file.open("wb") as stream:
        if fallocate(stream.fileno(), 0, ctypes.c_int64(0), ctypes.c_int64(size)) == 0:
            return
    number = ctypes.get_errno()
    file.unlink(missing_ok=True)
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        raise StorageError(
            f"{path}: {file.parent} lacks the {size:,} bytes that will be written at the end ({os.strerror(number)}); make room, or give "
            "another folder."
        )


def sync(path: Path) -> None:
    """Returns when a file, or the list of files of a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------------------------------------------- manifests


def write_manifest(folder: Path) -> None:
    """manifest.json: the size and the SHA-256 of every file in a folder."""
    files = {str(file.relative_to(folder)): file for file in sorted(folder.rglob("*")) if file.is_file()}
    text = _manifest_text({name: {"size": file.stat().st_size, "sha256": sha256(file)} for name, file in files.items()})
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def first_damage(folder: Path, *, content: bool = True) -> str | None:
    """What is wrong with the first file that is not as the manifest has it; None: the folder is whole. Without `content`, sizes only."""
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
        files = {name: {key: entry[key] for key in ("size", "sha256")} for name, entry in json.loads(text)["files"].items()}
        if text != _manifest_text(files):
            return f"{MANIFEST} is damaged"
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return f"{MANIFEST} cannot be read"
    for name, saved in files.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != saved["size"]:
            return f"{name} has {file.stat().st_size:,} bytes and was written with {saved['size']:,}"
        if content and sha256(file) != saved["sha256"]:
            return f"the content of {name} is not what was written (its SHA-256 differs)"
    return None


def sha256(file: Path) -> str:
    """The digest of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _manifest_text(files: Mapping[str, Any]) -> str:
    """One text for one content, so that a change anywhere in the file is seen."""
    return json.dumps({"files": files}, indent=1, sort_keys=True) + "\n"


def _reason(error: BaseException | None) -> str | None:
    """What the system said of a write that failed; None: it was not about a file."""
    while error is not None:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is not None:  # of safetensors
            return os.strerror(int(number[1]))
        if isinstance(error, OSError):
            return error.strerror or type(error).__name__
        error = error.__cause__ or error.__context__
    return None

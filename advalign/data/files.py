"""Files as tables: rows with their location, and the class names that a file declares."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from advalign.errors import ConfigError, unknown

Located = tuple[str, dict[str, Any]]
"""(location, row): the location is the file and the number of the row, for errors."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """The rows of a data set."""

    rows: list[Located]
    """In file order."""
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """{column: names of its classes}, for columns of type ClassLabel."""


def read_file(path: Path, split: str) -> Table:
    """The table of a file, or of a folder that `datasets` saved."""
    if path.is_dir():
        return _read_saved(path, split)
    name = path.name.removesuffix(".gz")
    if name.endswith((".parquet", ".arrow")):
        return _read_columns(path, Path(name).suffix)
    kind = Path(name).suffix
    if kind not in READERS:
        known = [*(f"{s}{z}" for s in READERS for z in ("", ".gz")), ".parquet", ".arrow"]
        raise unknown(f"data: {path}", "reader for the ending", kind, known)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
        try:
            return Table(rows=list(READERS[kind](file, path)))
        except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, csv.Error) as error:
            raise ConfigError(f"data: {path} cannot be read as UTF-8 {kind} ({error}).") from error


def is_data(path: Path) -> bool:
    """Whether it is a file, or a folder that `datasets` saved."""
    return path.is_file() or any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json"))


def from_dataset(dataset: Any, name: str) -> Table:
    """The table of a `datasets.Dataset`, or of an iterable one."""
    rows = [(f"{name}, row {number}", dict(row)) for number, row in enumerate(dataset, 1)]
    return Table(rows=rows, class_names=_class_names(dataset.features))


def _class_names(features: Mapping[str, Any] | None) -> dict[str, tuple[str, ...]]:
    import datasets

    return {name: tuple(f.names) for name, f in (features or {}).items() if isinstance(f, datasets.ClassLabel)}


def _read_saved(path: Path, split: str) -> Table:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:
        raise ConfigError(f"data: {path} cannot be read by datasets.load_from_disk ({error}).") from error
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise unknown(f"data: {path}", "split", split, loaded)
        loaded = loaded[split]
    return from_dataset(loaded, str(path))


def _read_columns(path: Path, kind: str) -> Table:
    import datasets
    import pyarrow
    from pyarrow import parquet

    try:
        if kind == ".parquet":
            table = parquet.read_table(path)
        else:
            try:
                table = pyarrow.ipc.open_stream(pyarrow.memory_map(str(path))).read_all()
            except pyarrow.ArrowInvalid:
                table = pyarrow.ipc.open_file(pyarrow.memory_map(str(path))).read_all()
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ConfigError(f"data: {path} cannot be read as {kind} ({str(error).splitlines()[0]}).") from error
    rows = [(f"{path}, row {number}", row) for number, row in enumerate(table.to_pylist(), 1)]
    return Table(rows=rows, class_names=_class_names(datasets.Features.from_arrow_schema(table.schema)))


def _read_jsonl(file: Any, path: Path) -> Iterator[Located]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigError(f"data: {path}, row {number} is not JSON ({error}).") from error
        yield _object(row, path, number)


def _read_json(file: Any, path: Path) -> Iterator[Located]:
    try:
        rows = json.load(file)
    except json.JSONDecodeError as error:
        raise ConfigError(f"data: {path} is not JSON ({error}); one object per line is .jsonl.") from error
    if not isinstance(rows, list):
        raise ConfigError(f"data: {path} holds a {type(rows).__name__}, not a list of objects.")
    for number, row in enumerate(rows, 1):
        yield _object(row, path, number)


def _object(row: Any, path: Path, number: int) -> Located:
    if not isinstance(row, dict):
        raise ConfigError(f"data: {path}, row {number} is a {type(row).__name__}, not an object with named columns.")
    return f"{path}, row {number}", row


def _read_csv(file: Any, path: Path) -> Iterator[Located]:
    reader = csv.DictReader(file, delimiter="\t" if ".tsv" in path.suffixes else ",")
    for row in reader:
        location = f"{path}, row {reader.line_num}"
        if None in row or None in row.values():
            raise ConfigError(f"data: {location} does not have the {len(reader.fieldnames or ())} columns of the header.")
        yield location, dict(row)


def _read_txt(file: Any, path: Path) -> Iterator[Located]:
    for number, line in enumerate(file, 1):
        if line.strip():
            yield f"{path}, row {number}", {"text": line.rstrip("\r\n")}


Reader = Callable[[Any, Path], Iterable[Located]]
READERS: dict[str, Reader] = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv, ".tsv": _read_csv, ".txt": _read_txt}

"""Files as tables: rows with their location, and the class names that a file declares."""

from __future__ import annotations

import contextlib
import csv
import gzip
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from advalign.errors import ConfigError, unknown

Located = tuple[str, dict[str, Any]]
"""(location, row): the location is the file and the number of the row, for errors."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """The rows of a data set."""

    rows: Iterable[Located]
    """In file order; may be iterated again."""
    is_stream: bool = False
    """Rows are read as they are needed, and their number is not known."""
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """{column: names of its classes}, for columns of type ClassLabel."""


@dataclass(frozen=True)
class Rows:
    """Rows that are read whenever they are iterated."""

    read: Callable[[], Iterator[Located]]
    """Begins to read."""

    def __iter__(self) -> Iterator[Located]:
        return self.read()


def read_file(path: Path, split: str, *, streaming: bool = False) -> Table:
    """The table of a file, or of a folder that `datasets` saved."""
    if path.is_dir():
        return _read_saved(path, split, streaming)
    name = path.name.removesuffix(".gz")
    if name.endswith((".parquet", ".arrow")):
        table = _read_columns(path, Path(name).suffix)
        return table if streaming else replace(table, rows=list(table.rows), is_stream=False)
    kind = Path(name).suffix
    if kind not in READERS:
        known = [*(f"{s}{z}" for s in READERS for z in ("", ".gz")), ".parquet", ".arrow"]
        raise unknown(f"data: {path}", "reader for the ending", kind, known)
    rows = Rows(lambda: _read_text(path, kind))
    return Table(rows=rows, is_stream=True) if streaming else Table(rows=list(rows))


def _read_text(path: Path, kind: str) -> Iterator[Located]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
        try:
            yield from READERS[kind](file, path)
        except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, csv.Error) as error:
            raise ConfigError(f"data: {path} cannot be read as UTF-8 {kind} ({error}).") from error


def is_data(path: Path) -> bool:
    """Whether it is a file, or a folder that `datasets` saved."""
    return path.is_file() or any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json"))


def from_dataset(dataset: Any, name: str) -> Table:
    """The table of a `datasets.Dataset`, or of an iterable one, which is read as its rows are needed."""
    import datasets

    rows = Rows(lambda: ((f"{name}, row {number}", dict(row)) for number, row in enumerate(dataset, 1)))
    is_stream = isinstance(dataset, datasets.IterableDataset)
    return Table(rows=rows if is_stream else list(rows), is_stream=is_stream, class_names=_class_names(dataset.features))


def _class_names(features: Mapping[str, Any] | None) -> dict[str, tuple[str, ...]]:
    import datasets

    return {name: tuple(f.names) for name, f in (features or {}).items() if isinstance(f, datasets.ClassLabel)}


def _read_saved(path: Path, split: str, streaming: bool) -> Table:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:
        raise ConfigError(f"data: {path} cannot be read by datasets.load_from_disk ({error}).") from error
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise unknown(f"data: {path}", "split", split, loaded)
        loaded = loaded[split]
    return from_dataset(loaded.to_iterable_dataset() if streaming else loaded, str(path))


def _read_columns(path: Path, kind: str) -> Table:
    """The table of a Parquet or Arrow file, read a batch of rows at a time."""
    import datasets

    schema = _schema(path, kind)
    return Table(
        rows=Rows(lambda: _read_batches(path, kind)), is_stream=True, class_names=_class_names(datasets.Features.from_arrow_schema(schema))
    )


def _schema(path: Path, kind: str) -> Any:
    from pyarrow import parquet

    with _sentence(path, kind):
        return parquet.read_schema(path) if kind == ".parquet" else _open_arrow(path).schema


def _read_batches(path: Path, kind: str) -> Iterator[Located]:
    from pyarrow import parquet

    number = 0
    with _sentence(path, kind):
        for batch in parquet.ParquetFile(path).iter_batches() if kind == ".parquet" else _arrow_batches(_open_arrow(path)):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", row


def _open_arrow(path: Path) -> Any:
    """A reader of either of the two layouts of Arrow files."""
    import pyarrow

    source = pyarrow.memory_map(str(path))
    try:
        return pyarrow.ipc.open_stream(source)
    except pyarrow.ArrowInvalid:
        return pyarrow.ipc.open_file(source)


def _arrow_batches(reader: Any) -> Iterator[Any]:
    import pyarrow

    if isinstance(reader, pyarrow.ipc.RecordBatchFileReader):
        return (reader.get_batch(i) for i in range(reader.num_record_batches))
    return iter(reader)


@contextlib.contextmanager
def _sentence(path: Path, kind: str) -> Iterator[None]:
    """Turns the errors of pyarrow into one sentence."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ConfigError(f"data: {path} cannot be read as {kind} ({str(error).splitlines()[0]}).") from error


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

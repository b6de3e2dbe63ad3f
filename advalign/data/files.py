"""Files as tables: rows with their location, and the class names that a file declares."""

from __future__ import annotations

import contextlib
import gzip
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from advalign.data.contents import check_beginning, undecodable_line
from advalign.data.text_files import READERS, Located, check_header, one_line
from advalign.errors import AdvalignError, ConfigError, unknown

COLUMN_KINDS = (".parquet", ".arrow")
"""Endings of files that hold columns."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """The rows of a data set."""

    rows: Iterable[Located]
    """In file order; may be iterated again."""
    is_stream: bool = False
    """Rows are read as they are needed, and their number is not known."""
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """{column: names of its classes}, for columns of type ClassLabel."""
    name: str = ""
    """The file, folder or hub id that has them; empty: they were given as they are."""


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
    kind = Path(name).suffix
    if kind not in (*READERS, *COLUMN_KINDS):
        known = [*(f"{s}{z}" for s in READERS for z in ("", ".gz")), *COLUMN_KINDS]
        raise unknown(f"data: {path}", "reader for the ending", kind, known)
    with _sentence(path, kind):
        check_beginning(path, kind)
        if kind in COLUMN_KINDS:
            table = _read_columns(path, kind)
            return table if streaming else replace(table, rows=list(table.rows), is_stream=False)
        rows = Rows(lambda: _read_text(path, kind))
        return Table(rows=rows, is_stream=True, name=str(path)) if streaming else Table(rows=list(rows), name=str(path))


def _read_text(path: Path, kind: str) -> Iterator[Located]:
    opener = gzip.open if path.suffix == ".gz" else open
    with _sentence(path, kind), opener(path, "rt", encoding="utf-8-sig", newline="") as file:
        yield from READERS[kind](file, path)


@contextlib.contextmanager
def _sentence(path: Path, kind: str) -> Iterator[None]:
    """Turns whatever goes wrong in reading a file into one sentence."""
    try:
        yield
    except AdvalignError:
        raise
    except UnicodeDecodeError as error:
        if kind in READERS:
            raise ConfigError(f"data: {path} cannot be read as UTF-8 {kind} ({undecodable_line(path)}).") from error
        raise ConfigError(f"data: {path} cannot be read as {kind} (a text in it is not UTF-8).") from error
    except Exception as error:  # those of the system, gzip, zlib, pyarrow and datasets
        raise ConfigError(f"data: {path} cannot be read as {kind} ({one_line(error)}).") from error


def is_data(path: Path) -> bool:
    """Whether it is a file, or a folder that `datasets` saved. Raises ConfigError where the system does not say."""
    try:
        return path.is_file() or any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json"))
    except OSError as error:
        name = str(path)
        raise ConfigError(f"data: '{name if len(name) <= 200 else name[:200] + '...'}' cannot be opened ({one_line(error)}).") from error


def from_dataset(dataset: Any, name: str) -> Table:
    """The table of a `datasets.Dataset`, or of an iterable one, which is read as its rows are needed."""
    import datasets

    is_stream = isinstance(dataset, datasets.IterableDataset)
    rows = Rows(lambda: _read_dataset(dataset, name))
    return Table(rows=rows if is_stream else list(rows), is_stream=is_stream, class_names=_class_names(dataset.features), name=name)


def _read_dataset(dataset: Any, name: str) -> Iterator[Located]:
    """The rows of a data set of `datasets`, whose errors become one sentence that names the row."""
    number = 0
    try:
        for number, row in enumerate(dataset, 1):
            yield f"{name}, row {number}", dict(row)
    except AdvalignError:
        raise
    except Exception as error:  # whatever its files, or the functions that it maps, raise
        raise ConfigError(f"data: {name}, row {number + 1} cannot be read ({type(error).__name__}: {one_line(error)}).") from error


def _class_names(features: Mapping[str, Any] | None) -> dict[str, tuple[str, ...]]:
    import datasets

    return {name: tuple(f.names) for name, f in (features or {}).items() if isinstance(f, datasets.ClassLabel)}


def _read_saved(path: Path, split: str, streaming: bool) -> Table:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:
        raise ConfigError(f"data: {path} cannot be read by datasets.load_from_disk ({one_line(error)}).") from error
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise unknown(f"data: {path}", "split", split, loaded)
        loaded = loaded[split]
    return from_dataset(loaded.to_iterable_dataset() if streaming else loaded, str(path))


def _read_columns(path: Path, kind: str) -> Table:
    """The table of a Parquet or Arrow file, read a batch of rows at a time."""
    import datasets
    from pyarrow import parquet

    schema = parquet.read_schema(path) if kind == ".parquet" else _open_arrow(path).schema
    check_header(schema.names, str(path))
    names = _class_names(datasets.Features.from_arrow_schema(schema))
    return Table(rows=Rows(lambda: _read_batches(path, kind)), is_stream=True, class_names=names, name=str(path))


def _read_batches(path: Path, kind: str) -> Iterator[Located]:
    from pyarrow import parquet

    number = 0
    with _sentence(path, kind):
        for batch in parquet.ParquetFile(path).iter_batches() if kind == ".parquet" else _arrow_batches(_open_arrow(path)):
            batch.validate(full=True)  # else a damaged file is memory that is not its own
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

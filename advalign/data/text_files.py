"""Files of text as rows: one JSON object per line, a list of them, a table of separated columns, or one text per line."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from advalign.errors import ConfigError

Located = tuple[str, dict[str, Any]]
"""(location, row): the location is the file and the number of the row, for errors."""
LARGEST_FIELD = 2**31 - 1
"""Characters of one field of a table; the csv module's own bound is 131,072."""


def _lines(file: Any, path: Path) -> Iterator[str]:
    """The lines of a text. Raises ConfigError for bytes that no text has."""
    for number, line in enumerate(file, 1):
        if "\0" in line:
            raise ConfigError(f"data: {path}, row {number} holds a NUL byte, so this is not a file of text.")
        yield line


def _read_jsonl(file: Any, path: Path) -> Iterator[Located]:
    for number, line in enumerate(_lines(file, path), 1):
        if line.strip():
            yield _object(_json(line, f"{path}, row {number}"), path, number)


def _read_json(file: Any, path: Path) -> Iterator[Located]:
    rows = _json(file.read(), str(path), "; one object per line is .jsonl")
    if not isinstance(rows, list):
        raise ConfigError(f"data: {path} holds {describe(rows)}, not a list of objects.")
    for number, row in enumerate(rows, 1):
        yield _object(row, path, number)


def _json(text: str, location: str, hint: str = "") -> Any:
    """The value of a JSON text, in which no object has a key twice."""
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise ConfigError(f"data: {location} is not JSON ({error}){hint}.") from error
    except RecursionError as error:
        raise ConfigError(f"data: {location} holds lists or objects inside each other, too deep to be read.") from error
    except ValueError as error:  # an object with a key twice, or an integer of too many digits
        raise ConfigError(f"data: {location} cannot be read ({one_line(error)}).") from error


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has '{next(n for n in names if names.count(n) > 1)}' twice")
    return row


def one_line(error: BaseException) -> str:
    """What an error of another library says, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), type(error).__name__)


def describe(value: Any) -> str:
    """What kind of value it is, in the words of data."""
    if value is None or (isinstance(value, float) and value != value):
        return "null"
    kinds = {bool: "true or false", str: "a text", dict: "an object", list: "a list", tuple: "a list", int: "a number", float: "a number"}
    kind = kinds.get(type(value), f"a {type(value).__name__}")
    shown = str(value)
    return f"{kind} ({shown if len(shown) <= 40 else shown[:37] + '...'})" if isinstance(value, bool | int | float) else kind


def _object(row: Any, path: Path, number: int) -> Located:
    if not isinstance(row, dict):
        raise ConfigError(f"data: {path}, row {number} is {describe(row)}, not an object with named columns.")
    return f"{path}, row {number}", row


def check_header(names: Sequence[str], location: str) -> None:
    twice = [name for name in dict.fromkeys(names) if name and list(names).count(name) > 1]
    if twice:
        raise ConfigError(f"data: {location} has more than one column '{twice[0]}'; rename all but one.")


def _read_csv(file: Any, path: Path) -> Iterator[Located]:
    csv.field_size_limit(LARGEST_FIELD)  # a long text is not a mistake of the file
    delimiter = "\t" if ".tsv" in path.suffixes else ","
    reader = csv.reader(_lines(file, path), delimiter=delimiter, strict=True)
    header: list[str] = []
    while True:
        start = reader.line_num + 1
        try:
            values = next(reader, None)
        except csv.Error as error:
            kind = ".csv" if delimiter == "," else ".tsv"
            remedy = "quote a field with quotes in it as a whole, and double its own quotes"
            raise ConfigError(f"data: {path}, row {start} is not {kind} ({error}); {remedy}.") from error
        if values is None:
            return
        location = f"{path}, row {reader.line_num}"
        if values and not header:
            header = values
            check_header(header, str(path))
        elif values and len(values) != len(header):
            raise ConfigError(f"data: {location} does not have the {len(header)} columns of the header, but {len(values)}.")
        elif values:
            yield location, dict(zip(header, values, strict=True))


def _read_txt(file: Any, path: Path) -> Iterator[Located]:
    for number, line in enumerate(_lines(file, path), 1):
        if line.strip():
            yield f"{path}, row {number}", {"text": line.rstrip("\r\n")}


Reader = Callable[[Any, Path], Iterable[Located]]
READERS: dict[str, Reader] = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv, ".tsv": _read_csv, ".txt": _read_txt}
"""{ending: what reads the lines of such a file}"""


__all__ = ["LARGEST_FIELD", "READERS", "Located", "check_header", "describe", "one_line"]

"""What a reference names, and its rows: a task's name, a file, a folder, a hub id, or rows in memory."""

from __future__ import annotations

import difflib
import itertools
import os
import random
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from advalign.data.columns import AT_HAND, check_mapping
from advalign.data.files import COLUMN_KINDS, Table, from_dataset, is_data, read_file
from advalign.data.text_files import READERS, Located, describe, one_line
from advalign.errors import ConfigError, unknown

KEYS: dict[str, tuple[Any, bool]] = {
    "task": (None, False),
    "path": (str, False),
    "hub": (str, False),
    "name": (str, True),
    "split": (str, False),
    "number": (int, True),
    "columns": (Mapping, True),
    "revision": (str, True),
    "streaming": (bool, False),
}
"""{key of a reference: (type of its value, None: built elsewhere; whether it may be null)}"""
SUFFIXES = (*READERS, *COLUMN_KINDS)
BUFFER = 1000
"""Rows of a stream that are shuffled at a time."""

Reference = Any
"""A path, a hub id or `task:<kind>`; a mapping with KEYS; rows in memory. `specify` refuses anything else."""


def specify(ref: Reference, split: str) -> dict[str, Any]:
    """A reference as a mapping with `split` and one or two of task, path, hub, or with the table of its rows."""
    datasets: Any = sys.modules.get("datasets")
    if datasets is not None and isinstance(ref, datasets.DatasetDict | datasets.IterableDatasetDict):
        if split not in ref:
            raise unknown("data", "split", split, ref)
        ref = ref[split]
    if isinstance(ref, str):
        return _checked({"split": split, **_named(ref)})
    if not isinstance(ref, Mapping):
        return {"rows": _rows_at_hand(ref), "split": split}
    wrong = [key for key in ref if key not in KEYS]
    if wrong:
        raise unknown("data", "key", wrong[0], KEYS)
    if not {"task", "path", "hub"} & set(ref) or ("task" in ref and {"path", "hub"} & set(ref)):
        raise ConfigError(f"data: {dict(ref)} must name a task, a path, a hub data set, or a path and a hub data set to fall back to.")
    return _checked({"split": split, **ref})


def _named(ref: str) -> dict[str, str]:
    """The mapping that a reference in one word stands for."""
    if ref.startswith("task:"):
        return {"task": ref.removeprefix("task:")}
    is_path = ref.removesuffix(".gz").endswith(SUFFIXES) or ref.startswith(("${", "/", "./", "../", "~")) or is_data(Path(ref))
    return {"path" if is_path else "hub": ref}


def _checked(spec: dict[str, Any]) -> dict[str, Any]:
    """The specification, if its values are of the types of KEYS. Raises ConfigError."""
    words: dict[Any, str] = {
        str: "a text",
        int: "a whole number of at least 1",
        Mapping: "a mapping {field: column}",
        bool: "true or false",
    }
    for key, value in spec.items():
        kind, may_be_null = KEYS[key]
        if kind is None and value is None:
            raise ConfigError(f"data.{key}: null given; a name or a mapping with kind is expected.")
        if kind is None or (value is None and may_be_null):
            continue
        if not isinstance(value, kind) or value == "" or (kind is int and (isinstance(value, bool) or value < 1)):
            raise ConfigError(f"data.{key}: {value!r} given; {words[kind]} is expected.")
    if "task" in spec and spec.get("columns"):
        raise ConfigError(f"data.columns: {dict(spec['columns'])} given, and a task has no columns; leave it out.")
    check_mapping(spec.get("columns"))
    return spec


def check_limit(limit: Any, path: str = "data.limit") -> None:
    """Raises ConfigError unless it is a number of examples or None."""
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise ConfigError(f"{path}: {limit!r} given; a whole number of at least 1 is expected, or null for all examples.")


def table_of(spec: Mapping[str, Any]) -> Table:
    """All rows of a reference that is not a task; of a stream, read as they are needed."""
    file = local_file(spec) if "path" in spec else None
    streaming = bool(spec.get("streaming", False))
    if "rows" in spec:
        table: Table = spec["rows"]
        return table
    if file is not None and is_data(file):
        return read_file(file, spec["split"], streaming=streaming)
    if file is not None or "hub" in spec:
        return _load_dataset(str(file or spec["hub"]), spec, streaming)
    raise _no_file(Path(expand(spec["path"]).replace("{split}", spec["split"])))


def _no_file(path: Path) -> ConfigError:
    """The error for a path without a file, with the nearest name in its folder."""
    if path.is_symlink():
        return ConfigError(f"data: '{path}' is a link to '{path.readlink()}', where there is no file.")
    if path.exists():
        return ConfigError(f"data: '{path}' is neither a file nor a folder.")
    hint = ""
    if any(mark in path.name for mark in "*?["):
        hint = " Patterns are not expanded: name one file, or the folder of several."
    elif path.parent.is_dir():
        nearest = difflib.get_close_matches(path.name, [other.name for other in path.parent.iterdir()], n=1)
        hint = f" Did you mean '{path.parent / nearest[0]}'?" if nearest else ""
    return ConfigError(f"data: no file '{path}' and no 'hub' to fall back to.{hint}")


def sampled(table: Table, spec: Mapping[str, Any], limit: int | None, seed: int) -> list[Located]:
    """As many rows as `number` and `limit` say, drawn with `seed`; without them all, in file order. Raises ConfigError for a file without
    rows."""
    check_limit(limit)
    numbers = [n for n in (spec.get("number"), limit) if n is not None]
    rng = random.Random(f"{seed}/{spec['split']}")
    if numbers and table.is_stream:
        rows = list(itertools.islice(buffered(table.rows, rng), min(numbers)))
    else:
        rows = list(table.rows)
    if not rows and table.name:
        raise ConfigError(f"data: {table.name} has no rows (split '{spec['split']}').")
    return rng.sample(rows, min(*numbers, len(rows))) if numbers and not table.is_stream else rows


def buffered(rows: Iterable[Located], rng: random.Random) -> Iterator[Located]:
    """The rows of a stream in an order that `rng` chooses, from a buffer of BUFFER rows."""
    buffer: list[Located] = []
    for row in rows:
        if len(buffer) < BUFFER:
            buffer.append(row)
            continue
        index = rng.randrange(BUFFER)
        yield buffer[index]
        buffer[index] = row
    rng.shuffle(buffer)
    yield from buffer


def local_file(spec: Mapping[str, Any]) -> Path | None:
    """The file or folder, if it exists. A variable that is not set is an error only without a hub data set to fall back to."""
    try:
        path = Path(expand(spec["path"]).replace("{split}", spec["split"]))
    except ConfigError:
        if "hub" in spec:
            return None
        raise
    return path if is_data(path) or path.is_dir() else None


def expand(path: str) -> str:
    """A path with `${NAME}` and `~` expanded; raises ConfigError for a variable that is not set."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise ConfigError(f"data: '{path}' needs the environment variable {match[1]}, which is not set; export {match[1]}=<folder>.")
        return os.environ[match[1]]

    return os.path.expanduser(re.sub(r"\$\{(\w+)\}", value, path))


def _rows_at_hand(rows: Any) -> Table:
    """The table of rows in memory."""
    datasets: Any = sys.modules.get("datasets")  # who holds a Dataset has imported it
    if datasets is not None and isinstance(rows, datasets.Dataset | datasets.IterableDataset):
        return from_dataset(rows, "data")
    if not isinstance(rows, Iterable) or isinstance(rows, bytes | Iterator):  # an iterator could be read once only
        raise ConfigError(f"data: a {type(rows).__name__} given; a path, a hub id, a task, a list of rows or a datasets.Dataset is needed.")
    pairs: list[Located] = []
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            raise ConfigError(f"data: row {number} is {describe(row)}, not a mapping with named columns such as prompt and answer.")
        for column in row:
            if not isinstance(column, str):
                raise ConfigError(f"data: row {number} has a column named {column!r}; the name of a column is a text.")
        pairs.append((f"{AT_HAND}{number}", dict(row)))
    return Table(rows=pairs)


def _load_dataset(name: str, spec: Mapping[str, Any], streaming: bool) -> Table:
    """A hub id, or a folder laid out like one."""
    import datasets

    is_folder = name != spec.get("hub")
    if is_folder and not any(file.name.removesuffix(".gz").endswith(SUFFIXES) for file in Path(name).rglob("*")):
        raise ConfigError(f"data: the folder '{name}' holds no data: no file that ends in {', '.join(SUFFIXES)}.")
    options = {"split": spec["split"], "revision": spec.get("revision"), **({"streaming": True} if streaming else {})}
    try:
        loaded = datasets.load_dataset(name, spec.get("name"), trust_remote_code=False, **options)
    except Exception as error:
        known = re.search(r"(Unknown split|BuilderConfig).*?(?:one of|Available:) \[(.*?)\]", str(error))
        if known is not None:
            part = "split" if known[1] == "Unknown split" else "name"
            raise unknown(f"data: {name}", part, str(spec[part]), re.findall(r"'([^']*)'", known[2])) from error
        place = "this folder" if is_folder else "the hub"
        reasons = dict.fromkeys(one_line(cause) for cause in (error, _first_cause(error)))
        raise ConfigError(f"data: cannot load '{name}' (split '{spec['split']}') from {place}: {': '.join(reasons)}") from error
    return from_dataset(loaded, name)


def _first_cause(error: BaseException) -> BaseException:
    """What another error was raised from, and that one, to the end."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error

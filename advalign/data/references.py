"""What a reference names, and its rows: a task's name, a file, a folder, a hub id, or rows in memory."""

from __future__ import annotations

import itertools
import os
import random
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from advalign.data.files import READERS, Located, Table, from_dataset, is_data, read_file
from advalign.errors import ConfigError, unknown

KEYS = ("task", "path", "hub", "name", "split", "number", "columns", "revision", "streaming")
SUFFIXES = (*READERS, ".parquet", ".arrow")
BUFFER = 1000
"""Rows of a stream that are shuffled at a time."""

Reference = str | Mapping[str, Any] | Iterable[Mapping[str, Any]]


def specify(ref: Reference, split: str) -> dict[str, Any]:
    """A reference as a mapping with `split` and one or two of task, path, hub, or with the table of its rows."""
    datasets: Any = sys.modules.get("datasets")
    if datasets is not None and isinstance(ref, datasets.DatasetDict | datasets.IterableDatasetDict):
        if split not in ref:
            raise unknown("data", "split", split, ref)
        ref = ref[split]
    if not isinstance(ref, str | Mapping):
        return {"rows": _rows_at_hand(ref), "split": split}
    if not isinstance(ref, str):
        wrong = [key for key in ref if key not in KEYS]
        if wrong:
            raise unknown("data", "key", wrong[0], KEYS)
        if not {"task", "path", "hub"} & set(ref) or ("task" in ref and {"path", "hub"} & set(ref)):
            raise ConfigError(f"data: {dict(ref)} must name a task, a path, a hub data set, or a path and a hub data set to fall back to.")
        return {"split": split, **ref}
    if ref.startswith("task:"):
        return {"task": ref.removeprefix("task:"), "split": split}
    local = ref.removesuffix(".gz").endswith(SUFFIXES) or ref.startswith(("${", "/", "./", "../", "~")) or is_data(Path(ref))
    return {"path" if local else "hub": ref, "split": split}


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
    raise ConfigError(f"data: no file '{expand(spec['path']).replace('{split}', spec['split'])}' and no 'hub' to fall back to.")


def sampled(table: Table, spec: Mapping[str, Any], limit: int | None, seed: int) -> list[Located]:
    """As many rows as `number` and `limit` say, drawn with `seed`; without them all, in file order."""
    numbers = [n for n in (spec.get("number"), limit) if n is not None]
    if not numbers:
        return list(table.rows)
    rng = random.Random(f"{seed}/{spec['split']}")
    if table.is_stream:
        return list(itertools.islice(buffered(table.rows, rng), min(numbers)))
    rows = list(table.rows)
    return rng.sample(rows, min(*numbers, len(rows)))


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
            raise ConfigError(f"data: row {number} is a {type(row).__name__}, not a mapping with named columns such as prompt and answer.")
        pairs.append((f"data, row {number}", dict(row)))
    return Table(rows=pairs)


def _load_dataset(name: str, spec: Mapping[str, Any], streaming: bool) -> Table:
    """A hub id, or a folder laid out like one."""
    import datasets

    options = {"split": spec["split"], "revision": spec.get("revision"), **({"streaming": True} if streaming else {})}
    try:
        loaded = datasets.load_dataset(name, spec.get("name"), **options)
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        place = "the hub" if name == spec.get("hub") else "this folder"
        raise ConfigError(f"data: cannot load '{name}' (split '{spec['split']}') from {place}: {reason[0]}") from error
    return from_dataset(loaded, name)

"""From a reference to examples: a procedural task, a local file or a hub data set, with columns found by their usual names.

"task:constraints" · {task: {kind: constraints, words: 12}, split: test, number: 60}
"${ADVALIGN_DATA}/cls_sst2/{split}.jsonl"          .jsonl .csv .txt, also .gz; environment variables are expanded
"openai/gsm8k" · {hub: openai/gsm8k, name: main, split: test}
{path: "${ADVALIGN_DATA}/math_gsm8k/train.jsonl.gz", hub: openai/gsm8k, name: main}       the file where it exists, else the hub
[{"prompt": "2 + 3 =", "answer": "5"}, ...] · datasets.Dataset      rows at hand (in Python); no split is looked for
"""

import csv
import dataclasses
import gzip
import json
import os
import random
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from advalign import builder
from advalign.data import columns as _columns
from advalign.errors import ConfigError, unknown
from advalign.interfaces import Task
from advalign.types import Example

KEYS = ("task", "path", "hub", "name", "split", "number", "columns", "revision")
SUFFIXES = (".jsonl", ".csv", ".txt")
DEFAULT_NUMBER = 1000

Reference = str | Mapping[str, Any] | Iterable[Mapping[str, Any]]


def examples(
    ref: Reference,
    columns: Mapping[str, str] | None = None,
    split: str = "train",
    limit: int | None = None,
    seed: int = 0,
) -> list[Example]:
    """Examples of a reference. `columns` {field: column} goes before the usual names; unmapped columns stay in `meta`.

    With `limit`: that many, drawn with `seed`; without: all, in file order. Task examples carry their own `verify`.
    """
    spec = _spec(ref, split)
    if "task" in spec:
        return _from_task(spec, limit, seed)
    mapping = {**(spec.get("columns") or {}), **(columns or {})}
    return [_columns.example(row, mapping, location) for location, row in _read(spec, limit, seed)]


def rows(ref: Reference, split: str = "train", limit: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """The same, as mappings under their own column names. A task's rows are prompt, answer, id and the items of its `meta`."""
    spec = _spec(ref, split)
    if "task" in spec:
        return [{"prompt": e.prompt, "answer": e.answer, "id": e.id, **e.meta} for e in _from_task(spec, limit, seed)]
    return [row for _, row in _read(spec, limit, seed)]


def demonstrations(
    ref: Reference,
    columns: Mapping[str, str] | None = None,
    split: str = "train",
    limit: int | None = None,
    seed: int = 0,
) -> list[Example]:
    """Examples that all carry `meta["response"]`: a task demonstrates it; a row without one responds with its answer."""
    task = task_of(ref)
    demonstrated = []
    for e in examples(ref, columns, split, limit, seed):
        response = e.meta.get("response", e.answer)
        if task is not None:
            response = task.demonstrate(e, random.Random(f"{seed}/{e.id}"))
        if not isinstance(response, str):
            name = ref if isinstance(ref, str | Mapping) else "rows at hand"
            raise ConfigError(f"data: {name}, example '{e.id}' has no response; name its column with columns: {{response: ...}}.")
        demonstrated.append(dataclasses.replace(e, meta={**e.meta, "response": response}))
    return demonstrated


def task_of(ref: Reference) -> Task | None:
    """The Task behind a reference, for what needs `demonstrate` or `perturb`; None for files and hub data."""
    reference = _spec(ref, "train").get("task")
    return None if reference is None else builder.build(Task, reference, "data.task")


def texts(ref: Reference, columns: Mapping[str, str] | None = None, split: str = "train") -> list[str]:
    """Texts to build a tokenizer from: a task's vocabulary, or every prompt, pair, answer and response of a file."""
    task = task_of(ref)
    if task is not None:
        return list(task.vocabulary())
    fields: list[Any] = []
    for e in examples(ref, columns, split):
        fields += [e.prompt, e.pair, e.answer, *(e.meta.get(name) for name in ("response", "chosen", "rejected"))]
    return [text for text in fields if isinstance(text, str)]


def expand(path: str) -> str:
    """A path with `${NAME}` and `~` expanded; raises ConfigError for a variable that is not set."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise ConfigError(f"data: '{path}' needs the environment variable {match[1]}, which is not set; export {match[1]}=<folder>.")
        return os.environ[match[1]]

    return os.path.expanduser(re.sub(r"\$\{(\w+)\}", value, path))


def _spec(ref: Reference, split: str) -> dict[str, Any]:
    """A reference as a mapping with `split` and one or two of task, path, hub, or with rows."""
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
    local = ref.removesuffix(".gz").endswith(SUFFIXES) or ref.startswith(("${", "/", "./", "../", "~")) or Path(ref).is_file()
    return {"path" if local else "hub": ref, "split": split}


def _rows_at_hand(rows: Any) -> list[tuple[str, dict[str, Any]]]:
    """(location, row) of rows in memory."""
    if not isinstance(rows, Iterable) or isinstance(rows, bytes | Iterator):  # an iterator could be read once only
        raise ConfigError(f"data: a {type(rows).__name__} given; a path, a hub id, a task, a list of rows or a datasets.Dataset is needed.")
    pairs: list[tuple[str, dict[str, Any]]] = []
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            raise ConfigError(f"data: row {number} is a {type(row).__name__}, not a mapping with named columns such as prompt and answer.")
        pairs.append((f"data, row {number}", dict(row)))
    return pairs


def _from_task(spec: Mapping[str, Any], limit: int | None, seed: int) -> list[Example]:
    numbers = [n for n in (spec.get("number"), limit) if n is not None]
    number = min(numbers) if numbers else DEFAULT_NUMBER
    task = task_of(spec)
    assert task is not None
    return task.examples(spec["split"], number, random.Random(f"{seed}/{spec['split']}"))


def _read(spec: Mapping[str, Any], limit: int | None, seed: int) -> list[tuple[str, dict[str, Any]]]:
    """(location, row) pairs, sampled."""
    file = _local_file(spec) if "path" in spec else None
    if "rows" in spec:
        pairs = spec["rows"]
    elif file is not None:
        pairs = list(_read_file(file))
    elif "hub" in spec:
        pairs = _read_hub(spec)
    else:
        raise ConfigError(f"data: no file '{expand(spec['path']).replace('{split}', spec['split'])}' and no 'hub' to fall back to.")
    numbers = [n for n in (spec.get("number"), limit) if n is not None]
    if not numbers:
        return pairs
    return random.Random(f"{seed}/{spec['split']}").sample(pairs, min(*numbers, len(pairs)))


def _local_file(spec: Mapping[str, Any]) -> Path | None:
    """The file, if it exists. A variable that is not set is an error only without a hub data set to fall back to."""
    try:
        path = Path(expand(spec["path"]).replace("{split}", spec["split"]))
    except ConfigError:
        if "hub" in spec:
            return None
        raise
    return path if path.is_file() else None


def _read_file(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(location, row) of one file; the location is its name and the number of the line."""
    kind = Path(path.name.removesuffix(".gz")).suffix
    if kind not in SUFFIXES:
        raise unknown(f"data: {path}", "reader for the ending", kind, [f"{s}{z}" for s in SUFFIXES for z in ("", ".gz")])
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
        try:
            yield from {".jsonl": _read_jsonl, ".csv": _read_csv, ".txt": _read_txt}[kind](file, path)
        except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, csv.Error) as error:
            raise ConfigError(f"data: {path} cannot be read as UTF-8 {kind} ({error}).") from error


def _read_jsonl(file: Any, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigError(f"data: {path}, row {number} is not JSON ({error}).") from error
        if not isinstance(row, dict):
            raise ConfigError(f"data: {path}, row {number} is a {type(row).__name__}, not an object with named columns.")
        yield f"{path}, row {number}", row


def _read_csv(file: Any, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(file)
    for row in reader:
        location = f"{path}, row {reader.line_num}"
        if None in row or None in row.values():
            raise ConfigError(f"data: {location} does not have the {len(reader.fieldnames or ())} columns of the header.")
        yield location, dict(row)


def _read_txt(file: Any, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(file, 1):
        if line.strip():
            yield f"{path}, row {number}", {"text": line.rstrip("\r\n")}


def _read_hub(spec: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    import datasets

    try:
        loaded = datasets.load_dataset(spec["hub"], spec.get("name"), split=spec["split"], revision=spec.get("revision"))
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        message = f"data: cannot load '{spec['hub']}' (split '{spec['split']}') from the hub: {reason[0]}"
        raise ConfigError(message) from error
    return [(f"{spec['hub']}, row {number}", dict(row)) for number, row in enumerate(loaded, 1)]

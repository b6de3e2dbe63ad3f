"""From a reference to examples: a procedural task, a local file or a hub data set, with columns found by their usual names.

"task:constraints" · {task: {kind: constraints, words: 12}, split: test, number: 60}
"${ADVALIGN_DATA}/cls_sst2/{split}.jsonl"          .jsonl .json .csv .tsv .txt, also .gz; .parquet .arrow; variables are expanded
"saved_dataset"                                    a folder of datasets.save_to_disk
"openai/gsm8k" · {hub: openai/gsm8k, name: main, split: test}
{path: "${ADVALIGN_DATA}/math_gsm8k/train.jsonl.gz", hub: openai/gsm8k, name: main}       the file where it exists, else the hub
[{"prompt": "2 + 3 =", "answer": "5"}, ...] · datasets.Dataset      rows at hand (in Python); no split is looked for
"""

import dataclasses
import os
import random
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from advalign import builder
from advalign.data import columns as _columns
from advalign.data import labels as _labels
from advalign.data.files import READERS, Located, Table, from_dataset, is_data, read_file
from advalign.errors import ConfigError, unknown
from advalign.interfaces import Task
from advalign.types import Example

KEYS = ("task", "path", "hub", "name", "split", "number", "columns", "revision")
SUFFIXES = (*READERS, ".parquet", ".arrow")
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


def labelled(
    ref: Reference,
    columns: Mapping[str, str] | None = None,
    split: str = "train",
    limit: int | None = None,
    seed: int = 0,
    class_names: Sequence[str] = (),
) -> tuple[list[Example], tuple[str, ...]]:
    """Examples that all carry a class index, and the names of the classes (empty: none).

    Names are `class_names`, else those of the column's ClassLabel, else the texts in the column, sorted, over all rows of the split.
    """
    spec = _spec(ref, split)
    if "task" in spec:
        loaded = [(f"data: row '{e.id}'", e.label, e) for e in _from_task(spec, limit, seed)]
        return [dataclasses.replace(e, label=_labels.class_index(label, (), path)) for path, label, e in loaded], tuple(class_names)
    mapping = {**(spec.get("columns") or {}), **(columns or {})}
    column = mapping.get("label", _columns.USUAL["label"][0])
    table = _table(spec)
    names = tuple(class_names) or table.class_names.get(column) or _labels.names_of(row.get(column) for _, row in table.rows)
    examples = []
    for location, row in _sampled(table.rows, spec, limit, seed):
        index = _labels.class_index(row.get(column), names, f"data: {location}")
        examples.append(_columns.example(row, mapping, location, label=index))
    return examples, names


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


def same_rows(first: Reference, first_split: str, second: Reference, second_split: str) -> str | None:
    """The name of the data that two references share, whatever their splits; None where they do not. Tasks keep their splits apart."""
    specs = [_spec(first, first_split), _spec(second, second_split)]
    if any("task" in spec for spec in specs):
        return None
    if first is second and "rows" in specs[0]:
        return "the same rows in memory"
    files = [_local_file(spec) if "path" in spec else None for spec in specs]
    if files[0] is not None and files[1] is not None:
        has_splits = (files[0] / "dataset_dict.json").is_file()
        same = files[0].resolve() == files[1].resolve() and not (has_splits and specs[0]["split"] != specs[1]["split"])
        return str(files[0]) if same else None
    keys = ("hub", "name", "split", "revision")
    same = files == [None, None] and "hub" in specs[0] and all(specs[0].get(key) == specs[1].get(key) for key in keys)
    return f"{specs[0]['hub']}, split '{specs[0]['split']}'" if same else None


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


def _from_task(spec: Mapping[str, Any], limit: int | None, seed: int) -> list[Example]:
    numbers = [n for n in (spec.get("number"), limit) if n is not None]
    number = min(numbers) if numbers else DEFAULT_NUMBER
    task = task_of(spec)
    assert task is not None
    return task.examples(spec["split"], number, random.Random(f"{seed}/{spec['split']}"))


def _read(spec: Mapping[str, Any], limit: int | None, seed: int) -> list[Located]:
    """(location, row) pairs, sampled."""
    return _sampled(_table(spec).rows, spec, limit, seed)


def _table(spec: Mapping[str, Any]) -> Table:
    """All rows of a reference that is not a task."""
    file = _local_file(spec) if "path" in spec else None
    if "rows" in spec:
        table: Table = spec["rows"]
        return table
    if file is not None:
        return read_file(file, spec["split"])
    if "hub" in spec:
        return _read_hub(spec)
    raise ConfigError(f"data: no file '{expand(spec['path']).replace('{split}', spec['split'])}' and no 'hub' to fall back to.")


def _sampled(pairs: list[Located], spec: Mapping[str, Any], limit: int | None, seed: int) -> list[Located]:
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
    return path if is_data(path) else None


def _read_hub(spec: Mapping[str, Any]) -> Table:
    import datasets

    try:
        loaded = datasets.load_dataset(spec["hub"], spec.get("name"), split=spec["split"], revision=spec.get("revision"))
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        message = f"data: cannot load '{spec['hub']}' (split '{spec['split']}') from the hub: {reason[0]}"
        raise ConfigError(message) from error
    return from_dataset(loaded, str(spec["hub"]))

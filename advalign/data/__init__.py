"""From a reference to examples: a procedural task, a local file or a hub data set, with columns found by their usual names.

"task:constraints" · {task: {kind: constraints, words: 12}, split: test, number: 60}
"${ADVALIGN_DATA}/cls_sst2/{split}.jsonl"          .jsonl .json .csv .tsv .txt, also .gz; .parquet .arrow; variables are expanded
"saved_dataset"                                    a folder of datasets.save_to_disk, or of data files laid out as a hub repository
"openai/gsm8k" · {hub: openai/gsm8k, name: main, split: test}
{path: "${ADVALIGN_DATA}/math_gsm8k/train.jsonl.gz", hub: openai/gsm8k, name: main}       the file where it exists, else the hub
{path: big.jsonl, streaming: true}                 read as rows are needed, in the order of a buffer shuffle, never as a whole
[{"prompt": "2 + 3 =", "answer": "5"}, ...] · datasets.Dataset      rows at hand (in Python); no split is looked for
"""

import dataclasses
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from advalign import builder, plugins
from advalign.checked import arguments
from advalign.data import columns as _columns
from advalign.data import labels as _labels
from advalign.data import references as _references
from advalign.data.columns import no_response
from advalign.data.references import Reference, expand
from advalign.errors import ConfigError
from advalign.interfaces import Task
from advalign.types import Conversation, Example

__all__ = [
    "Reference",
    "Streamed",
    "demonstrations",
    "examples",
    "expand",
    "labelled",
    "no_response",
    "public_names",
    "rows",
    "same_rows",
    "streamed",
    "task_of",
    "texts",
    "with_columns",
]

DEFAULT_NUMBER = 1000
"""Examples of a task, where nothing says how many."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Streamed:
    """A stream: a data set whose rows are read as they are needed."""

    read: Callable[[random.Random], Iterator[Example]]
    """Its examples once, in an order that the random stream chooses from a buffer of rows."""
    class_names: tuple[str, ...] = ()
    """Names of the classes of its labels, by index."""


@arguments("data.examples: ")
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
    spec = _references.specify(ref, split)
    if "task" in spec:
        _refuse_columns(columns)
        return _from_task(spec, limit, seed)
    mapping = _mapping(spec, columns)
    rows = _references.sampled(_references.table_of(spec), spec, limit, seed)
    return [_columns.example(row, mapping, location) for location, row in rows]


@arguments("data.streamed: ")
def streamed(
    ref: Reference, columns: Mapping[str, str] | None = None, split: str = "train", class_names: Sequence[str] | None = None
) -> Streamed | None:
    """The stream that a reference is: an IterableDataset, or a mapping with `streaming: true` and without `number`; None: it is not one.

    With `class_names` (of the model; empty: it has none) every example has a class index; the names are then the model's, or ClassLabel's.
    """
    by_name = isinstance(ref, Mapping) and bool({"task", "path", "hub"} & set(ref))
    if isinstance(ref, str | list | tuple) or (by_name and not ref.get("streaming")):  # type: ignore[union-attr]
        return None
    spec = _references.specify(ref, split)
    table = None if "task" in spec else _references.table_of(spec)
    if table is None or not table.is_stream or spec.get("number") is not None:
        return None
    mapping, column = _mapping(spec, columns), _label_column(spec, columns)
    classes = None
    if class_names is not None:
        declared = table.class_names.get(column, ())
        if not declared and not class_names:
            raise ConfigError(
                f"data: the classes of a stream are known only where its column '{column}' is a ClassLabel or the model's id2label names "
                "them; set limit, so that so many rows are read before the first step."
            )
        classes = _labels.classes_of(column, (), declared=declared, class_names=class_names, number=None, path="data")

    def read(rng: random.Random) -> Iterator[Example]:
        for location, row in _references.buffered(table.rows, rng):
            label = None if classes is None else classes.index(_label(row, column, location), f"data: {location}")
            example = _columns.example(row, mapping, location, label=label)
            yield example if classes is None else _whole(example)

    return Streamed(read=read, class_names=() if classes is None else classes.names)


@arguments("data.labelled: ")
def labelled(
    ref: Reference,
    columns: Mapping[str, str] | None = None,
    split: str = "train",
    limit: int | None = None,
    seed: int = 0,
    class_names: Sequence[str] = (),
    num_classes: int | None = None,
) -> tuple[list[Example], tuple[str, ...]]:
    """Examples that all carry a class index, and the names of the classes (empty: none).

    Names are `class_names`, else those of the column's ClassLabel, else the texts in the column, sorted, over all rows of the split (of a
    stream, those read). Labels of a ClassLabel are looked up in `class_names` by name. `num_classes`: of the model that is to read them,
    whose names are then the only ones for texts.
    """
    spec = _references.specify(ref, split)
    if "task" in spec:
        _refuse_columns(columns)
        classes = _labels.Classes(number=num_classes)
        loaded = [(e, classes.index(e.label, f"data: row '{e.id}'")) for e in _from_task(spec, limit, seed)]
        return [dataclasses.replace(e, label=index) for e, index in loaded], tuple(class_names)
    mapping, column = _mapping(spec, columns), _label_column(spec, columns)
    table = _references.table_of(spec)
    chosen = _references.sampled(table, spec, limit, seed)
    classes = _labels.classes_of(
        column,
        (row.get(column) for _, row in (chosen if table.is_stream else table.rows)),
        declared=table.class_names.get(column, ()),
        class_names=class_names,
        number=num_classes,
        path="data",
    )
    indices = [classes.index(_label(row, column, location), f"data: {location}") for location, row in chosen]
    examples = [_columns.example(row, mapping, location, label=i) for (location, row), i in zip(chosen, indices, strict=True)]
    return [_whole(e) for e in examples], classes.names


@arguments("data.rows: ")
def rows(ref: Reference, split: str = "train", limit: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """The same, as mappings under their own column names. A task's rows are prompt, answer, id and the items of its `meta`."""
    spec = _references.specify(ref, split)
    if "task" in spec:
        return [{"prompt": e.prompt, "answer": e.answer, "id": e.id, **e.meta} for e in _from_task(spec, limit, seed)]
    return [row for _, row in _references.sampled(_references.table_of(spec), spec, limit, seed)]


@arguments("data.demonstrations: ")
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
        if not isinstance(response, str | tuple) or response == "":
            name = ref if isinstance(ref, str | Mapping) else "rows at hand"
            raise no_response(e, f"data: {name}, example '{e.id}'")
        demonstrated.append(dataclasses.replace(e, meta={**e.meta, "response": response}))
    return demonstrated


def task_of(ref: Reference) -> Task | None:
    """The Task behind a reference, for what needs `demonstrate` or `perturb`; None for files and hub data."""
    reference = _references.specify(ref, "train").get("task")
    return None if reference is None else builder.build(Task, reference, "data.task")


def public_names(ref: Reference, split: str = "train") -> tuple[str, str] | None:
    """(name of a data set for others, the same with what stands behind a variable of its path): `train.jsonl`, `math/train.jsonl`. A hub
    id or a task is its own name; rows at hand have none."""
    spec = _references.specify(ref, split)
    if (task := task_of(ref)) is not None:
        name = f"task:{plugins.kind_of(type(task))}"
        return name, name
    if "hub" in spec:
        return spec["hub"], spec["hub"]
    if "path" not in spec:
        return None
    path = spec["path"].replace("{split}", spec["split"])
    name = path.rstrip("/").rpartition("/")[2]
    return name, path.partition("/")[2] if path.startswith("${") else name


def with_columns(ref: str | Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """A reference with a column mapping, which goes before its own."""
    spec = _references.specify(ref, "train")
    split = {} if isinstance(ref, str) or "split" not in ref else {"split": ref["split"]}
    return {name: value for name, value in spec.items() if name != "split"} | split | {"columns": _mapping(spec, columns)}


def same_rows(first: Reference, first_split: str, second: Reference, second_split: str) -> str | None:
    """The name of the data that two references share, whatever their splits; None where they do not. Tasks keep their splits apart."""
    specs = [_references.specify(first, first_split), _references.specify(second, second_split)]
    if any("task" in spec for spec in specs):
        return None
    if first is second and "rows" in specs[0]:
        apart = isinstance(first, Mapping) and first_split != second_split  # a DatasetDict
        return None if apart else "the same rows in memory"
    files = [_references.local_file(spec) if "path" in spec else None for spec in specs]
    if files[0] is not None and files[1] is not None:
        has_splits = files[0].is_dir() and not (files[0] / "dataset_info.json").is_file()
        same = files[0].resolve() == files[1].resolve() and not (has_splits and specs[0]["split"] != specs[1]["split"])
        return str(files[0]) if same else None
    keys = ("hub", "name", "split", "revision")
    same = files == [None, None] and "hub" in specs[0] and all(specs[0].get(key) == specs[1].get(key) for key in keys)
    return f"{specs[0]['hub']}, split '{specs[0]['split']}'" if same else None


@arguments("data.texts: ")
def texts(ref: Reference, columns: Mapping[str, str] | None = None, split: str = "train") -> list[str]:
    """Texts to build a tokenizer from: a task's vocabulary, or every prompt, pair, answer and response of a file; of
    messages, their roles and contents."""
    task = task_of(ref)
    if task is not None:
        return list(task.vocabulary())
    fields: list[Any] = []
    for e in examples(ref, columns, split):
        for field in (e.prompt, e.pair, e.answer, *(e.meta.get(name) for name in ("response", "chosen", "rejected"))):
            turns = field.messages if isinstance(field, Conversation) else field if isinstance(field, tuple) else None
            fields += [field] if turns is None else [text for turn in turns for text in (turn.role, turn.content)]
    return [text for text in fields if isinstance(text, str)]


def _from_task(spec: Mapping[str, Any], limit: int | None, seed: int) -> list[Example]:
    _references.check_limit(limit)
    numbers = [n for n in (spec.get("number"), limit) if n is not None]
    number = min(numbers) if numbers else DEFAULT_NUMBER
    task = task_of(spec)
    assert task is not None
    return task.examples(spec["split"], number, random.Random(f"{seed}/{spec['split']}"))


def _mapping(spec: Mapping[str, Any], columns: Mapping[str, str] | None) -> dict[str, str]:
    """{field: column} of the reference and of the caller, which goes before."""
    _columns.check_mapping(columns)
    mapping = {**(spec.get("columns") or {}), **(columns or {})}
    _columns.check_mapping(mapping)
    return mapping


def _refuse_columns(columns: Mapping[str, str] | None) -> None:
    if columns:
        raise ConfigError(f"data.columns: {columns!r} given, and a task has no columns; leave it out.")


def _label_column(spec: Mapping[str, Any], columns: Mapping[str, str] | None) -> str:
    return _mapping(spec, columns).get("label", _columns.USUAL["label"][0])


def _whole(example: Example) -> Example:
    """What a classifier reads: of a conversation, the assistant's last turn too."""
    if not isinstance(example.prompt, Conversation) or "response" not in example.meta:
        return example
    return dataclasses.replace(example, prompt=example.prompt.extended(example.meta["response"]))


def _label(row: Mapping[str, Any], column: str, location: str) -> Any:
    """The label of a row."""
    if column not in row:
        raise ConfigError(
            f"data: {location} has no column '{column}' with its label, only {', '.join(row)}; name it with columns: {{label: ...}}."
        )
    return row[column]

"""Bad inputs that are data files."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from typing import Any

from inputs.base import RUN, SUITE, changed, text
from inputs.row import Row, command

Content = str | bytes


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


GOOD = [
    {"text": "the movie was good", "label": 1, "id": "a"},
    {"text": "the plot was bad", "label": 0, "id": "b"},
    {"text": "really great", "label": 1, "id": "c"},
]


def with_row(row: Any) -> str:
    """Good rows with a bad third one."""
    return lines(*GOOD[:2], row, GOOD[2])


LABELLED: tuple[tuple[str, str, Content, tuple[str, ...]], ...] = (
    ("no rows", "d.jsonl", "", ("d.jsonl",)),
    ("white lines only", "d.jsonl", "\n\n\n", ("d.jsonl",)),
    ("a row that is no JSON", "d.jsonl", lines(GOOD[0]) + "{text: x}\n", ("d.jsonl", "2")),
    ("half a row", "d.jsonl", lines(GOOD[0]) + '{"text": "the pl', ("d.jsonl", "2")),
    ("a list as a row", "d.jsonl", with_row(["a", 1]), ("d.jsonl", "3")),
    ("null as a row", "d.jsonl", with_row(None), ("d.jsonl", "3")),
    ("a number as a row", "d.jsonl", with_row(3), ("d.jsonl", "3")),
    ("a row without label", "d.jsonl", with_row({"text": "a", "id": "x"}), ("d.jsonl", "3", "label")),
    ("a row without text", "d.jsonl", with_row({"label": 1, "id": "x"}), ("d.jsonl", "3")),
    ("label null", "d.jsonl", with_row({"text": "a", "label": None, "id": "x"}), ("d.jsonl", "3", "label")),
    ("label -1", "d.jsonl", with_row({"text": "a", "label": -1, "id": "x"}), ("d.jsonl", "3", "-1")),
    ("label -100", "d.jsonl", with_row({"text": "a", "label": -100, "id": "x"}), ("d.jsonl", "3", "-100")),
    ("label 2 of 2 classes", "d.jsonl", with_row({"text": "a", "label": 2, "id": "x"}), ("d.jsonl", "3", "2")),
    ("label 0.5", "d.jsonl", with_row({"text": "a", "label": 0.5, "id": "x"}), ("d.jsonl", "3", "0.5")),
    ("label NaN", "d.jsonl", with_row({"text": "a", "label": float("nan"), "id": "x"}), ("d.jsonl", "3")),
    ("label Infinity", "d.jsonl", with_row({"text": "a", "label": float("inf"), "id": "x"}), ("d.jsonl", "3")),
    ("label 1e300", "d.jsonl", with_row({"text": "a", "label": 1e300, "id": "x"}), ("d.jsonl", "3")),
    ("a list of labels", "d.jsonl", with_row({"text": "a", "label": [0, 1], "id": "x"}), ("d.jsonl", "3")),
    ("a mapping as label", "d.jsonl", with_row({"text": "a", "label": {"a": 1}, "id": "x"}), ("d.jsonl", "3")),
    ("an unknown name as label", "d.jsonl", with_row({"text": "a", "label": "goood", "id": "x"}), ("d.jsonl", "goood")),
    ("an empty label", "d.jsonl", with_row({"text": "a", "label": "", "id": "x"}), ("d.jsonl", "3", "label")),
    ("an empty text", "d.jsonl", with_row({"text": "", "label": 1, "id": "x"}), ("d.jsonl", "3", "text")),
    ("null as text", "d.jsonl", with_row({"text": None, "label": 1, "id": "x"}), ("d.jsonl", "3")),
    ("a number as text", "d.jsonl", with_row({"text": 3, "label": 1, "id": "x"}), ("d.jsonl", "3")),
    ("a list as text", "d.jsonl", with_row({"text": ["a"], "label": 1, "id": "x"}), ("d.jsonl", "3")),
    ("an id twice", "d.jsonl", with_row({"text": "x", "label": 1, "id": "a"}), ("suite.data", "share the id")),
    ("bytes that are no UTF-8", "d.jsonl", b'{"text": "\xff\xfe", "label": 1}\n', ("d.jsonl", "UTF-8")),
    ("null bytes", "d.jsonl", b"\x00" * 40, ("d.jsonl",)),
    ("a CSV called .jsonl", "d.jsonl", "text,label\na,1\n", ("d.jsonl", "1")),
    ("not gzip", "d.jsonl.gz", "text", ("d.jsonl.gz",)),
    ("half a gzip", "d.jsonl.gz", gzip.compress(lines(*GOOD).encode())[:30], ("d.jsonl.gz",)),
    ("a mapping as .json", "d.json", '{"a": 1}', ("d.json",)),
    ("no JSON as .json", "d.json", "nonsense", ("d.json",)),
    ("an empty .json", "d.json", "", ("d.json",)),
    ("an empty list as .json", "d.json", "[]", ("d.json",)),
    ("a list of numbers as .json", "d.json", "[1, 2]", ("d.json",)),
    ("an empty .csv", "d.csv", "", ("d.csv",)),
    ("a header only", "d.csv", "text,label\n", ("d.csv",)),
    ("a row with a column too many", "d.csv", "text,label\na,1\nb,0,9\n", ("d.csv", "3")),
    ("a row with a column too few", "d.csv", "text,label\na,1\nb\n", ("d.csv", "3")),
    ("a column name twice", "d.csv", "text,label,label\na,1,0\nb,0,1\n", ("d.csv", "label")),
    ("a header without names", "d.csv", ",\na,1\n", ("d.csv",)),
    ("an open quote", "d.csv", 'text,label\n"a,1\nb,0\n', ("d.csv",)),
    ("other columns", "d.csv", "sentence,sentiment\na,1\n", ("d.csv",)),
    ("a .tsv with commas", "d.tsv", "text,label\na,1\n", ("d.tsv",)),
    ("a .txt for a classifier", "d.txt", "a line\n", ("d.txt", "label")),
    ("no Parquet", "d.parquet", b"PAR0nonsense", ("d.parquet",)),
    ("an empty Parquet", "d.parquet", b"", ("d.parquet",)),
    ("no Arrow", "d.arrow", b"nonsense", ("d.arrow",)),
    ("a suffix that is not known", "d.xlsx", b"PK", ("d.xlsx",)),
    ("a text of 100,000 characters in a field of CSV", "d.csv", "text,label\n" + "x" * 200_000 + ",1,2\n", ("d.csv",)),
    ("deeply nested JSON", "d.jsonl", "[" * 100_000, ("d.jsonl", "1")),
    ("a byte order mark in the middle", "d.jsonl", lines(GOOD[0]) + "\ufeff{\n", ("d.jsonl", "2")),
)  # fmt: skip
"""(what, file, its content, what is said)"""


def labelled_rows() -> Iterator[Row]:
    """Data files under a suite for a classifier, and under training."""
    classifier = changed(RUN, {
        "learners": {"policy": {"model": "models/classifier", "head": "classifier", "learning_rate": 1e-4}},
        "sources": {"train": {"kind": "labels", "data": "rows.jsonl", "batch_size": 2}},
        "objectives": {"fit": {"kind": "classify", "source": "train"}},
        "adversaries": {}, "frozen": {}, "schedules": {}, "stages": [{"steps": 1}], "gates": {}, "evaluations": {},
        "args": {"max_steps": 1},
    })  # fmt: skip
    for number, (what, file, content, says) in enumerate(LABELLED):
        if number % 2 == 0 or what in ("an id twice", "label 2 of 2 classes", "label -1"):
            files = {"suite.yaml": text(changed(SUITE, {"data": file})), file: content}
            yield command("eval", "models/classifier", "--suite", "suite.yaml", says=says, files=files, shown=f"eval, {file}: {what}")
        if what == "an id twice":
            continue
        if number % 2 or what in ("label 2 of 2 classes", "label -1"):
            files = {"run.yaml": text(changed(classifier, {"sources.train.data": file})), file: content}
            yield command("train", "run.yaml", says=says, files=files, shown=f"train, {file}: {what}")


def demo(row: Any) -> str:
    good = {"prompt": "red blue", "response": "red blue green", "id": "a"}
    return lines(good, row, {**good, "id": "c"})


TRAINING: tuple[tuple[str, str, Content, tuple[str, ...]], ...] = (
    ("no response", "demos", demo({"prompt": "a"}), ("d.jsonl", "2", "response")),
    ("response null", "demos", demo({"prompt": "a", "response": None}), ("d.jsonl", "2", "response")),
    ("an empty response", "demos", demo({"prompt": "a", "response": ""}), ("d.jsonl", "2", "response")),
    ("a number as response", "demos", demo({"prompt": "a", "response": 3}), ("d.jsonl", "2")),
    ("an empty prompt", "demos", demo({"prompt": "", "response": "x"}), ("d.jsonl", "2", "prompt")),
    ("prompt null", "demos", demo({"prompt": None, "response": "x"}), ("d.jsonl", "2", "prompt")),
    ("a mapping as prompt", "demos", demo({"prompt": {"a": 1}, "response": "x"}), ("d.jsonl", "2", "prompt")),
    ("a prompt longer than max_length", "demos", demo({"prompt": "red " * 200, "response": "x"}), ("max_length",)),
    ("messages without role", "demos", demo({"messages": [{"content": "a"}]}), ("d.jsonl", "2")),
    ("messages with a number as content", "demos", demo({"messages": [{"role": "user", "content": 3}, {"role": "assistant",
        "content": "b"}]}), ("d.jsonl", "2")),
    ("messages that are empty", "demos", demo({"messages": []}), ("d.jsonl", "2")),
    ("messages without an answer", "demos", demo({"messages": [{"role": "user", "content": "a"}]}), ("d.jsonl", "2")),
    ("an image as content", "demos", demo({"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}, {"role": "assistant",
        "content": "b"}]}), ("d.jsonl", "2", "image")),
    ("no rejected", "pairs", demo({"prompt": "a", "chosen": "b"}), ("d.jsonl",)),
    ("chosen and rejected alike", "pairs", lines(*[{"prompt": "a", "chosen": "b", "rejected": "b"}] * 3), ("d.jsonl",)),
    ("rejected null", "pairs", lines(*[{"prompt": "a", "chosen": "b", "rejected": "c"}] * 2, {"prompt": "a", "chosen": "b",
        "rejected": None}), ("d.jsonl", "3", "rejected")),
    ("label of feedback is text", "feedback", lines(*[{"prompt": "a", "response": "b", "label": "maybe"}] * 3), ("d.jsonl", "maybe")),
    ("feedback without response", "feedback", lines(*[{"prompt": "a", "label": True}] * 3), ("d.jsonl", "response")),
    ("no prompts", "prompts", lines({"x": 1}, {"x": 2}), ("d.jsonl",)),
    ("fewer rows than a batch", "prompts", "", ("d.jsonl",)),
    ("trajectories without messages", "trajectories", lines({"prompt": "a"}), ("d.jsonl",)),
)  # fmt: skip


def training_rows() -> Iterator[Row]:
    """Data files of every kind of source."""
    objective = {"demos": "sft", "pairs": "simpo", "feedback": "sft", "prompts": "grpo", "trajectories": "grpo"}
    for what, kind, content, says in TRAINING:
        source: dict[str, Any] = {"kind": kind, "data": "d.jsonl", "batch_size": 2}
        if kind == "prompts":
            source |= {
                "group_size": 2,
                "sampling": {"max_new_tokens": 2},
                "rewards": [{"kind": "format", "pattern": "a"}],
                "advantage": "group",
            }
        if kind == "trajectories":
            source |= {"advantage": "group"}
        run = {
            "learners": {"policy": RUN["learners"]["policy"]},
            "sources": {"s": source},
            "objectives": {"o": {"kind": "kto" if kind == "feedback" else objective[kind], "source": "s"}},
            "frozen": {"reference": {"learner": "policy"}},
            "args": {"max_steps": 1},
        }
        yield command("train", "run.yaml", says=says, files={"run.yaml": text(run), "d.jsonl": content}, shown=f"train, {kind}: {what}")
    evaluation = changed(RUN, {"evaluations.heldout.data": "d.jsonl", "args.max_steps": 1})
    for what, content, says in (
        ("a row that is no JSON", "{", ("d.jsonl", "1")),
        ("no rows", "", ("d.jsonl",)),
        ("a prompt longer than max_length", demo({"prompt": "red " * 200, "response": "x"}), ("evaluations.heldout", "max_length")),
        ("no prompts", lines({"x": 1}), ("d.jsonl",)),
    ):
        yield command(
            "train",
            "run.yaml",
            says=says,
            files={"run.yaml": text(evaluation), "d.jsonl": content},
            shown=f"train, evaluations.heldout.data: {what}",
        )


TABLES = {"labelled data": labelled_rows, "training data": training_rows}

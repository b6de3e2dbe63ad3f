"""References that name nothing, or not what they should: refused with the nearest name, before anything is read."""

import math
import re

import pytest

from advalign import data
from advalign.errors import ConfigError

WRONG_VALUES = [
    *(("path", value) for value in (5, None, ["a"], "", True)),
    *(("hub", value) for value in (5, None, "")),
    *(("split", value) for value in (5, None, "")),
    *(("number", value) for value in (0, -1, 1.5, "x", True, math.nan, [], 1e300)),
    *(("columns", value) for value in (["prompt"], "prompt", 5)),
    *(("name", value) for value in (5, "")),
    *(("revision", value) for value in (5, "")),
    *(("streaming", value) for value in ("yes", 1, None)),
]


@pytest.fixture
def file(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"prompt": "x", "answer": "1"}\n{"prompt": "y", "answer": "2"}\n')
    return str(tmp_path / "train.jsonl")


@pytest.mark.parametrize(("key", "value"), WRONG_VALUES)
def test_a_value_of_the_wrong_type_is_refused_at_its_key(file, key, value):
    with pytest.raises(ConfigError, match=rf"^data\.{key}: {re.escape(repr(value))} given; .* expected"):
        data.examples({"path": file, key: value})


@pytest.mark.parametrize("limit", [0, -1])
@pytest.mark.parametrize("ref", ["file", "task:arithmetic", [{"prompt": "x"}]])
def test_a_limit_is_a_number_of_examples(file, ref, limit):
    for read in (data.examples, data.rows):
        with pytest.raises(ConfigError, match=r"^data\.limit: .* at least 1"):
            read(file if ref == "file" else ref, limit=limit)


@pytest.mark.parametrize("value", [None, 5, "arithmetik", "", {"kind": "arithmetic", "digts": 2}, {"digits": 2}])
def test_a_task_that_does_not_exist_is_refused(value):
    with pytest.raises(ConfigError, match=r"^data\.task"):
        data.examples({"task": value})


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"promt": "prompt"}, r"no field 'promt'.*Did you mean 'prompt'"),
        ({"prompt": "promt"}, r"no column 'promt'.*Did you mean 'prompt'"),
        ({"prompt": "prompt", "answer": "prompt"}, r"'prompt' is given for prompt and for answer"),
        ({"prompt": 5}, r"data\.columns\.prompt: 5 given"),
        ({"prompt": None}, r"data\.columns\.prompt: None given"),
    ],
)
def test_a_column_mapping_names_columns_that_exist_once(file, columns, sentence):
    for read in (data.examples, data.demonstrations):
        with pytest.raises(ConfigError, match=sentence):
            read({"path": file, "columns": columns})


def test_a_task_has_no_columns():
    for read in (data.examples, data.labelled):
        with pytest.raises(ConfigError, match="a task has no columns"):
            read("task:arithmetic", columns={"prompt": "question"})
    with pytest.raises(ConfigError, match="a task has no columns"):
        data.examples({"task": "arithmetic", "columns": {"prompt": "question"}})


def test_what_is_no_file_says_what_it_is_and_the_nearest_name(tmp_path, file):
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "gone.jsonl")
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    for name, sentence in {
        "trian.jsonl": r"no file '.*trian\.jsonl'.*Did you mean '.*/train\.jsonl'",
        "*.jsonl": r"Patterns are not expanded",
        "link.jsonl": r"is a link to '.*gone\.jsonl'",
        "loop.jsonl": r"is a link to '.*loop\.jsonl'",
        "a" * 5000 + ".jsonl": r"cannot be opened \(File name too long\)",
        "{split}.jsonl": r"Did you mean '.*/train\.jsonl'",
    }.items():
        with pytest.raises(ConfigError, match=sentence) as error:
            data.examples(str(tmp_path / name), split="trainn")
        assert len(str(error.value)) < 600
    with pytest.raises(ConfigError, match="neither a file nor a folder"):
        data.examples("/dev/null")


@pytest.mark.parametrize("rows", [None, 5, b"x", {"a", "b"}, [1], ["a"], [None], [[1]], [{5: "x"}], (x for x in [{"prompt": "x"}])])
def test_rows_at_hand_are_mappings_with_named_columns(rows):
    with pytest.raises(ConfigError, match=r"^data: "):
        data.examples(rows)

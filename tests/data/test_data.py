"""From references to examples: files, tasks, the hub, and the sentences one meets when they are wrong."""

import gzip
import json

import pytest

from advalign import data
from advalign.errors import ConfigError
from advalign.types.messages import conversation


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def numbered(tmp_path):
    return write(tmp_path / "n.jsonl", *({"text": f"t{i}", "label": i % 2} for i in range(100)))


# ------------------------------------------------------------------------------------------------------------ files


def test_one_table_in_four_formats(tmp_path):
    lines = [{"text": 'a, "b"', "label": 1}, {"text": "ü", "label": 0}]
    plain = write(tmp_path / "d.jsonl", *lines)
    with gzip.open(tmp_path / "d.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write((tmp_path / "d.jsonl").read_text(encoding="utf-8") + "\n")
    (tmp_path / "d.csv").write_text('text,label\n"a, ""b""",1\nü,0\n', encoding="utf-8")
    (tmp_path / "d.txt").write_text('a, "b"\n\nü\n', encoding="utf-8")
    for path in (plain, f"{plain}.gz", str(tmp_path / "d.csv")):
        assert [(e.prompt, e.label) for e in data.examples(path)] == [('a, "b"', 1), ("ü", 0)], path
    assert [e.prompt for e in data.examples(str(tmp_path / "d.txt"))] == ['a, "b"', "ü"]
    assert data.rows(plain) == lines


def test_limit_is_a_seeded_sample_and_no_limit_keeps_the_order(numbered):
    everything = [row["text"] for row in data.rows(numbered)]
    assert everything == [f"t{i}" for i in range(100)]
    sampled = [row["text"] for row in data.rows(numbered, limit=10)]
    assert len(set(sampled)) == 10
    assert set(sampled) <= set(everything)
    assert sampled != everything[:10]
    assert sampled == [e.prompt for e in data.examples(numbered, limit=10)]
    assert sampled != [row["text"] for row in data.rows(numbered, limit=10, seed=1)]
    assert len(data.rows(numbered, limit=1000)) == 100
    assert len(data.rows({"path": numbered, "number": 7}, limit=9)) == 7


def test_environment_variables_and_splits_are_expanded(tmp_path, monkeypatch):
    write(tmp_path / "dev.jsonl", {"text": "x"})
    monkeypatch.setenv("ADVALIGN_DATA", str(tmp_path))
    assert data.rows("${ADVALIGN_DATA}/{split}.jsonl", split="dev") == [{"text": "x"}]
    monkeypatch.delenv("ADVALIGN_DATA")
    with pytest.raises(ConfigError, match=r"needs the environment variable ADVALIGN_DATA, which is not set"):
        data.rows("${ADVALIGN_DATA}/dev.jsonl")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.jsonl", b'{"text": "x"}\n\n{"text": \n', r"a\.jsonl, row 3 is not JSON"),
        ("a.jsonl", b'{"text": "x"}\n["x"]\n', r"a\.jsonl, row 2 is a list"),
        ("a.jsonl", b'{"text": "x"}\n{"label": 1}\n', r"a\.jsonl, row 2: the prompt is not among the columns label"),
        ("a.jsonl", b'{"text": ""}\n', r"a\.jsonl, row 1: the prompt is empty"),
        ("a.jsonl", b'{"text": " \\t\\u3000"}\n', r"a\.jsonl, row 1: the prompt is only white space \(column 'text'\)"),
        ("a.csv", b"text,label\nx,1\ny\n", r"a\.csv, row 3 does not have the 2 columns"),
        ("a.csv", b"text,label\nx,1,2\n", r"a\.csv, row 2 does not have the 2 columns"),
        ("a.txt", b"\xfa\xfb", r"a\.txt cannot be read as UTF-8"),
        ("a.jsonl.gz", b"no gzip", r"a\.jsonl\.gz cannot be read"),
        ("a.parquet", b"x", r"a\.parquet cannot be read as \.parquet"),
        ("a.arrow", b"x", r"a\.arrow cannot be read as \.arrow"),
        ("a.xlsx", b"x", r"'\.xlsx'"),
        ("a.json", b'{"text": 1}', r"a\.json holds an object"),
        ("a.json", b"[1]", r"a\.json, row 1 is a number"),
    ],
)
def test_bad_rows_are_named(tmp_path, name, content, sentence):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=sentence):
        data.examples(str(tmp_path / name))


def test_a_missing_file_says_so(tmp_path):
    with pytest.raises(ConfigError, match=r"no file '.*nothing\.jsonl'"):
        data.rows(str(tmp_path / "nothing.jsonl"))


# ---------------------------------------------------------------------------------------------------------- columns


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"question": "1+1?", "answer": 2.0}, {"prompt": "1+1?", "answer": "2"}),
        ({"question": "1+1?", "answer": 2.5}, {"answer": "2.5"}),
        ({"question": "q", "answer": "so\n#### 72"}, {"answer": "72", "response": "so\n#### 72"}),
        ({"problem": "p", "solution": "s", "answer": "a", "level": 5}, {"prompt": "p", "answer": "a", "response": "s", "level": 5}),
        ({"prompt": "p", "completion": "c"}, {"prompt": "p", "response": "c"}),
        ({"instruction": "Add", "input": "1, 2", "output": "3"}, {"prompt": "Add\n\n1, 2", "response": "3"}),
        ({"instruction": "Sing", "input": "", "output": "la"}, {"prompt": "Sing", "response": "la"}),
        ({"sentence1": "a", "sentence2": "b", "label": "1"}, {"prompt": "a", "pair": "b", "label": 1}),
        ({"premise": "a", "hypothesis": "b", "label": 0}, {"prompt": "a", "pair": "b", "label": 0}),
        ({"prompt": "p", "chosen": "c", "rejected": "r"}, {"prompt": "p", "chosen": "c", "rejected": "r"}),
        ({"goal": "g", "target": "t", "label": "benign", "id": 4}, {"prompt": "g", "answer": "t", "label": None, "id": "4"}),
    ],
)
def test_usual_columns_are_guessed(tmp_path, row, expected):
    example = data.examples(write(tmp_path / "d.jsonl", row))[0]
    for name, value in expected.items():
        got = getattr(example, name) if hasattr(example, name) else example.meta[name]
        assert got == value, name


def test_chat_turns_become_prompt_and_response(tmp_path):
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    example = data.examples(write(tmp_path / "a.jsonl", {"messages": turns}))[0]
    asked = conversation(turns[:1])
    assert (example.prompt, example.meta["response"], example.row["messages"]) == (asked, "hello", turns)
    other = [turns[0], {"role": "assistant", "content": "go away"}]
    pair = data.examples(write(tmp_path / "b.jsonl", {"chosen": turns, "rejected": other}))[0]
    assert (pair.prompt, pair.meta["chosen"], pair.meta["rejected"]) == (asked, "hello", "go away")
    requests = data.examples(write(tmp_path / "c.jsonl", {"messages": turns[:1], "chosen": "hello", "rejected": "no"}))[0]
    assert (requests.prompt, requests.meta["chosen"], "response" in requests.meta) == (asked, "hello", False)


def test_a_mapping_goes_before_the_usual_names(tmp_path):
    path = write(tmp_path / "d.jsonl", {"text": "t", "body": "b", "gold": "g", "cls": 3})
    example = data.examples(path, {"prompt": "body", "answer": "gold", "label": "cls"})[0]
    assert (example.prompt, example.answer, example.label, dict(example.meta)) == ("b", "g", 3, {"text": "t"})
    assert data.examples({"path": path, "columns": {"prompt": "body"}})[0].prompt == "b"
    with pytest.raises(ConfigError, match=r"row 1: no column 'bodi'\. Known: .*Did you mean 'body'"):
        data.examples(path, {"prompt": "bodi"})
    with pytest.raises(ConfigError, match="Did you mean 'prompt'"):
        data.examples(path, {"prompts": "body"})
    with pytest.raises(ConfigError, match=r"row 1: the label 't' is not a class index"):
        data.examples(path, {"prompt": "body", "label": "text"})


# ------------------------------------------------------------------------------------------------------------ tasks


def test_tasks_are_examples_with_verifiers():
    examples = data.examples("task:constraints", split="test")
    assert len(examples) == 90
    ref = {"task": {"kind": "constraints", "words": 12, "held_out": 5}, "split": "test", "number": 60}
    assert len(data.examples(ref)) == 5, "the split in the reference goes before the argument"
    assert [e.prompt for e in data.examples("task:arithmetic", limit=5)] == [e.prompt for e in data.examples("task:arithmetic", limit=5)]
    assert [e.prompt for e in data.examples("task:arithmetic", limit=5, seed=1)] != [
        e.prompt for e in data.examples("task:arithmetic", limit=5)
    ]
    assert data.rows("task:arithmetic", limit=1)[0].keys() == {"prompt", "answer", "id", "a", "op", "b", "split"}
    assert data.task_of(ref).words == 12
    assert data.task_of("some/file.jsonl") is None


def test_demonstrations_carry_responses(tmp_path):
    shown = data.demonstrations("task:constraints", limit=20)
    assert all(e.verify(e.meta["response"]) == 1 for e in shown)
    again = data.demonstrations("task:constraints", limit=20)
    assert [(e.prompt, e.meta["response"]) for e in shown] == [(e.prompt, e.meta["response"]) for e in again]
    assert data.demonstrations(write(tmp_path / "d.jsonl", {"question": "1+1?", "answer": 2.0}))[0].meta["response"] == "2"
    with pytest.raises(ConfigError, match="has no response"):
        data.demonstrations(write(tmp_path / "e.jsonl", {"text": "x"}))


def test_texts_cover_what_a_tokenizer_will_meet(tmp_path):
    assert set(data.texts("task:arithmetic")) >= set("0123456789+-= ")
    path = write(tmp_path / "d.jsonl", {"question": "q", "answer": "so\n#### 7"}, {"prompt": "p", "chosen": "c", "rejected": "r"})
    assert sorted(data.texts(path)) == ["7", "c", "p", "q", "r", "so\n#### 7"]


@pytest.mark.parametrize(
    ("ref", "sentence"),
    [
        ("task:constraint", "Did you mean 'constraints'"),
        ({"task": {"kind": "constraints", "word": 3}}, "no field of Constraints 'word'.*Did you mean 'words'"),
        ({"task": {"words": 3}}, "no 'kind' given"),
        ({"task": "arithmetic", "numbers": 3}, "Did you mean 'number'"),
        ({"number": 3}, "must name a task"),
        ({"task": "arithmetic", "hub": "a/b"}, "must name a task"),
    ],
)
def test_wrong_references_are_sentences(ref, sentence):
    with pytest.raises(ConfigError, match=sentence):
        data.examples(ref)


# -------------------------------------------------------------------------------------------------------------- hub


@pytest.fixture
def hub(monkeypatch):
    """Stands in for the network: records what is asked, knows one data set."""
    import datasets

    requests = []

    def load_dataset(path, name=None, *, split=None, revision=None, trust_remote_code=None):
        assert trust_remote_code is False
        requests.append((path, name, split, revision))
        if path != "org/known":
            raise FileNotFoundError(f"no data set {path}\nlong details")
        return datasets.Dataset.from_list([{"question": f"q{i}", "answer": str(i)} for i in range(5)])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return requests


def test_the_hub_by_name(hub):
    assert [e.answer for e in data.examples("org/known", split="test")] == ["0", "1", "2", "3", "4"]
    data.examples({"hub": "org/known", "name": "main", "split": "dev", "revision": "abc"}, limit=2)
    assert hub == [("org/known", None, "test", None), ("org/known", "main", "dev", "abc")]
    with pytest.raises(ConfigError, match=r"cannot load 'org/other' \(split 'train'\) from the hub: no data set org/other$"):
        data.rows("org/other")
    with pytest.raises(ConfigError, match=r"org/known, row 1: no column"):
        data.examples("org/known", {"prompt": "nothing"})


def test_the_file_where_it_exists_else_the_hub(hub, tmp_path, monkeypatch):
    monkeypatch.delenv("NOWHERE_AT_ALL", raising=False)
    path = write(tmp_path / "d.jsonl", {"question": "local", "answer": "1"})
    assert data.examples({"path": path, "hub": "org/known"})[0].prompt == "local"
    assert hub == []
    for missing in (str(tmp_path / "none.jsonl"), "${NOWHERE_AT_ALL}/d.jsonl"):
        assert data.examples({"path": missing, "hub": "org/known"})[0].prompt == "q0"
    assert len(hub) == 2


# ------------------------------------------------------------------------------------------------------- real files


def test_real_files_have_their_public_sizes(data_root):
    dev = data.examples("${ADVALIGN_DATA}/cls_sst2/dev.jsonl")
    assert len(dev) == 872  # the size of the SST-2 development set
    assert {e.label for e in dev} == {0, 1}
    sums = data.examples("${ADVALIGN_DATA}/math_mawps/singleop.jsonl", limit=50)
    assert all(e.answer and e.answer.removeprefix("-").replace(".", "").isdigit() for e in sums)
    worked = data.examples("${ADVALIGN_DATA}/math_gsm8k/test_part.jsonl", limit=50)
    assert all("####" not in e.answer for e in worked)
    pairs = data.examples("${ADVALIGN_DATA}/pref_kto_mix/pairs.jsonl.gz", limit=50)
    assert all(isinstance(e.meta["chosen"], str) and isinstance(e.meta["rejected"], str) for e in pairs)


def test_rows_at_hand_are_a_reference_too():
    import datasets

    rows = [{"prompt": "2 + 3 =", "answer": "5", "source": "a"}, {"prompt": "1 + 1 =", "answer": "2", "source": "b"}]
    for reference in (rows, tuple(rows), datasets.Dataset.from_list(rows)):
        examples = data.examples(reference)
        assert [(e.prompt, e.answer, e.meta) for e in examples] == [("2 + 3 =", "5", {"source": "a"}), ("1 + 1 =", "2", {"source": "b"})]
        assert [e.meta["response"] for e in data.demonstrations(reference)] == ["5", "2"]
        assert data.texts(reference) == ["2 + 3 =", "5", "1 + 1 =", "2"]
        assert data.task_of(reference) is None
    assert len(data.examples(rows, limit=1, seed=3)) == 1


def test_rows_that_could_be_read_once_only_are_refused():
    with pytest.raises(ConfigError, match=r"data: a list_iterator given; .* a list of rows"):
        data.examples(iter([{"prompt": "a"}]))

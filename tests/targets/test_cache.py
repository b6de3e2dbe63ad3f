"""A cache that is damaged, locked or something else: refused in a sentence, or asked again, and never a wrong answer."""

import sqlite3
import warnings

import pytest
import torch

from advalign.errors import ConfigError
from advalign.targets import cache as module
from advalign.targets.cache import TABLE, AnswerCache

ROWS = [("a red film", None), ("a dull film", "it was"), ("the cat", None)]
LOGITS = torch.tensor([[0.5, -1.0], [2.0, 0.25], [-3.0, 7.0]])


@pytest.fixture
def path(tmp_path):
    cache = AnswerCache(tmp_path / "answers.sqlite", "model")
    cache.put(ROWS, LOGITS)
    return tmp_path / "answers.sqlite"


def served(path, fingerprint="model"):
    return AnswerCache(path, fingerprint).get(ROWS)


def edit(path, statement, *values):
    with sqlite3.connect(path) as connection:
        connection.execute(statement, values)
    connection.close()


def test_what_was_stored_is_served_to_its_model_alone(path):
    assert {row: logits.tolist() for row, logits in served(path).items()} == dict(zip(ROWS, LOGITS.tolist(), strict=True))
    assert served(path, "another") == {}


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "text", "others"])
def test_a_row_that_is_not_as_it_was_stored_is_asked_again(path, damage):
    key, content = sqlite3.connect(path).execute(f"SELECT key, logits FROM {TABLE} ORDER BY key").fetchone()
    other = sqlite3.connect(path).execute(f"SELECT logits FROM {TABLE} ORDER BY key DESC").fetchone()[0]
    flipped = bytes([content[0] ^ 1]) + content[1:]
    value = {"flip": flipped, "cut": content[:-4], "empty": b"", "text": "x", "others": other}[damage]
    edit(path, f"UPDATE {TABLE} SET logits = ? WHERE key = ?", value, key)
    right = dict(zip(ROWS, LOGITS.tolist(), strict=True))
    rows = served(path)
    assert len(rows) == 2
    assert all(logits.tolist() == right[row] for row, logits in rows.items())
    AnswerCache(path, "model").put(ROWS, LOGITS)
    assert len(served(path)) == 3


def test_any_flipped_byte_gives_right_answers_or_none(path):
    content, right = path.read_bytes(), dict(zip(ROWS, LOGITS.tolist(), strict=True))
    for place in [*range(0, 110, 9), *range(4096, len(content), 301), *range(len(content) - 400, len(content), 7)]:
        path.write_bytes(content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :])
        try:
            with warnings.catch_warnings(action="ignore"):
                rows = served(path)
        except ConfigError:
            continue
        assert all(logits.tolist() == right[row] for row, logits in rows.items()), place


@pytest.mark.parametrize("content", [b"not a database, and long enough to be looked at" * 50, b'{"a": 1}\n', b"PK\x03\x04" + b"\0" * 200])
def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path, content):
    (tmp_path / "data").write_bytes(content)
    with pytest.raises(ConfigError, match=r"^cache: .*data cannot be used \(file is not a database\)"):
        AnswerCache(tmp_path / "data", "model")
    assert (tmp_path / "data").read_bytes() == content


def test_a_database_of_something_else_is_refused(tmp_path):
    edit(tmp_path / "db", "CREATE TABLE bookmarks (name TEXT)")
    with pytest.raises(ConfigError, match="is an SQLite database of something else"):
        AnswerCache(tmp_path / "db", "model")


def test_answers_of_an_earlier_version_are_asked_again(tmp_path):
    edit(tmp_path / "old", "CREATE TABLE answers (key BLOB PRIMARY KEY, logits BLOB NOT NULL) WITHOUT ROWID")
    assert served(tmp_path / "old") == {}


def test_a_folder_and_a_place_where_nothing_can_be_written_are_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path, tmp_path / "file" / "answers.sqlite", "/proc/nowhere/answers.sqlite"):
        with pytest.raises(ConfigError, match=r"^cache: .* cannot be used"):
            AnswerCache(path, "model")


def test_a_file_that_another_process_has_locked_is_refused_or_left_out(path, monkeypatch):
    monkeypatch.setattr(module, "SECONDS", 0.05)
    opened = AnswerCache(path, "model")
    owner = sqlite3.connect(path, isolation_level=None)
    owner.execute("BEGIN EXCLUSIVE")
    with pytest.raises(ConfigError, match="database is locked"):
        AnswerCache(path, "model")
    with pytest.warns(UserWarning, match="database is locked.*; answers that it does not give are asked"):
        assert opened.get(ROWS) == {}
    assert opened.put(ROWS, LOGITS)[ROWS[0]].tolist() == LOGITS[0].tolist()
    owner.execute("ROLLBACK")
    assert len(opened.get(ROWS)) == 3

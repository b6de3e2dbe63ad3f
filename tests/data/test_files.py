"""Files that are not what they are called, or are damaged: one sentence with the file and the row, whatever reads them."""

import contextlib
import gzip
import io
import json
import pickle
import zipfile

import datasets
import pyarrow as pa
import pytest
from pyarrow import ipc, parquet

from advalign import data
from advalign.errors import ConfigError

ROWS = [{"prompt": "x", "answer": "1"}, {"prompt": "y", "answer": "2"}]
TABLE = pa.table({"prompt": ["x", "y"], "label": [0, 1]})


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.jsonl", json.dumps(ROWS[0]))
    return file.getvalue()


def as_parquet(table: pa.Table = TABLE) -> bytes:
    file = io.BytesIO()
    parquet.write_table(table, file)
    return file.getvalue()


def as_arrow() -> bytes:
    file = io.BytesIO()
    with ipc.new_file(file, TABLE.schema) as writer:
        writer.write_table(TABLE)
    return file.getvalue()


LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet", ".arrow", ".jsonl.gz")
OTHERS = {
    "git-lfs": POINTER,
    "zip": zipped(),
    "UTF-16": "prompt\nx\n".encode("utf-16"),
    "pickle": pickle.dumps(ROWS),
    "web page": b"<!DOCTYPE html>\n<html><body>404</body></html>",
}
DAMAGED = {
    "not UTF-8": ("a.jsonl", LINES + '{"prompt": "café"}'.encode("latin-1"), "row 3: byte 0xe9 in place 16 of the line"),
    "not UTF-8 in a table": ("a.csv", "prompt,label\ncafé,1\n".encode("latin-1"), "row 2: byte 0xe9 in place 4"),
    "NUL bytes": ("a.jsonl", LINES + b"\0\0\0\n", "row 3 holds a NUL byte"),
    "NUL bytes in a table": ("a.csv", b"prompt,label\na\0b,1\n", "row 2 holds a NUL byte"),
    "NUL bytes in texts": ("a.txt", b"a\nb\0\n", "row 2 holds a NUL byte"),
    "a cut line": ("a.jsonl", LINES + b'{"prompt": "z', "row 3 is not JSON"),
    "two objects": ("a.jsonl", LINES.replace(b"\n", b" "), "row 1 is not JSON"),
    "a column twice": ("a.jsonl", b'{"prompt": "x", "prompt": "y"}\n', "row 1 cannot be read .it has 'prompt' twice"),
    "lists in lists": ("a.jsonl", b"[" * 100_000, "row 1 holds lists or objects inside each other"),
    "a number of 5,000 digits": ("a.jsonl", b'{"prompt": "x", "n": %s}' % (b"1" * 5000), "row 1 cannot be read"),
    "null for a row": ("a.jsonl", LINES + b"null\n", "row 3 is null"),
    "a list for a row": ("a.jsonl", LINES + b"[1]\n", "row 3 is a list"),
    "an object for a list": ("a.json", b'{"data": []}', "holds an object"),
    "lines in .json": ("a.json", LINES, "one object per line is .jsonl"),
    "a row too short": ("a.csv", b"prompt,label\na\n", "row 2 does not have the 2 columns of the header, but 1"),
    "a row too long": ("a.csv", b"prompt,label\na,1\nb,1,2\n", "row 3 does not have the 2 columns of the header, but 3"),
    "an open quote": ("a.csv", b'label,prompt\n1,"a\n0,b\n1,c\n', "row 2 is not .csv"),
    "quotes inside a field": ("a.tsv", b'prompt\tlabel\n"a" b\t1\n', "row 2 is not .tsv"),
    "two columns of a name": ("a.csv", b"prompt,prompt\na,b\n", "more than one column 'prompt'"),
    "a cut archive": ("a.jsonl.gz", gzip.compress(LINES * 50)[:-9], "Compressed file ended"),
    "a flipped archive": (
        "a.jsonl.gz",
        gzip.compress(LINES * 50).replace(b"\x00\xff", b"\x00\xfe", 1)[:30] + b"\xff" * 40,
        "cannot be read",
    ),
    "bytes behind an archive": ("a.jsonl.gz", gzip.compress(LINES) + b"more", "Not a gzipped file"),
    "a cut Parquet file": ("a.parquet", as_parquet()[:-20], "cannot be read as .parquet"),
    "no bytes of Parquet": ("a.parquet", b"", "cannot be read as .parquet"),
    "a cut Arrow file": ("a.arrow", as_arrow()[:-20], "cannot be read as .arrow"),
    "no bytes of Arrow": ("a.arrow", b"", "cannot be read as .arrow"),
}
EMPTY = {
    "a.jsonl": b"\n\n",
    "a.json": b"[]",
    "a.csv": b"prompt,label\n",
    "a.tsv": b"",
    "a.txt": b"  \n",
    "a.jsonl.gz": gzip.compress(b""),
    "a.parquet": as_parquet(TABLE.slice(0, 0)),
}


def refused(path, sentence, read=data.examples, **options):
    with pytest.raises(ConfigError, match=sentence) as error:
        read(str(path), **options)
    assert str(path.name) in str(error.value)
    assert "\n" not in str(error.value)


# The lines of a web page are texts too.
@pytest.mark.parametrize(("ending", "kind"), [(e, k) for e in ENDINGS for k in OTHERS if (e, k) != (".txt", "web page")])
def test_a_file_that_is_something_else_is_named(tmp_path, ending, kind):
    path = tmp_path / f"a{ending}"
    path.write_bytes(OTHERS[kind])
    refused(path, kind)


def test_a_table_under_another_name_is_named(tmp_path):
    for ending, content, kind in (
        (".jsonl", as_parquet(), "Parquet"),
        (".csv", as_arrow(), "Arrow"),
        (".json", gzip.compress(LINES), "gzip"),
    ):
        (tmp_path / f"a{ending}").write_bytes(content)
        refused(tmp_path / f"a{ending}", kind)


@pytest.mark.parametrize("case", DAMAGED)
@pytest.mark.parametrize("streaming", [False, True])
def test_a_damaged_file_is_a_sentence_with_file_and_row(tmp_path, case, streaming):
    name, content, sentence = DAMAGED[case]
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, sentence)
    with pytest.raises(ConfigError, match=sentence):
        data.examples({"path": str(tmp_path / name), "streaming": True})


@pytest.mark.parametrize("name", EMPTY)
def test_a_file_without_rows_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(EMPTY[name])
    for read in (data.examples, data.labelled, data.demonstrations, data.rows):
        refused(tmp_path / name, "has no rows", read)
    refused(tmp_path / name, "has no rows", limit=3)


def test_a_file_that_the_system_does_not_read_is_refused(tmp_path):
    # Reading the memory of a process from address 0 is an error of input, also for its owner.
    (tmp_path / "memory.txt").symlink_to("/proc/self/mem")
    refused(tmp_path / "memory.txt", "cannot be read as .txt .Input/output error")


def test_any_flipped_byte_of_columns_gives_rows_or_a_sentence(tmp_path):
    for name, content in (("a.parquet", as_parquet()), ("a.arrow", as_arrow())):
        for place in range(0, len(content), 11):
            flipped = bytearray(content)
            flipped[place] ^= 255
            (tmp_path / name).write_bytes(flipped)
            with contextlib.suppress(ConfigError):  # any other exception, or a crash, is a failure
                assert len(data.rows(str(tmp_path / name))) == 2


def test_tables_that_only_look_wrong_are_read(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'\xef\xbb\xbf,prompt,label\r\n\r\n0,"a, ""b""\nc",1\r\n')  # a mark of UTF-8, an index without a name
    assert data.rows(str(tmp_path / "a.csv")) == [{"": "0", "prompt": 'a, "b"\nc', "label": "1"}]
    (tmp_path / "b.csv").write_text("prompt\n" + "x" * 200_000 + "\n")  # longer than the csv module's own bound
    assert len(data.examples(str(tmp_path / "b.csv"))[0].prompt) == 200_000


# ----------------------------------------------------------------------------------------------------------- folders


@pytest.mark.parametrize("damage", ["cut", "missing", "info", "state"])
def test_a_saved_data_set_that_is_damaged_is_a_sentence(tmp_path, damage):
    folder = tmp_path / "saved"
    datasets.Dataset.from_list(ROWS).save_to_disk(folder)
    file = next(folder.glob("*.arrow"))
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:100])
    elif damage == "missing":
        file.unlink()
    else:
        (folder / {"info": "dataset_info.json", "state": "state.json"}[damage]).write_text("{")
    refused(folder, "cannot be read by datasets.load_from_disk")


def test_a_split_or_configuration_that_does_not_exist_is_refused_with_the_nearest(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(LINES)
    with pytest.raises(ConfigError, match=r"no split 'trian'. Known: train. Did you mean 'train'"):
        data.examples(str(tmp_path), split="trian")
    with pytest.raises(ConfigError, match=r"no name 'defalt'. Known: default. Did you mean 'default'"):
        data.examples({"path": str(tmp_path), "name": "defalt"})


def test_a_folder_without_data_and_one_with_a_broken_file_are_refused(tmp_path):
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "README.md").write_text("nothing")
    refused(tmp_path / "none", "holds no data")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "train.jsonl").write_text('{"prompt": "x"}\n{"prompt":\n')
    refused(tmp_path / "broken", "JSON parse error")


def test_a_data_set_whose_rows_raise_names_the_row():
    def generate():
        yield {"prompt": "x"}
        raise RuntimeError("the disk is gone")

    stream = datasets.IterableDataset.from_generator(generate)
    with pytest.raises(ConfigError, match=r"row 2 cannot be read \(RuntimeError: the disk is gone\)"):
        data.examples(stream, limit=5)

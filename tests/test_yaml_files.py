"""The door for YAML: plain values, bounded, and one sentence with file and line for everything else."""

import math

import pytest
import yaml

from advalign import text_files, yaml_files
from advalign.errors import ConfigError
from advalign.evaluation.suites.suite import Suite


@pytest.fixture
def file(tmp_path):
    """`file(text or bytes)` -> its path."""

    def write(content):
        path = tmp_path / "small.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


LAUGHS = "a: &a [l, l, l, l, l, l, l, l, l]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)

WRONG = {
    "empty": ("", ": the file is empty; a suite has data and attacks."),
    "comments": ("# nothing\n", ": the file is empty; a suite has data and attacks."),
    "list": ("# one\n- a", ", line 2: a list given; a suite has data and attacks."),
    "text": ("data", ", line 1: a text given; a suite has data and attacks."),
    "number": ("3", ", line 1: a number given; a suite has data and attacks."),
    "true": ("true", ", line 1: true given; a suite has data and attacks."),
    "null": ("~", ", line 1: null given; a suite has data and attacks."),
    "two documents": ("a: 1\n---\nb: 2\n", ", line 2: a second document begins (---); a file holds one."),
    "tab": ("a:\n\tb: 1\n", ", line 2, column 1: this is not YAML: a tab indents this line; use spaces."),
    "later tab": ("a:\n  b: 1\n\tc: 2", ", line 3, column 1: this is not YAML: a tab indents this line; use spaces."),
    "bracket": ("a:\n  b: [1, 2\nc: 3", ", line 3, column 2: this is not YAML: a bracket or a quote that begins in line 2 is not closed."),
    "quote": ("a: 'x\nb: 2", ", line 2, column 5: this is not YAML: a bracket or a quote that begins in line 1 is not closed."),
    "colon": ("a: b: c", ", line 1, column 5: this is not YAML: a colon within a value, or a line that is indented too far; "),
    "at": ("a: @x", ", line 1, column 4: this is not YAML: a value cannot begin with @; put it in quotes."),
    "brace": ("a: {b: ${c}}", '; put a reference within brackets in quotes ("${...}").'),
    "alias": ("a: *x", ", line 1, column 4: this is not YAML: no anchor (&name) for the alias *x before it."),
    "itself": ("a: &x\n  b: [*x]", ", line 1: this holds itself, by an alias (*name)."),
    "bomb": (LAUGHS, ", line 6: more than 200,000 entries, counting what aliases (*name) stand for."),
    "deep": ("a: " + "[" * 100_000, ", line 1: nested more than 64 deep."),
    "deep by aliases": (
        "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 200)),
        ", line 64: nested more than 64 deep.",
    ),
    "duplicate": ("a: 1\nb: 2\na: 3", ", line 3: the key 'a' is given twice, first in line 1; keep one."),
    "nested duplicate": ("o:\n  r: {coef: 1,\n    coef: 1}", ", line 3: the key 'coef' of o.r is given twice, first in line 2; keep one."),
    "on": ("on: 1", ", line 1: the key 'on' is true in YAML, and keys are texts; for the text, write \"on\"."),
    "one": ("a: {1: 2}", ", line 1: the key '1' is a number in YAML, and keys are texts; for the text, write \"1\"."),
    "null key": ("~: 2", ", line 1: the key '~' is null in YAML, and keys are texts; "),
    "no key": ("a:\n  ? \n  : 2", ", line 2: the key before the colon is null in YAML, and keys are texts."),
    "no value": ("a: {: 2}", ", line 1, column 5: this is not YAML: a value is missing before :."),
    "list key": ("? [a]\n: b", ", line 1: a list or a mapping is given as a key; keys are texts."),
    "python": ("a: 1\nb: !!python/object/apply:os.system [ls]", ", line 2: the tag !!python/object/apply:os.system makes an object, "),
    "binary": ("a: !!binary aGk=", ", line 1: the tag !!binary makes an object, "),
    "own tag": ("a: !mine {}", ", line 1: the tag !mine makes an object, "),
    "integer": ("a: !!int x", ", line 1: 'x' cannot be read as int; put a text in quotes."),
    "long integer": ("a: " + "1" * 5000, "1…' cannot be read as int; put a text in quotes."),
    "merge": ("a: {<<: 3}", ", line 1: << merges mappings (<<: *name), and this is none."),
    "control": ("a: 1\nb: \x01", ", line 2: the control character U+0001; write it as an escape in double quotes."),
    "utf-16": ("a: 1".encode("utf-16"), ": the file is written in UTF-16 or UTF-32; save it as UTF-8."),
    "utf-16 without a mark": ("\na: 1".encode("utf-16-le"), ", line 2: a zero byte, so this is not text in UTF-8; save it as UTF-8."),
    "latin": ("a: 1\nb: é".encode("latin-1"), ", line 2: byte 0xe9 is not UTF-8; save the file as UTF-8."),
    "huge": (b"a: " + b"x" * text_files.MAX_BYTES, ": more than 4 MiB; put rows into a data file and name it (data: {path: ...})."),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_is_no_mapping_of_plain_values_is_one_sentence(file, name):
    content, sentence = WRONG[name]
    path = file(content)
    with pytest.raises(ConfigError) as error:
        yaml_files.read(path, "a suite has data and attacks")
    assert str(error.value).startswith(str(path))
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match=r"small\.yaml"):  # the same door
        Suite.load(path)


def test_values_are_plain_and_those_of_the_loader_before(file):
    """1e-3 is a number, a date is a text, and an entry knows its line; a byte order mark of UTF-8 is no content."""
    text = "a: {b: 1e-3, c: 2024-01-01, d: .inf}\ne: [on, 'on', ~, 1_000]\nf: é\ng: =\n"
    document = yaml_files.read(file("\ufeff" + text), "")
    assert document.values == {
        "a": {"b": 0.001, "c": "2024-01-01", "d": math.inf},
        "e": [True, "on", None, 1000],
        "f": "é",
        "g": "=",
    }
    assert [document.where(*keys).rsplit(" ", 1)[1] for keys in (("a",), ("a", "b"), ("e", 3), ("f", "absent"))] == ["1", "1", "2", "3"]


def test_anchors_aliases_and_merges_are_read_as_pyyaml_reads_them(file):
    text = "base: &b {p: 1, q: [2]}\none: {<<: *b, p: 3, r: 4}\ntwo: {x: 1, <<: [{q: 5, s: 6}, *b]}\nthree: *b\n"
    assert yaml_files.read(file(text), "").values == yaml.safe_load(text)


@pytest.mark.parametrize("name", ["configs", "examples"])
def test_every_file_of_the_repository_is_read_as_the_safe_loader_reads_it(name, request):
    paths = sorted((request.config.rootpath / name).rglob("*.yaml"))
    for path in paths:
        text = path.read_text()
        expected = yaml.load(text, yaml_files._Loader)  # a subclass of the safe loader
        assert yaml_files.read(path, "").values == expected
    assert paths or name == "examples"


def test_what_is_no_file_is_one_sentence(tmp_path):
    (tmp_path / "small.yaml").write_text("a: 1")
    (tmp_path / "loop.yaml").symlink_to(tmp_path / "loop.yaml")
    for path, sentence in (
        (tmp_path / "smal.yaml", f"no such file. Did you mean '{tmp_path / 'small.yaml'}'?"),
        (tmp_path, "this is a folder; give a file in it: loop.yaml, small.yaml."),
        (tmp_path / "small.yaml" / "a", "no such file."),
        (tmp_path / ("x" * 300), "the file cannot be read (File name too long)."),
        ("/dev/zero", "this is not a regular file; give a text file."),
    ):
        with pytest.raises(ConfigError) as error:
            yaml_files.read(path, "")
        assert str(error.value) == f"{path}: {sentence}"


def test_a_file_that_may_not_be_read_is_one_sentence(file, monkeypatch):
    path = file("a: 1")

    def refuse(*args, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refuse)  # the tests may run as root, whom no mode stops
    with pytest.raises(ConfigError, match=r"small.yaml: the file cannot be read \(Permission denied\)\.") as error:
        yaml_files.read(path, "")
    assert isinstance(error.value.__cause__, PermissionError)


def test_the_value_of_an_override_is_read_by_the_same_rules():
    values = [yaml_files.parse_value(text, "override a.b") for text in ("", "1e-3", "[1, x]", "{a: b}", "text")]
    assert values == [None, 0.001, [1, "x"], {"a": "b"}, "text"]
    for text, sentence in (("[", "is not closed"), ("!!python/name:os.system", "makes an object"), ("{a: 1, a: 2}", "given twice")):
        with pytest.raises(ConfigError, match=rf"^override a\.b, line .*{sentence}"):
            yaml_files.parse_value(text, "override a.b")

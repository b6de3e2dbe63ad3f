"""References of a configuration: what they stand for, and the sentence for those that stand for nothing."""

import pytest

from advalign import config
from advalign.errors import ConfigError
from advalign.interpolation import resolve


@pytest.fixture(autouse=True)
def variables(monkeypatch):
    monkeypatch.setenv("OF_THIS_TEST", "value")
    monkeypatch.delenv("NOT_SET", raising=False)


RIGHT = {
    "number": ({"a": "${b}", "b": 3}, {"a": 3}),
    "text": ({"a": "x${b}y${b}", "b": 3}, {"a": "x3y3"}),
    "list": ({"a": "${b}", "b": [1, {"c": 2}]}, {"a": [1, {"c": 2}]}),
    "path": ({"a": "${b.1.c} ${b[0]}", "b": [1, {"c": 2}]}, {"a": "2 1"}),
    "relative": ({"a": {"x": "${.y}", "y": "${..b}"}, "b": 7}, {"a": {"x": 7, "y": 7}}),
    "through a reference": ({"a": "${b.c}", "b": "${d}", "d": {"c": "${e}"}, "e": 1}, {"a": 1}),
    "name from a reference": ({"a": "${${b}}", "b": "c", "c": 5}, {"a": 5}),
    "environment": ({"a": "p/${oc.env:OF_THIS_TEST}"}, {"a": "p/value"}),
    "default": ({"a": "${oc.env:NOT_SET,data}/dev"}, {"a": "data/dev"}),
    "null": ({"a": "${oc.env:NOT_SET,null}"}, {"a": None}),
    "quoted default": ({"a": "${oc.env:NOT_SET,'a, b'}"}, {"a": "a, b"}),
    "reference as default": ({"a": "${oc.env:NOT_SET,${b}}", "b": 4}, {"a": 4}),
    "escaped": ({"a": r"\${b}"}, {"a": "${b}"}),
    "escaped escape": ({"a": r"\\${b}", "b": 1}, {"a": r"\1"}),
    "dollar": ({"a": "$x {y}"}, {"a": "$x {y}"}),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_reference_is_what_it_leads_to(name):
    values, expected = RIGHT[name]
    assert {key: resolve(values)[key] for key in expected} == expected


LETTERS = "abcdefghijklmnopqrstuvwxy"
FOLLOWING = dict(zip(LETTERS, LETTERS[1:] + "z", strict=True))

WRONG = {
    "missing": (
        {"args": {}, "a": "${arg}"},
        r"a: ${arg}: no entry 'arg'. Known: a, args. Did you mean 'args'? An environment variable is ",
    ),
    "index": ({"a": "${b.2}", "b": [1, 2]}, "a: ${b.2}: no entry '2'. Known: 0, 1."),
    "inside a number": ({"a": "${b.c}", "b": 1}, "a: ${b.c}: no entry 'c'. Known: none."),
    "itself": ({"a": "${a}"}, "a: the references ${a} -> ${a} lead in a circle."),
    "circle": ({"a": "${b}", "b": "x${c}", "c": "${b}"}, "c: the references ${b} -> ${c} -> ${b} -> ${b} lead in a circle."),
    "mapping that holds it": ({"a": {"b": "${a}"}}, "a.b: the references ${a} -> ${a} lead in a circle."),
    "unset": ({"a": "${oc.env:NOT_SET}"}, "a: ${oc.env:NOT_SET} needs the environment variable NOT_SET, which is not set; export NOT_SET="),
    "function": ({"a": "${oc.decode:x}"}, "a: no function 'oc.decode' in a reference; known: oc.env (${oc.env:NAME,default})."),
    "not closed": ({"a": "${b"}, "a: '${b' is not closed with }; write \\${ for the characters themselves."),
    "list in a text": ({"a": "x${b}", "b": [1]}, "a: a reference within a text leads to a mapping or a list; "),
    "chain": ({f"k{i}": f"${{k{i + 1}}}" for i in range(60)} | {"k60": 1}, "more than 50 references lead to each other."),
    "texts that double": (
        {x: f"${{{y}}}${{{y}}}" for x, y in FOLLOWING.items()} | {"z": "lol"},
        "references make the configuration larger than 1,000,000 characters and entries.",
    ),
    "lists that double": (
        {x: [f"${{{y}}}"] * 2 for x, y in FOLLOWING.items()} | {"z": "lol"},
        "references make the configuration larger than 1,000,000 characters and entries.",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_reference_that_leads_nowhere_is_one_sentence(name):
    values, sentence = WRONG[name]
    with pytest.raises(ConfigError) as error:
        resolve(values, lambda *keys: "small.yaml, line 3")
    assert str(error.value).startswith("small.yaml, line 3: ")
    assert sentence in str(error.value)


def test_a_reference_follows_an_override_and_is_named_with_its_line(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text("args:\n  seed: 3\n  max_steps: ${args.seed}\n  output_dir: ${args.nowhere}\n")
    assert config.read(path, ["args.seed=5", "args.output_dir=x"])["args"] == {"seed": 5, "max_steps": 5, "output_dir": "x"}
    with pytest.raises(ConfigError, match=r"small\.yaml, line 4: args\.output_dir: \$\{args\.nowhere\}: no entry 'nowhere'\. Known: max"):
        config.read(path)


def test_what_a_reference_leads_to_is_copied():
    values = resolve({"a": "${b}", "b": {"c": [1]}})
    values["a"]["c"].append(2)
    assert values["b"] == {"c": [1]}

"""Bad inputs of commands that read results, and kinds that are misspelt."""

from __future__ import annotations

import json
from collections.abc import Iterator

from inputs.base import RUN, changed, text
from inputs.row import Row, command

from advalign import plugins

CLASSIFIER = "models/classifier"
EVAL = ("eval", CLASSIFIER, "--suite", "suite.yaml")


def result_rows() -> Iterator[Row]:
    """`advalign compare` on folders that hold no results, or others."""
    line = {
        "example": "s0",
        "attack": "a",
        "status": "failed",
        "attempts": 1,
        "broken": 0,
        "queries": 1,
        "seconds": 0.0,
        "distance": 0.0,
        "before": "",
        "after": "",
        "note": "",
    }
    good = "".join(json.dumps({**line, "example": f"s{i}"}) + "\n" for i in range(4))
    for first in ("absent", "models", "rows.jsonl", "", "."):
        yield command("compare", first, "models", says=first or "compare")
    for name, content, says in (
        ("nothing in it", "", "a has none"),
        ("no JSON", "nonsense\n", "results.jsonl"),
        ("a list", "[]\n", "results.jsonl"),
        ("null", "null\n", "results.jsonl"),
        ("no status", json.dumps({k: v for k, v in line.items() if k != "status"}) + "\n", "status"),
        ("another status", json.dumps(line | {"status": "won"}) + "\n", "won"),
        ("a number as example", json.dumps(line | {"example": 3}) + "\n", "example"),
        ("a field of another version", json.dumps(line | {"colour": "red"}) + "\n", "colour"),
        ("bytes", b"\xff\xfe\x00\x01", "results.jsonl"),
        ("a line twice", good + good, "s0"),
    ):
        content = content if isinstance(content, bytes) else content.encode()
        yield command(
            "compare",
            "a",
            "b",
            says=says,
            files={"a/results.jsonl": content, "b/results.jsonl": good},
            shown=f"compare, results.jsonl: {name}",
        )
    for name, content in (("no JSON", "nonsense"), ("a list", "[]"), ("null", "null"), ("bytes", b"\xff\xfe")):
        content = content if isinstance(content, bytes) else content.encode()
        files = {"a/results.jsonl": good, "a/suite.json": content, "b/results.jsonl": good}
        yield command("compare", "a", "b", says="suite.json", files=files, shown=f"compare, suite.json: {name}")
    other = "".join(json.dumps({**line, "example": f"t{i}"}) + "\n" for i in range(4))
    yield command(
        "compare",
        "a",
        "b",
        says="in common",
        files={"a/results.jsonl": good, "b/results.jsonl": other},
        shown="compare, no example in common",
    )
    other = good.replace('"attack": "a"', '"attack": "b"')
    yield command(
        "compare",
        "a",
        "b",
        says="no attack in common",
        files={"a/results.jsonl": good, "b/results.jsonl": other},
        shown="compare, no attack in common",
    )
    yield command("compare", "a", "a", "--output", "rows.jsonl", says="rows.jsonl", files={"a/results.jsonl": good})
    for name, content in (
        ("results.jsonl", "nonsense\n"),
        ("suite.json", "nonsense"),
        ("results.jsonl", good),
        ("suite.json", "[]"),
        ("results.jsonl", b"\xff\xfe"),
    ):
        shown = f"eval --output of a folder with {name}: {str(content)[:20]}"
        yield command(*EVAL, "--output", "out", says=("out",), files={f"out/{name}": content}, shown=shown)


def kind_rows() -> Iterator[Row]:
    """Every group of plugins misspelt in `list`, every kind misspelt in a run."""
    for group in plugins.GROUPS:
        yield command("list", group[:-1], says=(group[:-1], group))
    for kind in ("sft", "grpo", "dpo", "kl", "classify", "consistency", "discriminate", "kto"):
        wrong = kind[:-1] + "x"
        files = {"run.yaml": text(changed(RUN, {"objectives.imitate.kind": wrong}))}
        yield command("show", "run.yaml", says=("objectives.imitate", wrong), files=files, shown=f"show, objectives.imitate.kind: {wrong}")


TABLES = {"results": result_rows, "kinds": kind_rows}

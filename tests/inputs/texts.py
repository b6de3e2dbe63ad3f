"""Bad inputs as YAML: texts that are none or say something twice, sections of another shape."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from inputs.base import DROPPED, RUN, SUITE, text
from inputs.fields import run_row
from inputs.row import Row, command

GOOD = text(RUN)

YAML: tuple[tuple[str, str | bytes, str], ...] = (
    ("empty", "", "run.yaml"),
    ("a comment only", "# nothing\n", "run.yaml"),
    ("null", "null\n", "run.yaml"),
    ("a list", "- learners\n- sources\n", "run.yaml"),
    ("a word", "learners\n", "run.yaml"),
    ("a number", "3\n", "run.yaml"),
    ("two documents", GOOD + "---\n" + GOOD, "run.yaml"),
    ("a section twice", GOOD + "args: {seed: 1}\n", "args"),
    ("a learner twice", GOOD.replace("learners:\n", "learners:\n  policy: {model: 'scratch:tiny'}\n", 1), "policy"),
    ("a field twice", GOOD.replace("    source: chat\n", "    source: chat\n    source: write\n", 1), "source"),
    ("a field twice in braces", GOOD + "rollout: {kind: hf, kind: hf}\n", "rollout"),
    ("a tab", GOOD.replace("  policy:\n", "\tpolicy:\n", 1), "run.yaml"),
    ("a tab between key and value", "learners:\n\t- a\n", "run.yaml"),
    ("an open bracket", GOOD + "gates: {a: [\n", "run.yaml"),
    ("an open quote", GOOD + "gates: 'a\n", "run.yaml"),
    ("wrong indentation", GOOD.replace("  policy:\n", " policy:\n", 1), "run.yaml"),
    ("no space after the colon", "learners:{policy: 3}\n", "learners:{policy"),
    ("an unknown alias", GOOD + "gates: *nothing\n", "nothing"),
    ("an alias of itself", "learners: &a\n  policy: *a\n", "run.yaml"),
    ("a tag of Python", "learners: !!python/object/apply:os.system ['true']\n", "python/object"),
    ("a tag of Python for a name", "learners: !!python/name:os.system\n", "python/name"),
    ("an unknown tag", "learners: !mine {a: 1}\n", "!mine"),
    ("not UTF-8", b"learners: \xff\xfe\n", "UTF-8"),
    ("latin-1", "learners: {\xfcber: 3}\n".encode("latin-1"), "UTF-8"),
    ("UTF-16", GOOD.encode("utf-16"), "run.yaml"),
    ("null bytes", b"\x00" * 20, "run.yaml"),
    ("a control character", "learners: {a: \x07}\n", "run.yaml"),
    ("JSON that ends early", '{"learners": {"policy": {"model": ', "run.yaml"),
    ("a percent sign", "%learners\n", "run.yaml"),
    ("a variable that is not set", GOOD.replace("'task:constraints'", "x").replace("seed: 0", "seed: ${oc.env:NOWHERE_SET}"),
        "NOWHERE_SET"),
    ("an interpolation of nothing", GOOD.replace("seed: 0", "seed: ${nothing.there}"), "nothing.there"),
    ("an interpolation of itself", GOOD.replace("seed: 0", "seed: ${args.seed}"), "args.seed"),
    ("an unknown resolver", GOOD.replace("seed: 0", "seed: ${oc.exec:ls}"), "oc.exec"),
    ("an open interpolation", GOOD.replace("seed: 0", "seed: '${'"), "${"),
    ("a value that is missing", GOOD.replace("seed: 0", "seed: ???"), "seed"),
    ("a merge key", GOOD.replace("seed: 0", "'<<': {seed: 1}"), "<<"),
    ("a date", GOOD.replace("seed: 0", "seed: 2026-01-01"), "args.seed"),
    ("octal", GOOD.replace("seed: 0", "seed: 0o17x"), "args.seed"),
    ("a nested anchor bomb", "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(f"{c}: &{c} [{','.join([f'*{p}'] * 9)}]\n" for p, c in zip("abcdefg",
        "bcdefgh", strict=True)), "run.yaml"),
    ("10,000 nested brackets", "learners: " + "[" * 10000, "run.yaml"),
    ("a number as a section", "3: {a: 1}\n", "3"),
    ("true as a section", "true: {a: 1}\n", "true"),
    ("null as a section", GOOD + "null: 3\n", "null"),
    ("a list as a key", "? [a, b]\n: 3\n", "run.yaml"),
    ("a shell script", "#!/bin/sh\nrm -rf x\n", "run.yaml"),
    ("HTML", "<html><body>learners</body></html>\n", "run.yaml"),
)  # fmt: skip
"""(what, the text, what is said)"""


def yaml_rows() -> Iterator[Row]:
    """Texts in place of a run and of a suite."""
    for name, content, says in YAML:
        verb = "show" if len(name) % 2 else "train"
        yield command(verb, "run.yaml", says=says, files={"run.yaml": content}, shown=f"{verb}, a YAML file: {name}")
    good = text(SUITE)
    for name, content, says in YAML[:30]:
        if isinstance(content, str) and content.startswith(GOOD):
            content, says = good + content.removeprefix(GOOD), says if says != "args" else "args"
        says = says.replace("run.yaml", "suite.yaml")
        content = content if isinstance(content, bytes) else content.replace(GOOD, good)
        if content.strip() == good.strip() or GOOD[:200] in str(content):
            continue
        verb = ("eval", "models/classifier") if len(name) % 2 else ("compare", "models/classifier", "models/classifier")
        yield command(
            *verb, "--suite", "suite.yaml", says=says, files={"suite.yaml": content}, shown=f"{verb[0]} --suite, a YAML file: {name}"
        )
    for name, content, says in (
        ("a field twice", good + "seed: 1\nseed: 2\n", "seed"),
        ("an attack twice", good.replace("attacks:\n", "attacks:\n  bugs: {kind: words}\n"), "bugs"),
        ("an interpolation of nothing", good + "seed: ${x.y}\n", "x.y"),
        ("a variable that is not set", good + "seed: ${oc.env:NOWHERE_SET}\n", "NOWHERE_SET"),
        ("a value that is missing", good + "seed: ???\n", "seed"),
    ):
        yield command(
            "eval", "models/classifier", "--suite", "suite.yaml", says=says, files={"suite.yaml": content}, shown=f"eval --suite, {name}"
        )


SHAPES: tuple[dict[Any, Any], ...] = (
    *({section: value} for section in RUN for value in (3, "x", [1] if section != "stages" else {"a": 1})),
    *({section: None} for section in ("learners", "sources", "objectives", "stages", "args", "rollout")),
    *({section: DROPPED} for section in ("learners", "sources", "objectives")),
    *({section: {}} for section in ("learners", "sources", "objectives")),
    *({section: {"a": None}} for section in RUN if section not in ("stages", "rollout", "args")),
    *({"stages": value} for value in ([None], [3])),
)
"""Sections of another shape, missing or empty."""


def shape_rows() -> Iterator[Row]:
    """Each is answered with the name of its section, and of its entry where it has one."""
    for changes in SHAPES:
        ((section, value),) = changes.items()
        entry = (
            section[:-1]
            if value == {}
            else f"{section}.a"
            if value == {"a": None}
            else "stages.0"
            if isinstance(value, list) and section == "stages"
            else section
        )
        yield run_row({**changes, **({} if section == "args" else {"args": {"max_steps": 1}})}, entry)


TABLES = {"YAML": yaml_rows, "shapes": shape_rows}

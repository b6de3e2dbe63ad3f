"""The catalogue of every kind: `python -m advalign.catalogue > docs/catalogue.md`.

Formulas are the first docstring lines of the classes, meanings are the docstring lines under the fields.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
import typing
from collections.abc import Iterator
from functools import cache
from typing import Any

from advalign import builder, checked, names, plugins
from advalign.config import SECTIONS
from advalign.evaluation.suites import certified
from advalign.evaluation.suites.suite import Suite
from advalign.training.evaluate import EVALUATIONS
from advalign.training.schedule import Follow

INTRODUCTION = """# Catalogue

Every kind of every plugin group, with its fields. This page is generated: `make catalogue`. The options that several kinds share, and the
other sections of a configuration, are at its end."""

LONGEST = 60  # characters of a default


@dataclasses.dataclass(frozen=True)
class Field:
    """One row of a table."""

    name: str
    """Name in Python and in YAML."""
    values: str
    """What it may hold, in words."""
    default: str
    """Default as text, or "required"."""
    meaning: str
    """The docstring line under the field; empty if there is none."""

    def row(self) -> str:
        default = self.default if self.default == "required" else f"`{self.default}`"
        cells = (f"`{self.name}`", self.values, default, self.meaning)
        return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def text() -> str:
    """The whole page."""
    parts = [INTRODUCTION, *(part for group in plugins.GROUPS for part in _group(group))]
    parts += ["## Options", "What fields of several kinds hold.", *(part for cls in options() for part in _class(cls))]
    parts += ["## Sections of a run", *(part for cls in sections() for part in _class(cls))]
    parts += ["## Suites and certificates", *(part for cls in suites() for part in _class(cls))]
    return "\n\n".join(parts) + "\n"


def fields(cls: type) -> list[Field]:
    """The fields of a dataclass that its constructor takes, inherited ones first."""
    rows = []
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if field.init:
            meaning = next((line for line in _declarations(cls, field.name) if line), "")
            rows.append(Field(field.name, checked.words(checked.fields(cls)[field.name]), _default(field), meaning))
    return rows


def options() -> list[type]:
    """Dataclasses that fields of plugins take, by name."""
    classes: set[type] = set()
    for group in plugins.GROUPS:
        for cls in plugins.all(group):
            classes |= set(_nested(cls))
    return sorted(classes, key=lambda cls: cls.__name__)


def sections() -> list[type]:
    """The dataclasses of a run's sections that are no plugins."""
    entries = [names.options((typing.get_args(section) or (section,))[-1])[0] for section in SECTIONS.values()]
    entries = [entry for entry in entries if entry not in builder.GROUP_OF]
    nested = [cls for entry in entries for cls in _nested(entry) if cls not in options()]
    return [*dict.fromkeys([*entries, *EVALUATIONS.values(), Follow, *nested])]


def suites() -> list[type]:
    """The dataclasses of a suite that are no plugins."""
    nested = [cls for cls in _nested(Suite) if cls not in options()]
    return [*dict.fromkeys([Suite, *nested, *certified.KINDS.values()])]


def _group(group: str) -> Iterator[str]:
    """A heading, the fields all kinds share, and every kind with the fields it adds or gives another default."""
    interface = next(base for base, name in builder.GROUP_OF.items() if name == group)
    shared: list[Field] = fields(interface) if dataclasses.is_dataclass(interface) else []  # type: ignore[arg-type]
    yield f"## {group.capitalize()}"
    yield plugins.group_summary(group)
    if shared:
        yield "Fields of every kind:"
        yield _table(shared)
    for kind in plugins.kinds(group):
        cls = plugins.resolve(group, kind)
        yield f"### {kind}"
        yield f"`{cls.__name__}` · {plugins.summary(cls)}"
        if added := [field for field in fields(cls) if field not in shared]:
            yield _table(added)


def _class(cls: type) -> Iterator[str]:
    yield f"### {cls.__name__}"
    yield plugins.summary(cls)
    yield _table(fields(cls))


def _table(rows: list[Field]) -> str:
    return "\n".join(["| field | values | default | meaning |", "|---|---|---|---|", *(row.row() for row in rows)])


def _nested(cls: type) -> Iterator[type]:
    """Dataclasses that are no plugins, among the annotations of a class."""
    for hint in typing.get_type_hints(cls).values():
        for option in typing.get_args(hint) or (hint,):
            if isinstance(option, type) and dataclasses.is_dataclass(option) and option not in builder.GROUP_OF:
                yield option


def _declarations(cls: type, name: str) -> list[str]:
    return [_declared(owner)[name] for owner in cls.__mro__ if name in _declared(owner)]


@cache
def _declared(cls: type) -> dict[str, str]:
    """{field: docstring line} of a class without its bases, read from its file."""
    if cls.__module__ == "builtins" or not dataclasses.is_dataclass(cls):
        return {}
    tree = ast.parse(inspect.getsource(sys.modules[cls.__module__]))
    body = next(node.body for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == cls.__name__)
    declared = {}
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            doc = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
            declared[node.target.id] = " ".join(str(doc).split())
    return declared


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return _short(field.default_factory())
    return "required" if field.default is dataclasses.MISSING else _short(field.default)


def _short(value: Any) -> str:
    """A value as text: a dataclass with what differs from its defaults, and not more than a few words of a list."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        shown = [(f, vars(value)[f.name]) for f in dataclasses.fields(value) if f.init]
        changed = [f"{f.name}={_short(v)}" for f, v in shown if v != f.default]
        value_text = f"{type(value).__name__}({', '.join(changed)})"
    else:
        value_text = repr(value)
    return value_text if len(value_text) <= LONGEST else f"{value_text[: LONGEST - 1]}…"


if __name__ == "__main__":
    print(text(), end="")

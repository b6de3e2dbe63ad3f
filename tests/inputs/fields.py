"""Bad inputs that follow from declarations: every field of every plugin and section, with values that its annotation does not allow."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from inputs.base import DATA, RUN, SUITE, changed, text
from inputs.row import Row, call, command

from advalign import builder, config, plugins
from advalign.evaluation.suites.certificates import Masking, Smoothing
from advalign.evaluation.suites.suite import Suite
from advalign.training.evaluate import EVALUATIONS
from advalign.types import Budget, Sampling

OF_TYPE: dict[Any, Any] = {int: 8, float: 0.5, str: "a", bool: True}
"""Values of fields that have no default and no name of their own."""

WRONG: dict[type, tuple[Any, ...]] = {
    bool: ("maybe", 2, [], None, math.nan, 0.5),
    int: ("many", math.nan, 1.5, True, [1], None, {"a": 1}, math.inf, -(10**30)),
    float: ("x", math.nan, [0.1], True, None, {"a": 1}, "1,5"),
    str: (3, ["a"], None, {"a": "b"}, math.nan, True),
    tuple: (3, math.nan, True, {"a": 1}, [{}], [None], [[]]),
    Mapping: (3, "x", [1], math.nan, True),
}
"""Values that are wrong wherever a field takes only this type."""

FILLED: dict[str, Any] = {
    "source": "chat", "sources": ["chat"], "sampled": "write", "real": "chat", "learner": "policy", "data": DATA,
    "discriminator": "discriminator",
    "game": "write", "view": "clean", "rewards": [{"kind": "format", "pattern": "a"}], "fn": "math.sqrt", "pattern": "a",
    "model": "scratch:tiny",
    "attack": {"kind": "gcg"}, "site": "layer:0", "url": "http://127.0.0.1:9/v1",
    "advantage": "group", "discrete": "characters", "continuous": "pgd", "adversary": "pgd", "harmful": DATA, "harmless": DATA,
    "text": "a", "steps": 1,
    "target": 3, "defender": "policy", "shots": DATA, "max_length": 8, "recipe": "pruthi", "terms": ["a"], "words": ["a"],
}  # fmt: skip
"""Values of fields that have no default."""


def simple_types(annotation: Any) -> set[type] | None:
    """The types that an annotation allows; None where it takes anything, or what is built."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return simple_types(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        parts = [simple_types(option) for option in typing.get_args(annotation)]
        return None if None in parts else set().union(*[part for part in parts if part is not None])
    if annotation in (bool, int, float, str, type(None)):
        return {annotation}
    if origin in (tuple, list) or origin is Sequence:
        return {tuple}
    if origin is Mapping or origin is dict:
        return {Mapping}
    if isinstance(annotation, type) and (annotation in builder.GROUP_OF or dataclasses.is_dataclass(annotation)):
        return {Mapping}
    return None


def wrong_values(annotation: Any) -> list[Any]:
    """Values that no part of an annotation allows."""
    allowed = simple_types(annotation)
    if allowed is None:
        return []
    values = list(WRONG[next(t for t in (tuple, Mapping, str, float, int, bool) if t in allowed)])
    return [value for value in values if not any(_fits(value, kind) for kind in allowed)]


def _fits(value: Any, kind: type) -> bool:
    if kind is type(None):
        return value is None
    if kind is float:
        return isinstance(value, float | int) and not isinstance(value, bool) and not math.isnan(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is Mapping:
        return isinstance(value, Mapping | str)
    if kind is tuple:
        return isinstance(value, list)
    return isinstance(value, kind)


def fields_of(cls: Any) -> Iterator[tuple[str, Any]]:
    """(name, annotation) of the fields that a mapping may give."""
    hints = typing.get_type_hints(cls)
    for declared in dataclasses.fields(cls):
        if declared.init:
            yield declared.name, hints[declared.name]


def required(cls: Any) -> dict[str, Any]:
    """Values of the fields without default."""
    missing = dataclasses.MISSING
    names = [f.name for f in dataclasses.fields(cls) if f.init and f.default is missing and f.default_factory is missing]
    hints = typing.get_type_hints(cls)
    return {name: FILLED[name] if name in FILLED else OF_TYPE.get(hints[name], name) for name in names}


PLACES: dict[str, str] = {
    "objectives": "objectives.imitate",
    "adversaries": "adversaries.pgd",
    "advantages": "sources.write.advantage",
    "rewards": "sources.write.rewards.0",
    "rollout": "rollout",
    "sources": "sources.extra",
    "tasks": "sources.contrast.perturb",
}
"""{group: where a run holds a plugin of it}"""
SUITE_PLACES = {"attacks": "attacks.bugs", "judges": "judge"}
SECTIONS: dict[str, Any] = {
    "learners.policy": config.Learner,
    "frozen.average": config.Frozen,
    "stages.1": config.Stage,
    "gates.discriminator": config.Gate,
    "args": config.TrainingArguments,
    "evaluations.heldout": EVALUATIONS["answers"],
    "sources.write.sampling": Sampling,
    "schedules.0": config.Ramp,
}


def section_rows() -> Iterator[Row]:
    """Sections of a run, every field twice."""
    for path, cls in SECTIONS.items():
        for number, (name, annotation) in enumerate(fields_of(cls)):
            values = wrong_values(annotation)
            for offset in range(min(2, len(values))):
                value = values[(number + offset * 2) % len(values)]
                keys: Any = f"{path}.{name}"
                if path.startswith("schedules"):
                    keys = ("schedules", "objectives.robust.coef", name)
                yield run_row({keys: value}, path.partition(".")[0])


def plugin_rows() -> Iterator[Row]:
    """Plugins of a run and of a suite: every field of every kind once, and what several kinds inherit once per group."""
    seen: dict[tuple[str, str, Any], int] = {}
    for group, place in (PLACES | SUITE_PLACES).items():
        for kind in plugins.kinds(group):
            if kind == "textattack":
                continue
            cls = plugins.resolve(group, kind)
            for name, annotation in fields_of(cls):
                values = wrong_values(annotation)
                key = (group, name, str(annotation))
                number = seen[key] = seen.get(key, -1) + 1
                if not values or number > 1:
                    continue
                value = values[(number * 3 + len(seen)) % len(values)]
                entry = {"kind": kind, **required(cls), name: value}
                says = f"{place}.{name}"
                if group in PLACES:
                    yield run_row({place: entry}, says, shown=f"{place}: {{kind: {kind}, {name}: {_shown(value)}}}")
                else:
                    yield suite_row({place: entry}, says, shown=f"{place}: {{kind: {kind}, {name}: {_shown(value)}}}")


def suite_rows() -> Iterator[Row]:
    """Fields of a suite, of its budget and of its certificates."""
    for path, cls in (("", Suite), ("budget", Budget), ("sampling", Sampling)):
        for number, (name, annotation) in enumerate(fields_of(cls)):
            values = wrong_values(annotation)
            for offset in range(min(2, len(values))):
                value = values[(number + offset * 2) % len(values)]
                yield suite_row({f"{path}.{name}".strip("."): value}, f"{path}.{name}".strip("."))
    for kind, cls in (("smoothing", Smoothing), ("ranmask", Masking)):
        for number, (name, annotation) in enumerate(fields_of(cls)):
            if values := wrong_values(annotation):
                entry = {"kind": kind, **required_certificate(cls), name: values[number % len(values)]}
                yield suite_row({"certified.c": entry}, f"certified.c.{name}")


def required_certificate(cls: Any) -> dict[str, Any]:
    return {"sigma": 0.1} if cls is Smoothing else {"rate": 0.3}


def python_rows() -> Iterator[Row]:
    """The same classes built by hand: one field of every class, in turn, with a value that is never right."""
    turn = 0
    for group in plugins.GROUPS:
        for kind in plugins.kinds(group):
            if kind == "textattack":
                continue
            cls = plugins.resolve(group, kind)
            options = [(name, value) for name, annotation in fields_of(cls) for value in wrong_values(annotation)]
            if not options:
                continue
            for _ in range(min(2, len(options))):
                turn += 7
                name, value = options.pop(turn % len(options))
                yield call(cls, says=name, shown=f"{cls.__name__}({name}={value!r})", **{**_built(cls), name: value})


def _built(cls: Any) -> dict[str, Any]:
    """Objects for the fields without default."""
    hints = typing.get_type_hints(cls)
    return {name: builder.build(hints[name], value, name) for name, value in required(cls).items()}


def run_row(changes: Mapping[Any, Any], *says: str, verb: str = "train", shown: str | None = None, **options: Any) -> Row:
    """A run with changes."""
    tree = changed(RUN, {"args.max_steps": 1, **changes})
    shown = shown or "; ".join(f"{path if isinstance(path, str) else '.'.join(path)}: {_shown(value)}" for path, value in changes.items())
    return command(verb, "run.yaml", says=says, files={"run.yaml": text(tree)}, shown=f"{verb}, {shown}", **options)


def suite_row(changes: Mapping[Any, Any], *says: str, shown: str | None = None, model: str = "models/classifier", **options: Any) -> Row:
    """A suite with changes."""
    shown = shown or "; ".join(f"{path}: {_shown(value)}" for path, value in changes.items())
    files = {"suite.yaml": text(changed(SUITE, changes))}
    return command("eval", model, "--suite", "suite.yaml", says=says, files=files, shown=f"eval, suite, {shown}", **options)


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    return ".nan" if isinstance(value, float) and math.isnan(value) else repr(value) if not isinstance(value, bool) else str(value).lower()


TABLES = {"sections": section_rows, "plugins": plugin_rows, "suites": suite_rows, "Python": python_rows}

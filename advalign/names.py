"""What a field names, declared where the field is: `learner: LearnerName = "policy"`, `metric: MetricName`.

`references` walks dataclasses and yields every name that is declared so; `training/run_names.py` resolves them before anything is loaded.
`EVERY_STEP` and `AT_START` say when a field is read, and so whether a stage or a schedule may change it.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from advalign.errors import ConfigError
from advalign.ranges import Range

LEARNERS, SOURCES, OBJECTIVES, ADVERSARIES, FROZEN, STAGES = "learners", "sources", "objectives", "adversaries", "frozen", "stages"


class Naming(Range):
    """A text that is the name of something."""

    words: str = "a name"
    """In an error."""

    def check(self, value: Any, path: str) -> None:
        if not value.strip():
            raise ConfigError(f"{path}: {value!r} given; {self.words} is expected.")


@dataclass(frozen=True, kw_only=True)
class NameOf(Naming):
    """The value is the name of something in the same run."""

    sections: tuple[str, ...]
    """Sections of the run whose entries it may name."""
    label: str
    """What it names, in an error."""
    heads: tuple[str, ...] = ()
    """Heads that the named network may have; empty: any."""
    role: str = "this"
    """What needs such a head, in an error."""
    also: tuple[str, ...] = ()
    """Values that name no entry and are allowed."""
    samples: bool = False
    """Whether it must be a source of a policy's responses."""
    when: tuple[str, str] | None = None
    """(field beside it, its value) under which it is read; None: always."""

    @property
    def words(self) -> str:  # type: ignore[override]
        """What it names, in an error."""
        return f"the name of {'an' if self.label[0] in 'aeiou' else 'a'} {self.label}"


@dataclass(frozen=True)
class MetricOf(Naming):
    """The value is the name of a number in the run's log."""

    words = "the name of a metric"


@dataclass(frozen=True)
class PathOfSetting(Naming):
    """The value is a dotted path to a setting that changes during a run."""

    words = "a dotted path to a setting"


@dataclass(frozen=True)
class Read:
    """When a field is read."""

    every_step: bool
    """In every step, so that a stage or a schedule may change it; else once, at the start."""


EVERY_STEP, AT_START = Read(True), Read(False)

LEARNER = NameOf(sections=(LEARNERS,), label="learner")
NETWORK = NameOf(sections=(LEARNERS, FROZEN), label="learner")
SAMPLER = dataclasses.replace(NETWORK, heads=("policy",), role="who samples")
SCORER = dataclasses.replace(NETWORK, heads=("score",), role="a reward")
SOURCE = NameOf(sections=(SOURCES,), label="source")
COPY = NameOf(sections=(FROZEN,), label="frozen copy")
VIEW = NameOf(sections=(ADVERSARIES, FROZEN), label="view (clean, an adversary or a frozen copy)", also=("clean",))

LearnerName = Annotated[str, LEARNER]
"""A learner."""
SamplerName = Annotated[str, SAMPLER]
"""A learner or frozen copy that writes text: head `policy`."""
LearnerSamplerName = Annotated[str, dataclasses.replace(LEARNER, heads=("policy",), role="who samples")]
"""A learner that writes text: head `policy`."""
ScorerName = Annotated[str, SCORER]
"""A learner or frozen copy that scores: head `score`."""
ScoredName = Annotated[str, dataclasses.replace(LEARNER, heads=("score",), role="a discriminator")]
"""A learner that is evaluated as a discriminator: head `score`."""
AnsweringName = Annotated[str, dataclasses.replace(LEARNER, heads=("policy", "classifier"), role="an evaluation of answers")]
"""A learner that is evaluated by its answers: head `policy` or `classifier`."""
SourceName = Annotated[str, SOURCE]
"""A source."""
CopyName = Annotated[str, COPY]
"""A frozen copy."""
ViewName = Annotated[str, VIEW]
"""The clean view, an adversary or a frozen copy."""
SampledName = Annotated[str, dataclasses.replace(SOURCE, samples=True)]
"""A source of a policy's responses."""
ObjectiveName = Annotated[str, NameOf(sections=(OBJECTIVES,), label="objective")]
"""An objective."""
StageName = Annotated[str, NameOf(sections=(STAGES,), label="stage")]
"""A stage that has a name."""
MetricName = Annotated[str, MetricOf()]
"""A number in the log."""
SettingPath = Annotated[str, PathOfSetting()]
"""A dotted path to a setting."""

Mark = NameOf | MetricOf | PathOfSetting


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A name that stands in a field."""

    path: str
    """Where it stands."""
    name: str
    """The name."""
    mark: Mark
    """What it names."""


def references(value: Any, path: str = "") -> Iterator[Reference]:
    """Every name in a dataclass and in those below it whose field declares what it names and reads it."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return
    for field, hint in declared(type(value)).items():
        unread = {mark for mark in marks(hint) if isinstance(mark, NameOf) and mark.when and getattr(value, mark.when[0]) != mark.when[1]}
        if not unread:
            yield from _inside(hint, getattr(value, field), f"{path}.{field}" if path else field)


def names_of(value: Any, section: str) -> tuple[str, ...]:
    """The entries of a section that a dataclass names, each once."""
    entries = ((r.name, r.mark) for r in references(value))
    return tuple(dict.fromkeys(name for name, mark in entries if isinstance(mark, NameOf) and section in mark.sections))


def changes_during_a_run(cls: type, field: str, default: bool) -> bool:
    """Whether a field is read in every step; `default` where it does not say. Names of learners and sources are resolved at the start."""
    entries = marks(declared(cls)[field])
    if any(isinstance(mark, NameOf) and {LEARNERS, SOURCES} & set(mark.sections) for mark in entries):
        return False
    return next((mark.every_step for mark in entries if isinstance(mark, Read)), default)


@functools.cache
def declared(cls: type) -> Mapping[str, Any]:
    """{field: its annotation, with what it declares} of a dataclass."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}  # type: ignore[arg-type]


def options(hint: Any) -> tuple[Any, ...]:
    """The types that an annotation allows, without what it declares about them."""
    if typing.get_origin(hint) is Annotated:
        return options(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(option for argument in typing.get_args(hint) for option in options(argument))
    return (hint,)


def marks(hint: Any) -> tuple[Any, ...]:
    """What an annotation declares, also about the types of a union."""
    if typing.get_origin(hint) is Annotated:
        inner, *entries = typing.get_args(hint)
        return (*entries, *marks(inner))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(mark for option in typing.get_args(hint) for mark in marks(option))
    return ()


def is_path(hint: Any) -> bool:
    """Whether an annotation declares a path of a setting."""
    return any(isinstance(mark, PathOfSetting) for mark in marks(hint))


def _inside(hint: Any, value: Any, path: str) -> Iterator[Reference]:
    """The names that a value of an annotation holds."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if value is None or hint is Any:
        return
    if origin is Annotated:
        entries = [mark for mark in arguments[1:] if isinstance(mark, Mark)]
        yield from (Reference(path=path, name=value, mark=mark) for mark in entries if isinstance(value, str))
        yield from _inside(arguments[0], value, path)
    elif origin in (typing.Union, types.UnionType):
        for option in arguments:
            if not _is_text(option) or isinstance(value, str):
                yield from _inside(option, value, path)
    elif isinstance(value, Mapping) and isinstance(origin, type) and issubclass(origin, Mapping):
        for key, entry in value.items():
            yield from _inside(arguments[0], key, path)
            yield from _inside(arguments[1], entry, f"{path}.{key}")
    elif isinstance(value, list | tuple) and isinstance(origin, type) and issubclass(origin, Sequence):
        for index, entry in enumerate(value):
            yield from _inside(arguments[0], entry, path if isinstance(entry, str) else f"{path}.{index}")
    elif isinstance(described := origin or hint, type) and isinstance(value, described):
        yield from references(value, path)


def _is_text(hint: Any) -> bool:
    return options(hint) == (str,)

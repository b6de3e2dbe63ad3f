"""Every name in a run, resolved before anything is loaded: what fields declare that they name (`advalign/names.py`)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from advalign.errors import ConfigError, unknown
from advalign.names import ADVERSARIES, FROZEN, LEARNERS, SOURCES, STAGES, NameOf, Reference, references
from advalign.plugins import kind_of
from advalign.training.run_spec import RunSpec
from advalign.training.schedule import Stage
from advalign.types import RolloutRows

CLEAN = "clean"


def check_names(spec: RunSpec, evaluations: Mapping[str, Any], heads: Mapping[str, str]) -> None:
    """Raises ConfigError for a name of nothing, and for a network whose head is not what its place needs.

    `heads`: {learner: the head of its network}.
    """
    entries: dict[str, Collection[str]] = {**spec.config, FROZEN: spec.frozen, STAGES: [stage.name for stage in spec.stages if stage.name]}
    _check_spelling(spec)
    _check_unique(spec)
    head_of = {name: heads.get(copy.learner, "") for name, copy in spec.frozen.items()} | dict(heads)
    for name in spec.gates:
        if name not in entries[LEARNERS]:
            raise unknown("gates", "learner", name, entries[LEARNERS])
    for reference in (*references_of_run(spec), *_of_sections({"evaluations": evaluations})):
        _resolve(reference, entries, head_of)
        _check_sampled(spec, reference)
    for stage in spec.stages:
        for reference in references_of_settings(spec, stage):
            _resolve(reference, entries, head_of)


def references_of_run(spec: RunSpec) -> Iterator[Reference]:
    """The names in everything that a run consists of, as it was given."""
    sections = {FROZEN: spec.frozen, **spec.config, "schedules": spec.schedules, "gates": spec.gates}
    yield from _of_sections(sections)
    for number, stage in enumerate(spec.stages):
        yield from references(stage, f"stages.{stage.name or number}")


def references_of_settings(spec: RunSpec, stage: Stage) -> Iterator[Reference]:
    """The names in what a stage sets."""
    if stage.set:
        settings = set(stage.set)
        for reference in _of_sections({name: spec.active_config(stage)[name] for name in spec.config}):
            if any(f"{reference.path}.".startswith(f"{path}.") for path in settings):
                yield Reference(path=f"stages.{stage.name}.set.{reference.path}", name=reference.name, mark=reference.mark)


def _of_sections(sections: Mapping[str, Mapping[str, Any]]) -> Iterator[Reference]:
    for section, entries in sections.items():
        for name, entry in entries.items():
            yield from references(entry, f"{section}.{name}")


def _resolve(reference: Reference, entries: Mapping[str, Collection[str]], head_of: Mapping[str, str]) -> None:
    mark, name = reference.mark, reference.name
    if not isinstance(mark, NameOf) or name in mark.also:
        return
    options = [entry for section in mark.sections for entry in entries[section]]
    if name not in options:
        raise unknown(reference.path, mark.label, name, [*mark.also, *options])
    if mark.heads and head_of[name] not in mark.heads:
        heads = " or ".join(mark.heads)
        raise ConfigError(f"{reference.path}: '{name}' has head '{head_of[name]}', and {mark.role} needs head: {heads}.")


def _check_sampled(spec: RunSpec, reference: Reference) -> None:
    if isinstance(reference.mark, NameOf) and reference.mark.samples:
        source = spec.config[SOURCES][reference.name]
        if source.row_type is not RolloutRows and not source.reward_parts:
            kind = kind_of(type(source))
            raise ConfigError(f"{reference.path}: source '{reference.name}' is of kind {kind}, and no policy writes its texts.")


def _check_spelling(spec: RunSpec) -> None:
    for section, entries in {**spec.config, FROZEN: spec.frozen}.items():
        for name in entries:
            if not str(name).strip() or set(name) & set("./"):
                raise ConfigError(
                    f"{section}: '{name}' cannot be a name: a dot separates the parts of a path, a slash those of a metric; use letters, "
                    "digits, - and _."
                )


def _check_unique(spec: RunSpec) -> None:
    """A name that could mean two things means neither: views are adversaries and frozen copies, and a copy may stand for a learner."""
    for path, other, names in (
        (FROZEN, "a learner", spec.config[LEARNERS]),
        (FROZEN, "an adversary", spec.config[ADVERSARIES]),
        (FROZEN, "the clean view", (CLEAN,)),
    ):
        for name in spec.frozen:
            if name in names:
                raise ConfigError(f"{path}.{name}: '{name}' is also the name of {other}; give the copy another one.")
    stages = [stage.name for stage in spec.stages if stage.name]
    if twice := [name for name in stages if stages.count(name) > 1]:
        raise ConfigError(f"stages: {stages.count(twice[0])} stages are called '{twice[0]}'; schedules and logs tell them apart by name.")
    if CLEAN in spec.config[ADVERSARIES]:
        raise ConfigError(f"{ADVERSARIES}.{CLEAN}: '{CLEAN}' is also the name of the clean view; give the adversary another one.")

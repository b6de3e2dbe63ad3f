"""Classifiers and the labels they learn: names of classes, and indices in range."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from advalign.engine.learner import Learner, LearnerRuntime
from advalign.errors import ConfigError, located
from advalign.interfaces import Objective, Source, SourceRuntime
from advalign.models import Network
from advalign.models.folders import has_classes
from advalign.types import Example, LabelRows, Rows


def with_num_labels(
    learners: Mapping[str, Learner], prebuilt: Mapping[str, Network], sources: Mapping[str, Source], objectives: Mapping[str, Objective]
) -> dict[str, Learner]:
    """The learners; of classifiers whose head is new and whose options do not say how many classes there are, with as many as the data
    that they learn from has."""
    counted = dict(learners)
    for name, learner in learners.items():
        if learner.head != "classifier" or name in prebuilt or "num_labels" in learner.options or has_classes(learner.model):
            continue
        numbers = [n for s in dict.fromkeys(o.source for o in objectives.values() if o.learner == name) if (n := _count(sources, s))]
        if numbers:
            counted[name] = replace(learner, options={**learner.options, "num_labels": max(numbers)})
    return counted


def _count(sources: Mapping[str, Source], name: str) -> int | None:
    with located(f"sources.{name}"):
        return sources[name].num_classes()


def names_for(source: str, objectives: Mapping[str, Objective], learners: Mapping[str, LearnerRuntime]) -> tuple[str, ...]:
    """The class names of the first classifier that learns from a source; empty: it has none."""
    for name in dict.fromkeys(o.learner for o in objectives.values() if o.source == source):
        if name in learners and learners[name].network.head == "classifier":
            return learners[name].network.class_names
    return ()


def bind(
    objectives: Mapping[str, Objective],
    learners: Mapping[str, LearnerRuntime],
    sources: Mapping[str, SourceRuntime[Any]],
    row_types: Mapping[str, type[Rows]],
) -> None:
    """Gives every classifier the class names of its data. Raises ConfigError for a label that it has no class for."""
    for source, learner in dict.fromkeys((o.source, o.learner) for o in objectives.values()):
        network, runtime = learners[learner].network, sources[source]
        if network.head != "classifier" or not issubclass(row_types[source], LabelRows):
            continue
        number, names = network.num_classes, runtime.class_names
        hint = f"learner '{learner}' has {number} classes; set learners.{learner}.options.num_labels"
        if len(names) > number:
            raise ConfigError(f"sources.{source}: its labels are {', '.join(names)}, and {hint}: {len(names)}.")
        for example in runtime.examples:
            if isinstance(example, Example) and example.label is not None and not 0 <= example.label < number:
                raise ConfigError(f"sources.{source}: {example.described} has label {example.label}, and {hint}: {example.label + 1}.")
        if names and not network.class_names:
            network.name_classes(names)

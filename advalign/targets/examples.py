"""What targets read of examples: ids, labels given as words, reference responses."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from advalign.data import Reference, labelled
from advalign.data.labels import Classes
from advalign.errors import ConfigError
from advalign.models import Network
from advalign.targets.black_box import AnsweringClassifier, BlackBoxModel
from advalign.types import Example


def with_ids(examples: Sequence[Example]) -> list[Example]:
    """The examples; those without an id get their number."""
    return [e if e.id else replace(e, id=str(i)) for i, e in enumerate(examples)]


def with_label_indices(examples: Sequence[Example], model: Network | BlackBoxModel) -> list[Example]:
    """The examples with class indices, of labels that are indices or names of the model's classes. Raises ConfigError for others."""
    classes = Classes(names=class_names(model), number=0 if isinstance(model, BlackBoxModel) else model.num_classes)
    labels = [e.meta.get("label") if e.label is None else e.label for e in examples]
    return [replace(e, label=classes.index(label, f"evaluation: example '{e.id}'")) for e, label in zip(examples, labels, strict=True)]


def labelled_reader(model: Network | BlackBoxModel) -> Callable[..., list[Example]]:
    """What reads the labelled examples of a reference (see `advalign.data.labelled`) with the classes of a model."""
    number = 0 if isinstance(model, BlackBoxModel) else model.num_classes

    def read(ref: Reference, **options: Any) -> list[Example]:
        try:
            return labelled(ref, **options, class_names=class_names(model), num_classes=number)[0]
        except ConfigError as error:
            raise ConfigError(f"evaluation: {error}") from error

    return read


def class_names(model: Network | BlackBoxModel) -> tuple[str, ...]:
    """Names of a classifier's classes, by index; empty: they have none."""
    if isinstance(model, AnsweringClassifier):
        return model.class_names
    return model.class_names if isinstance(model, Network) and model.head == "classifier" else ()


def paired_texts(examples: Sequence[Example]) -> list[str | None] | None:
    """The second sentences, None for an example that has none; None where none has one."""
    return [e.pair for e in examples] if any(e.pair is not None for e in examples) else None


def has_reference_response(example: Example) -> bool:
    """Whether `meta['response']` or an answer is given."""
    return example.reference is not None


def reference_response(example: Example) -> str:
    """`meta['response']`, else the answer."""
    if example.reference is None:
        raise ConfigError(f"example '{example.id}': no reference response; give meta['response'] or an answer to measure a loss.")
    return example.reference


__all__ = [
    "class_names",
    "has_reference_response",
    "labelled_reader",
    "paired_texts",
    "reference_response",
    "with_ids",
    "with_label_indices",
]

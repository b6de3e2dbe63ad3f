"""What targets read of examples: ids, labels given as words, reference responses."""

from collections.abc import Sequence
from dataclasses import replace

from advalign.errors import ConfigError
from advalign.models import Network
from advalign.targets.black_box import BlackBoxModel
from advalign.types import Example


def with_ids(examples: Sequence[Example]) -> list[Example]:
    """The examples; those without an id get their number."""
    return [e if e.id else replace(e, id=str(i)) for i, e in enumerate(examples)]


def with_label_indices(examples: Sequence[Example], model: Network | BlackBoxModel) -> list[Example]:
    """Examples whose label is a word get its index among the names of the model's classes."""
    if all(e.label is not None or not isinstance(e.meta.get("label"), str) for e in examples):
        return list(examples)
    # `model.model` is a transformers model; not every one has a config with names of classes.
    config = None if isinstance(model, BlackBoxModel) else getattr(model.model, "config", None)
    names = getattr(config, "label2id", None) or {}
    index = {str(name).casefold(): int(number) for name, number in names.items()}
    return [_with_label_index(e, index, list(map(str, names))) for e in examples]


def _with_label_index(example: Example, index: dict[str, int], names: Sequence[str]) -> Example:
    word = example.meta.get("label")
    if example.label is not None or not isinstance(word, str):
        return example
    if word.casefold() not in index:
        raise ConfigError(
            f"evaluation: example '{example.id}' has the label '{word}', and the model's classes are called "
            f"{', '.join(names) or 'nothing'}; map the labels to class indices with columns: {{label: ...}}."
        )
    return replace(example, label=index[word.casefold()])


def paired_texts(examples: Sequence[Example]) -> list[str] | None:
    """The second sentences, if the examples are pairs."""
    return [e.pair or "" for e in examples] if examples[0].pair is not None else None


def has_reference_response(example: Example) -> bool:
    """Whether `meta['response']` or an answer is given."""
    return example.meta.get("response", example.answer) is not None


def reference_response(example: Example) -> str:
    """`meta['response']`, else the answer."""
    if not has_reference_response(example):
        raise ConfigError(f"example '{example.id}': no reference response; give meta['response'] or an answer to measure a loss.")
    return str(example.meta.get("response", example.answer))


__all__ = ["has_reference_response", "paired_texts", "reference_response", "with_ids", "with_label_indices"]

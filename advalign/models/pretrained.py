"""What a folder of transformers says of itself: the head it was saved with, and whether all of its weights are there.

`config.architectures` decides about the head, never a tokenizer. No weight is drawn at random, but those of a head that was asked for by
name and is trained anew.
"""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from advalign.errors import ConfigError, unknown
from advalign.models import architecture
from advalign.models.base import NetworkBase
from advalign.models.folders import model_folder
from advalign.models.specification import ModelSpec

POLICIES = frozenset(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
CLASSIFIERS = frozenset(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.values())
POOLINGS = ("last", "mean", "first")
NUM_NAMES = 3  # weights that a sentence names
UNUSUAL = 7919  # a number of labels that is no other size of a model


def auto_class(head: str) -> Any:
    """The transformers class that loads a model for this head."""
    return {"policy": AutoModelForCausalLM, "classifier": AutoModelForSequenceClassification}.get(head, AutoModel)


def declared_head(config: Any) -> str | None:
    """policy or classifier, by the classes that a configuration was saved for; None: another class, or none is named."""
    names = architecture.class_names(config)
    if any(name in POLICIES or name.endswith("ForCausalLM") for name in names):
        return "policy"
    return "classifier" if any(name in CLASSIFIERS or name.endswith("ForSequenceClassification") for name in names) else None


def choose_head(model: str, config: Any, head: str | None) -> str:
    """`head`, or the one that the configuration declares. Raises ConfigError for a head that the weights of `model` cannot be."""
    declared, name = declared_head(config), describe(config)
    both_ways = architecture.reads_both_ways(config)
    if head is None:
        head = declared or ("policy" if not architecture.class_names(config) and not both_ways else None)
    if head is None:
        raise ConfigError(
            f"model: '{model}' holds {name}, which is neither a language model nor a classifier; give a model that was saved as "
            "...ForCausalLM or ...ForSequenceClassification, or train one on it (learners: head: classifier, score or value)."
        )
    if head in ("policy", "value") and both_ways:
        raise ConfigError(
            f"model: '{model}' holds {name}, in which every token sees the whole row, so it cannot be a {head}; "
            f"give {'its own head: classifier' if declared == 'classifier' else 'head: classifier or score'}, or a causal model."
        )
    if head == "policy" and declared != "policy" and architecture.class_names(config):
        raise ConfigError(
            f"model: '{model}' holds {name}, which is not a causal language model, so it cannot be a policy; "
            f"give {'its own head: classifier' if declared == 'classifier' else 'head: classifier, score or value'}, or a causal model."
        )
    return head


def describe(config: Any) -> str:
    """Class and kind, for sentences: BertForMaskedLM (bert)."""
    return f"{', '.join(architecture.class_names(config)) or 'a model without a class'} ({config.model_type})"


def read_config(spec: ModelSpec, source: str, head: str | None, **arguments: Any) -> Any:
    """The configuration of `source`; of a classifier, with the number of labels that the options give it."""
    config = AutoConfig.from_pretrained(source, trust_remote_code=False, **arguments)
    number = spec.options.get("num_labels")
    if (head or declared_head(config)) == "classifier" and number is not None and int(number) != config.num_labels:
        if declared_head(config) == "classifier":
            raise ConfigError(
                f"model.options.num_labels: {number} given, but '{spec.model}' holds {describe(config)} of {config.num_labels} labels; "
                "leave it out, or give a model without a head."
            )
        config.num_labels = int(number)
    return config


@contextlib.contextmanager
def _report_held_back() -> Iterator[None]:
    """Keeps what transformers logs of a load until it has ended well: what an error says is said once."""
    records: list[logging.LogRecord] = []

    def hold(record: logging.LogRecord) -> bool:
        records.append(record)
        return False

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(hold)
    try:
        yield
    finally:
        logger.removeFilter(hold)
    for record in records:
        logger.handle(record)


@_report_held_back()
def load_body(spec: ModelSpec, source: str, config: Any, **arguments: Any) -> tuple[Any, tuple[str, ...]]:
    """(transformers model, names of the weights of a new head). Raises ConfigError where another weight is not in the files."""
    try:
        body, report = auto_class(spec.head).from_pretrained(
            source,
            config=config,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            trust_remote_code=False,
            **arguments,
        )
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        raise ConfigError(
            f"model: '{spec.model}' holds {describe(config)}, for which transformers has no class with the head of a {spec.head}; "
            "give another model."
        ) from error
    wrong_shapes = {name: f"{name} of shape {tuple(saved)}, not {tuple(wanted)}" for name, saved, wanted in report["mismatched_keys"]}
    missing = {name: name for name in report["missing_keys"]}
    new_head = spec.head != "policy" and not (spec.head == "classifier" and declared_head(config) == "classifier")
    new = {name for name in missing if new_head and _is_head(body, name, spec.head)}
    absent = [*wrong_shapes.values(), *(name for name in missing if name not in new)]
    extra = [name for name in report["unexpected_keys"] if _is_further_layer(body, name)]
    if absent or extra:
        raise ConfigError(_sentence(spec.model, body, config, absent, extra, report["unexpected_keys"]))
    if spec.head in ("score", "value") and declared_head(config) == "classifier":
        text = f"model: '{spec.model}' holds {describe(config)}, whose trained head is left out: head: {spec.head} has one of its own."
        warnings.warn(text, stacklevel=3)
    return body, tuple(sorted(new)) if spec.head == "classifier" else ()


def warn_of_new_head(model: str, network: NetworkBase) -> None:
    """Says that a head is drawn at random."""
    if not network.has_trained_head:
        drawn = _list(network.drawn_weights)
        warnings.warn(f"model: '{model}' has no trained classifier; its head is drawn from the seed ({drawn}).", stacklevel=3)


def check_classes(model: str, network: NetworkBase, *, asked: str | None) -> None:
    """Raises ConfigError for a head whose numbers are not one class out of several. One number is a score, which a reward reads; it is
    refused where a classifier is `asked` for."""
    if network.head != "classifier":
        return
    config, number = network.model.config, network.num_classes
    problem = config.problem_type
    if problem == "multi_label_classification" or (problem == "regression" and number > 1):
        kind = "several labels per text" if problem.startswith("multi") else f"{number} numbers per text"
        raise ConfigError(
            f"model: '{model}' holds {describe(config)} with {kind} (problem_type {problem}), and a classifier is trained and attacked "
            "with one of several classes per text; give a model with problem_type single_label_classification."
        )
    names = list(config.id2label.values())
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ConfigError(
            f"model: '{model}' calls {names.count(twice[0])} of its classes '{twice[0]}' (id2label); names tell classes apart."
        )
    if number == 1 and asked == "classifier":
        raise one_number(f"'{model}' holds {describe(config)} with one number per text")


def one_number(what: str) -> ConfigError:
    """The refusal of a head of one number where classes are needed."""
    return ConfigError(
        f"model: {what}, and a classifier needs two classes or more; use it as a reward (kind: model), or give head: score, or a model of "
        "two classes."
    )


def check_pooling(spec: ModelSpec, body: Any) -> None:
    """Raises ConfigError for a pooling that the model would not follow."""
    pooling = spec.options.get("pooling")
    if pooling is not None and pooling not in POOLINGS:
        raise unknown("model.options", "pooling", str(pooling), POOLINGS)
    if pooling is not None and spec.head == "classifier" and not architecture.has_score_head(body):
        raise ConfigError(
            f"model.options.pooling: {type(body).__name__} pools a text in its own way, which '{pooling}' would not change; leave it "
            "out, or use head: score."
        )


def num_labels_of(model: str, shapes: Mapping[str, tuple[int, ...]], **arguments: Any) -> int | None:
    """The number of labels of a classifier on `model` whose head has these shapes; None: they do not tell."""
    config = AutoConfig.from_pretrained(str(model_folder(model, arguments.get("revision")) or model), trust_remote_code=False, **arguments)
    config.num_labels = UNUSUAL
    with torch.device("meta"):
        body = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    for name, weight in body.named_parameters():
        if UNUSUAL in weight.shape and len(shapes.get(name, ())) == weight.ndim:
            return shapes[name][tuple(weight.shape).index(UNUSUAL)]
    return None


def _is_head(body: Any, name: str, head: str) -> bool:
    """Whether a weight belongs to a head: outside the backbone, or its pooler (which a scalar head does not read)."""
    outside = head == "classifier" and not name.startswith(f"{body.base_model_prefix}.")
    return outside or "pooler" in name.split(".")


def _is_further_layer(body: Any, name: str) -> bool:
    """Whether a weight that the model has not is one of a layer beyond those of the configuration."""
    return _pattern(body, name) in {_pattern(body, key) for key in body.state_dict()}


def _pattern(body: Any, name: str) -> str:
    """A name without the prefix of the backbone, and without numbers of layers."""
    return re.sub(r"\.\d+(?=\.)", ".*", f".{name.removeprefix(f'{body.base_model_prefix}.')}")


def _sentence(model: str, body: Any, config: Any, absent: Sequence[str], extra: Sequence[str], unexpected: Iterable[str]) -> str:
    if not absent:
        return (
            f"model: '{model}' holds layers that its configuration does not count ({_list(extra)}); config.json and weights belong to "
            "different models."
        )
    total, others = len(body.state_dict()), sorted(unexpected)
    classes = architecture.class_names(config)
    also = f", and holds {len(others)} others ({_list(others[:1])})" if others else ""
    kind = type(body).__name__
    declared = f"; its config.json says {describe(config)}" if classes and kind not in classes else ""
    return (
        f"model: '{model}' lacks {len(absent)} of the {total} weights of {kind} ({_list(absent)}){also}{declared}; "
        "no weight is drawn at random, so give a complete folder whose config.json belongs to it."
    )


def _list(names: Iterable[str]) -> str:
    names = sorted(names, key=_natural)
    return ", ".join(names[:NUM_NAMES]) + (", ..." if len(names) > NUM_NAMES else "")


def _natural(name: str) -> list[Any]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]

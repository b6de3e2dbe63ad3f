"""What a tokenizer needs of its model, and says about it: a row of the embedding for every id, which may be added on request as
transformers adds them; token types; the length of a text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from advalign.errors import ConfigError, unknown
from advalign.models import architecture

RESIZE = "resize_token_embeddings"
ARGUMENTS = ("pad_to_multiple_of", "mean_resizing")
"""Those of `PreTrainedModel.resize_token_embeddings`."""
LARGEST_LENGTH = 10**6  # above it `model_max_length` stands for no bound
PATH = f"model.options.{RESIZE}"


def fit_vocabulary(model: Any, tokenizer: Any, options: Mapping[str, Any], name: str) -> None:
    """Checks that the embedding of a model has a row for every id of its tokenizer; with `options.resize_token_embeddings` rows are added
    where they are missing. Rows that no id of the tokenizer needs (a padded vocabulary) stay."""
    arguments = _arguments(options.get(RESIZE))
    if not architecture.has_embedding(model):
        raise ConfigError(
            f"model: {type(model).__name__} ({architecture.model_type(model)}) has no module that gives every token one embedding; choose "
            "another architecture: docs/models.md lists those that work."
        )
    num_ids, num_rows = count_ids(tokenizer), int(model.get_input_embeddings().weight.shape[0])
    if num_ids <= num_rows:
        return
    if arguments is None:
        raise ConfigError(
            f"model: the tokenizer has {num_ids} ids and the embedding of '{name}' {num_rows} rows; give the model's own tokenizer, or "
            "options: {resize_token_embeddings: true} to add rows."
        )
    if options.get("lora") or options.get("adapter"):
        raise ConfigError(
            f"{PATH}: an adapter leaves the base as it is, and its folder would not hold the {num_ids - num_rows} new rows; save the model "
            "with its new rows first, and put the adapter on that."
        )
    on_meta = model.get_input_embeddings().weight.is_meta
    model.resize_token_embeddings(num_ids, **arguments | ({"mean_resizing": False} if on_meta else {}))


def give_token_types(tokenizer: Any) -> None:
    """Lets a tokenizer give its token types with every row, as that of a model with segments does."""
    if "token_type_ids" not in tokenizer.model_input_names:
        tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
        tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names  # which its folder remembers


def text_length(tokenizer: Any, default: int) -> int:
    """Where transformers' pipelines cut a text: the tokenizer's `model_max_length`; `default` where its files give none."""
    length = tokenizer.model_max_length
    return int(length) if length <= LARGEST_LENGTH else default


def count_ids(tokenizer: Any) -> int:
    """The largest id of a tokenizer, plus one."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def _arguments(option: Any) -> dict[str, Any] | None:
    """Arguments of `resize_token_embeddings`; None: it is not asked for."""
    if option is None or option is False:
        return None
    if option is True:
        return {}
    if not isinstance(option, Mapping):
        raise ConfigError(f"{PATH}: got {option!r}; give true, false, or its arguments ({', '.join(ARGUMENTS)}).")
    for argument in option:
        if argument not in ARGUMENTS:
            raise unknown(PATH, "argument", str(argument), ARGUMENTS)
    return dict(option)


__all__ = ["RESIZE", "count_ids", "fit_vocabulary", "give_token_types", "text_length"]

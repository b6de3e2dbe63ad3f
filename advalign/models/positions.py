"""How long a row may be: what a model's table of positions holds, and how long the rows were that it was trained on.

learned or tabulated positions   rows of the table, without an offset: BERT 512, RoBERTa 514 - padding_idx - 1 = 512, OPT 2050 - 2 = 2048
rotary and relative positions    no limit; beyond `max_position_embeddings` the model meets positions that it was not trained on
"""

from __future__ import annotations

from typing import Any

from torch import nn

from advalign.models import architecture

MAX_OFFSET = 2  # rows that OPT, BART and others leave out in front of their tables


def position_limit(model: Any) -> int | None:
    """The most tokens of a row that the model has positions for; None: any number."""
    length = architecture.context_length(model)
    if length is None or not architecture.tabulates_positions(model):
        return None
    limits = [_rows(module, length) for name, module in model.named_modules() if isinstance(module, nn.Embedding) and _is_table(name)]
    limits += [
        buffer.shape[0] for name, buffer in model.named_buffers() if _is_table(name) and buffer.ndim == 2 and buffer.shape[0] == length
    ]
    limits += [length] if architecture.slices_biases(model) else []
    return min((n for n in limits if n is not None), default=None)


def row_bound(model: Any, max_length: int | None) -> tuple[int | None, str]:
    """The most tokens of a row that is sampled, and what says so: the model's context, which includes what rotary positions were trained
    on, or `max_length`. None: nothing."""
    bounds = [n for n in (architecture.context_length(model), position_limit(model)) if n is not None]
    context = min(bounds, default=None)
    if max_length is not None and (context is None or max_length < context):
        return max_length, f"max_length {max_length}"
    return context, f"the model's context of {context} tokens"


def _is_table(name: str) -> bool:
    leaf = name.rpartition(".")[2]
    return leaf == "wpe" or ("pos" in leaf and "ids" not in leaf)


def _rows(table: nn.Embedding, length: int) -> int | None:
    """Usable rows of an embedding; None: it is not about the `length` positions of the configuration."""
    if not length <= table.num_embeddings <= length + MAX_OFFSET:
        return None
    # Positions are counted from padding_idx + 1 on, as in RoBERTa; an offset in front is not counted in the configuration.
    return length if table.padding_idx is None else table.num_embeddings - table.padding_idx - 1


__all__ = ["position_limit", "row_bound"]

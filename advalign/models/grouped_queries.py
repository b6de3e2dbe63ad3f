"""Attention of one token where several query heads read one key head, without a copy of keys and values for every query head.

    "B H 1 d" queries over "B K N d" keys  =  "B K H/K d" queries over them: the heads that share a key head are its queries

One token reads all its keys, so no order among these queries is lost. transformers copies keys and values H / K times instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor, nn


def applies(query: Float[Tensor, "B H Q d"], key: Float[Tensor, "B K N d"], mask: Tensor | None, options: Mapping[str, Any]) -> bool:
    """Whether `single_token` gives what transformers' SDPA attention gives: for one token on a processor (elsewhere it was not measured),
    whose heads share keys and one mask. `options`: further arguments of the attention function."""
    heads_share_mask = mask is None or (mask.ndim == 4 and mask.shape[1] == 1)
    plain = options.get("position_bias") is None and options.get("cache") is None
    return query.shape[2] == 1 and query.shape[1] > key.shape[1] and query.device.type == "cpu" and heads_share_mask and plain


def single_token(
    query: Float[Tensor, "B H 1 d"], key: Float[Tensor, "B K N d"], value: Float[Tensor, "B K N e"],
    mask: Bool[Tensor, "#B 1 1 N"] | Float[Tensor, "#B 1 1 N"] | None, dropout: float = 0.0, scaling: float | None = None,
) -> Float[Tensor, "B 1 H e"]:  # fmt: skip
    """softmax(q k^T scaling) v of every head."""
    queries = query.reshape(query.shape[0], key.shape[1], -1, query.shape[3])
    mask = None if mask is None else mask.expand(-1, -1, queries.shape[2], -1)
    outputs = nn.functional.scaled_dot_product_attention(queries, key, value, mask, dropout, scale=scaling)
    return outputs.reshape(query.shape[0], 1, query.shape[1], value.shape[3])


__all__ = ["applies", "single_token"]

"""Attention on a processor, in two cases where transformers' SDPA attention is slow.

**One token** whose query heads share key heads (grouped queries). It reads all its keys, so no order is lost where the heads that share a
key head are taken for queries of it; transformers copies keys and values for every query head instead.

    "B H 1 d" queries over "B K N d" keys  =  "B K H/K d" queries over them

**Short rows in bfloat16**. softmax(q k^T) is held, as in eager attention, with products and softmax in float32 up to the probabilities;
the backward pass of torch's fused kernel takes five times as long. Gradients are nearer to the exact ones than those of the kernel.

Shapes: query "B H Q d", key "B K N d", value "B K N e", mask "B 1 Q N". They are not checked at run time: blocks may be compiled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

MAX_KEYS = 256  # of a short row: at 300 a forward pass gains nothing, and what is held grows with the square


def reads_one_token(query: Tensor, key: Tensor, mask: Tensor | None, options: Mapping[str, Any]) -> bool:
    """Whether `single_token` gives what transformers' SDPA attention gives, faster. `options`: further arguments of the attention."""
    heads_share_mask = mask is None or (mask.ndim == 4 and mask.shape[1] == 1)
    return query.shape[2] == 1 and query.shape[1] > key.shape[1] and heads_share_mask and _is_plain(query, options)


def single_token(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float = 0.0, scaling: float | None = None
) -> Tensor:
    """softmax(q k^T scaling) v of every head, "B 1 H e"."""
    queries = query.reshape(query.shape[0], key.shape[1], -1, query.shape[3])
    mask = None if mask is None else mask.expand(-1, -1, queries.shape[2], -1)
    outputs = nn.functional.scaled_dot_product_attention(queries, key, value, mask, dropout, scale=scaling)
    return outputs.reshape(query.shape[0], 1, query.shape[1], value.shape[3])


def reads_short_rows(query: Tensor, key: Tensor, mask: Tensor | None, dropout: float, options: Mapping[str, Any]) -> bool:
    """Whether `short_rows` gives what transformers' SDPA attention gives but for rounding, faster. `options`: further arguments; without
    a mask rows must be causal."""
    causal = query.shape[2] == key.shape[2] and options.get("is_causal") in (None, True)
    readable = causal if mask is None else mask.dtype is torch.bool and mask.ndim == 4 and mask.shape[1] == 1
    short = query.shape[2] > 1 and key.shape[2] <= MAX_KEYS and query.dtype is torch.bfloat16
    return short and readable and not dropout and _is_plain(query, options)


def short_rows(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None = None) -> Tensor:
    """softmax(q k^T scaling) v over the keys of `mask`, "B H Q e"; None: causal. A query without keys (padding) gets their mean."""
    (rows, heads, queries, width), (_, shared, keys, _) = query.shape, key.shape
    mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril()[None, None] if mask is None else mask
    products = torch.bmm(
        (query.float() * (width**-0.5 if scaling is None else scaling)).reshape(rows * shared, -1, width),
        key.float().reshape(rows * shared, keys, width).transpose(1, 2),
    )
    products = products.view(rows, heads, queries, keys).masked_fill(~mask, torch.finfo(products.dtype).min)
    probabilities = products.softmax(-1).to(value.dtype).view(rows * shared, -1, keys)
    return torch.bmm(probabilities, value.reshape(rows * shared, keys, -1)).view(rows, heads, queries, -1)


def _is_plain(query: Tensor, options: Mapping[str, Any]) -> bool:
    """Elsewhere than on a processor nothing was measured."""
    return query.device.type == "cpu" and options.get("position_bias") is None and options.get("cache") is None


__all__ = ["reads_one_token", "reads_short_rows", "short_rows", "single_token"]

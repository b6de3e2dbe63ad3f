"""What a model costs per token, from its configuration alone: parameters, floating-point operations, bytes.

A product of matrices of a parameters with one token is 2a operations forward; backward is twice that, or once where no parameter is
trained. Attention over a mean of T/2 keys is 4 x width x T/2 more. Of a mixture of experts only those that a token visits count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True)
class ModelCost:
    """parameters: all of them; blocks: those that every token passes outside embeddings and head; head: of the head that logits come
    from (0 where there is none); trained: those that learn; query, keys, inner: widths of attention (all heads; keys and values of one
    layer together) and of the feed-forward part; gated: whether that part has a gate (and norms without a mean, as models of that kind
    have); bytes: of one weight."""

    parameters: int
    blocks: int
    head: int
    trained: int
    layers: int
    width: int
    query: int
    keys: int
    inner: int
    gated: bool
    bytes: int

    def forward(self, tokens: float, targets: float, length: float) -> float:
        """Operations of one forward over `tokens` tokens in rows of `length`, logits at `targets` of them."""
        return tokens * (2 * self.blocks + 4 * self.query * self.layers * length / 2) + 2 * self.head * targets

    def passes(self, tokens: float, targets: float, length: float, units: float) -> float:
        """Operations of a forward and what comes back: units 1 forward alone, 2 an ascent step, 3 a pass that trains. Chunks of the
        vocabulary are computed again on the way back."""
        again = 2 * self.head * targets if units > 1 else 0.0
        return units * self.forward(tokens, targets, length) + again

    @property
    def trained_units(self) -> int:
        """Of a pass that trains: 3, or 2 where almost nothing of the model learns (an adapter)."""
        return 3 if self.trained > self.parameters / 2 else 2

    @property
    def kept(self) -> int:
        """Bytes that one token leaves for the way back: norms (three copies each, or two), queries, keys, values, what attention gives,
        and four of the feed-forward part, two without a gate."""
        norms, inner = (6, 4) if self.gated else (4, 2)
        return self.bytes * self.layers * (norms * self.width + 2 * self.query + self.keys + inner * self.inner)

    @property
    def cached(self) -> int:
        """Bytes of keys and values that one token keeps during sampling."""
        return self.bytes * self.layers * self.keys


def of(model: nn.Module, *, head: str, dtype: torch.dtype) -> ModelCost:
    """The shape of a model, which may live on the meta device."""
    any_model: Any = model
    config = any_model.config
    embedding = any_model.get_input_embeddings().weight
    output = any_model.get_output_embeddings() if head == "policy" else None
    owned = {id(p): p.numel() for p in model.parameters()}
    total = sum(owned.values())
    logits = 0 if output is None else output.weight.numel()
    outside = embedding.numel() + (0 if output is None or output.weight is embedding else logits)
    positions = sum(p.numel() for n, p in model.named_parameters() if n.endswith(("wpe.weight", "position_embeddings.weight")))
    heads = getattr(config, "num_attention_heads", 1)
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    both = getattr(config, "num_key_value_heads", None) or heads
    return ModelCost(
        parameters=total,
        blocks=total - outside - positions - _unvisited(model, config),
        head=logits,
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        query=heads * size,
        keys=2 * both * size,
        inner=_inner(config),
        gated=any("gate" in name for name, _ in model.named_modules()),
        bytes=torch.finfo(dtype).bits // 8,
    )


def _inner(config: Any) -> int:
    for name in ("intermediate_size", "n_inner", "ffn_dim"):
        if getattr(config, name, None):
            return int(getattr(config, name))
    return 4 * int(config.hidden_size)


def _unvisited(model: nn.Module, config: Any) -> int:
    """Parameters of experts that a token does not visit."""
    number = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None)
    visited = getattr(config, "num_experts_per_tok", None)
    if not number or not visited:
        return 0
    experts = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n)
    return int(experts * (1 - visited / number))


def trained_by(options: Mapping[str, Any], shape: ModelCost, names: Iterable[str] = ("lora", "adapter")) -> int:
    """How many numbers learn under a learner's options: all, or about those of an adapter of rank r on every linear layer."""
    if not any(options.get(name) for name in names):
        return shape.trained
    rank = int((options.get("lora") or {}).get("r", 8))
    wide = 2 * (shape.width + shape.query) + 2 * (shape.width + shape.keys / 2) + 3 * (shape.width + shape.inner)
    return int(rank * wide * shape.layers)


__all__ = ["ModelCost", "of", "trained_by"]

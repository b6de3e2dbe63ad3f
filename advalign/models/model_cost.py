"""What a model costs per token, from its configuration alone: parameters, floating-point operations, bytes.

A matmul of a parameters with one token is 2a operations forward; backward is twice that, or once where no parameter is
trained. Attention over a mean of T/2 keys is 4 x width x T/2 more. Of a mixture of experts only those that a token visits count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from advalign.models import architecture


@dataclass(frozen=True, kw_only=True)
class ModelCost:
    """Sizes of a model, and what one token costs with them."""

    parameters: int
    """All of them."""
    blocks: int
    """Parameters that every token passes outside embeddings and head."""
    head: int
    """Parameters of the head that logits come from; 0 where there is none."""
    trained: int
    """Parameters that learn."""
    layers: int
    """Number of blocks."""
    width: int
    """Features of a hidden state."""
    query: int
    """Width of the queries of all heads."""
    keys: int
    """Width of keys and values of one layer together."""
    inner: int
    """Width of the feed-forward part."""
    gated: bool
    """Whether that part has a gate (and norms without a mean, as models of that kind have)."""
    bytes: int
    """Of one weight."""

    def forward(self, tokens: float, targets: float, length: float) -> float:
        """Operations of one forward over `tokens` tokens in rows of `length`, logits at `targets` of them."""
        return tokens * (2 * self.blocks + 4 * self.query * self.layers * length / 2) + 2 * self.head * targets

    def passes(self, tokens: float, targets: float, length: float, units: float) -> float:
        """Operations of a forward and its backward: units 1 forward alone, 2 an ascent step, 3 a pass that trains. Chunks of the
        vocabulary are recomputed in backward."""
        recomputed = 2 * self.head * targets if units > 1 else 0.0
        return units * self.forward(tokens, targets, length) + recomputed

    @property
    def trained_units(self) -> int:
        """Of a pass that trains: 3, or 2 where almost nothing of the model learns (an adapter)."""
        return 3 if self.trained > self.parameters / 2 else 2

    @property
    def activation_bytes(self) -> int:
        """Bytes that one token stores for backward: norms (three copies each, or two), queries, keys, values, the output of attention,
        and four of the feed-forward part, two without a gate."""
        norms, inner = (6, 4) if self.gated else (4, 2)
        return self.bytes * self.layers * (norms * self.width + 2 * self.query + self.keys + inner * self.inner)

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values that one token stores during sampling."""
        return self.bytes * self.layers * self.keys


def model_cost(model: nn.Module, *, head: str, dtype: torch.dtype) -> ModelCost:
    """The sizes of a model, which may be on the meta device."""
    transformer: Any = model
    config = transformer.config
    embedding = transformer.get_input_embeddings().weight
    output = transformer.get_output_embeddings() if head == "policy" else None
    total = sum(p.numel() for p in model.parameters())
    logits = 0 if output is None else output.weight.numel()
    outside = embedding.numel() + (0 if output is None or output.weight is embedding else logits)
    positions = sum(p.numel() for n, p in model.named_parameters() if n.endswith(("wpe.weight", "position_embeddings.weight")))
    query, keys = architecture.attention_widths(config)
    return ModelCost(
        parameters=total,
        blocks=total - outside - positions - _unvisited(model, config),
        head=logits,
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        query=query,
        keys=keys,
        inner=architecture.feed_forward_width(config),
        gated=any("gate" in name for name, _ in model.named_modules()),
        bytes=torch.finfo(dtype).bits // 8,
    )


def _unvisited(model: nn.Module, config: Any) -> int:
    """Parameters of experts that a token does not visit."""
    counts = architecture.expert_counts(config)
    if counts is None:
        return 0
    number, visited = counts
    experts = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n)
    return int(experts * (1 - visited / number))


def num_trained(options: Mapping[str, Any], cost: ModelCost, names: Iterable[str] = ("lora", "adapter")) -> int:
    """How many numbers learn under a learner's options: all, or about those of an adapter of rank r on every linear layer."""
    if not any(options.get(name) for name in names):
        return cost.trained
    rank = int((options.get("lora") or {}).get("r", 8))
    widths = 2 * (cost.width + cost.query) + 2 * (cost.width + cost.keys / 2) + 3 * (cost.width + cost.inner)
    return int(rank * widths * cost.layers)


__all__ = ["ModelCost", "model_cost", "num_trained"]

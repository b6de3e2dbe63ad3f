"""What every network has, whatever it reads: a transformers model, an encoder and one head."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from advalign.models import architecture, heads
from advalign.models.compiled import Compiled
from advalign.models.encode import Encoder
from advalign.models.specification import check_head

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def cast_parameters(module: AnyModule, dtype: torch.dtype) -> AnyModule:
    """The module with its parameters in another precision, in place. Buffers, such as the frequencies of rotary positions, keep theirs."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)
    return module


class NetworkBase(nn.Module):
    """Abstract: a transformers model, its encoder and one head. Every member that the library reads of a network is declared here."""

    model: Any
    """The transformers model, whose classes share no interface."""
    encoder: Encoder
    """Its tokenizer, and how prompts and responses become rows."""
    head: str
    """policy (next token), classifier, score (one number per row) or value (one number per token)."""
    pooling: str
    """Of a score or a classifier: which hidden state its head reads, last, mean or first."""
    head_dropout: float
    """Dropout rate in front of a scalar head."""
    spectral_norm: bool
    """Whether the weight of a scalar head is divided by its spectral norm."""
    source: str | None = None
    """The name its base was loaded from; None: from scratch."""
    new_weights: tuple[str, ...] = ()
    """Names in `model` of a classifier's weights that the files of its base do not hold: its head."""
    drawn_weights: tuple[str, ...] = ()
    """Those of `new_weights` that were drawn from the seed: no adapter's folder held them either."""
    revision: str | None = None
    """Of `source` on the hub; None: the newest."""
    shares_base: bool = False
    """Only adapter and head are its own; the base may be shared (`models/adapters.py`)."""
    compiled: Compiled | None = None
    """Of its blocks, where they are to be compiled."""
    reads_tokens: bool = True
    """Its input is tokens; False: hidden states of another network (`models/hidden_state_critic.py`)."""
    num_forwards: int
    """Forwards so far."""
    num_rows: int
    """Rows that passed through so far."""

    def __init__(
        self, model: nn.Module, encoder: Encoder, head: str, *, pooling: str, head_dropout: float = 0.0, spectral_norm: bool = False
    ) -> None:
        super().__init__()
        check_head(head)
        self.model = model
        self.encoder = encoder
        self.head = head
        self.pooling, self.head_dropout, self.spectral_norm = pooling, head_dropout, spectral_norm
        self.num_forwards = self.num_rows = 0
        self._norm: tuple[Any, float] = (None, math.nan)
        if head in ("score", "value"):
            self.scalar = nn.Linear(architecture.hidden_size(model), 1)
            nn.init.normal_(self.scalar.weight, std=0.02)
            nn.init.zeros_(self.scalar.bias)
            # Created here, so it must follow a model that already lives elsewhere or in another precision.
            first = next(model.parameters())
            self.scalar.to(device=first.device, dtype=first.dtype)
            self.dropout = nn.Dropout(head_dropout) if head_dropout else nn.Identity()
            if spectral_norm:
                heads.normalize(self.scalar)

    @property
    def has_trained_head(self) -> bool:
        """Whether no weight of its head was drawn from the seed when it was loaded."""
        return not self.drawn_weights

    @property
    def num_classes(self) -> int:
        """Of a classifier."""
        return int(self.model.config.num_labels)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of a classifier's classes, by index, from `id2label`; empty where they are transformers' `LABEL_<index>`."""
        names = [str(self.model.config.id2label[i]) for i in range(self.num_classes)]
        return () if all(name == f"LABEL_{i}" for i, name in enumerate(names)) else tuple(names)

    def name_classes(self, names: Sequence[str]) -> None:
        """Sets `id2label` and `label2id`, which are saved with the model."""
        named = dict(self.model.config.id2label) | dict(enumerate(names))
        self.model.config.id2label = named
        self.model.config.label2id = {name: i for i, name in named.items()}

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens at which a rollout ends: the template's end of turn, and each end of a sequence of generation config and tokenizer."""
        ends = {self.encoder.ending.stop_id, self.encoder.tokenizer.eos_token_id} - {None}
        return frozenset(ends) | architecture.end_ids(self.model)

    @property
    def backbone(self) -> nn.Module:
        return architecture.backbone(self.model)  # type: ignore[no-any-return]

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def head_files(self) -> Mapping[str, nn.Module]:
        """{file name: module whose weights `save_pretrained` writes there}, beside the transformers model."""
        return {"scalar_head.safetensors": self.scalar} if self.head in ("score", "value") else {}

    @property
    def facts(self) -> dict[str, Any]:
        """What a folder must remember beside the weights."""
        facts = {"head": self.head, "pooling": self.pooling, "max_length": self.encoder.max_length}
        facts |= {"bidirectional": self.encoder.bidirectional}
        facts |= {name: value for name, value in self.encoder.settings.items() if value not in ({}, "text", None)}
        options = {"head_dropout": self.head_dropout, "spectral_norm": self.spectral_norm}
        return facts | {name: value for name, value in options.items() if value}

    def width(self, site: str) -> int:
        """Number of features at a perturbation site."""
        return self.model.get_input_embeddings().weight.shape[1] if site == "embedding" else architecture.hidden_size(self.model)

    @torch.no_grad()
    def mean_embedding_norm(self) -> float:
        """Mean L2 norm of what the embedding module gives for every token, a scale inside that module (Gemma 3) included: the
        unit of relative radii. Computed once per version of the matrix."""
        module = self.model.get_input_embeddings()
        version = (module.weight.data_ptr(), module.weight._version)
        if self._norm[0] != version:
            ids = torch.arange(module.weight.shape[0], device=module.weight.device)
            total = sum(float(module(part).double().norm(dim=-1).sum()) for part in ids.split(8192))
            self._norm = (version, total / len(ids))
        return self._norm[1]

    def forget_norm(self) -> None:
        """Measure the embedding anew: a sharded matrix is put together in the same place, whatever has become of it."""
        self._norm = (None, math.nan)

    def _apply_scalar(self, hidden: Float[Tensor, "*S D"]) -> Float[Tensor, "*S"]:
        return self.scalar(self.dropout(hidden)).squeeze(-1)

    def _pool(self, hidden: Float[Tensor, "B T D"], mask: Tensor) -> Float[Tensor, "B D"]:
        if self.pooling == "mean":
            weights = mask.to(hidden.dtype)
            return torch.einsum("btd,bt->bd", hidden, weights) / weights.sum(1, keepdim=True).clamp(min=1)
        position = torch.zeros_like(mask[:, 0].long()) if self.pooling == "first" else mask.sum(1) - 1
        return hidden[torch.arange(hidden.shape[0], device=hidden.device), position]

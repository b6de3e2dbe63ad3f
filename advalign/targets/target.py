"""A network under attack: answers, gradients and one meter of what was spent.

A query is one distinct text, or one text under one edit; the same text twice in one call is sent once and counted once. An answer out
of the cache is a query (the attack learned it) and no forward. Batches are sorted by length and padded to their own longest row. The
network is evaluated without dropout, and its modes are restored.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from advalign.engine.ascent import allowed_positions
from advalign.engine.rng import generator
from advalign.interfaces import EditGradients, Edits, LossOf, PerturbationContext, Target
from advalign.models import Network
from advalign.models.inference import length_sorted_batches, map_batches
from advalign.models.perturb import without_dropout
from advalign.targets.cache import AnswerCache
from advalign.targets.ensemble import Ensemble
from advalign.types import Edit, Example, Outputs, ThreatModel, Tokens, fit

BATCH_TOKENS = 8192
"""Padded tokens of one forward."""
CACHED_TOKENS = 512
"""The same for a classifier on a processor: what leaves its cache takes longer (benchmarks/suites.py)."""


class NetworkTarget(Target):
    """Abstract base: a network under attack."""

    needs: ClassVar[frozenset[str]]
    """What its forwards compute, unless told otherwise: fields of `Outputs`."""
    dropout: bool = False
    """Whether dropout stays on; only for a self-check that asks what it does to gradients."""

    def __init__(self, network: Network, *, batch_tokens: int | None = None, cache: AnswerCache | None = None) -> None:
        """`batch_tokens`: padded tokens of one forward; default: by head and device. `cache`: answers on disk."""
        self._network = network
        self.name, self.head = f"a network with head '{network.head}'", network.head
        self.batch_tokens = batch_tokens or self._default_batch_tokens()
        self.cache = cache
        self.num_queries = self.num_gradients = self.num_forwards = self.num_tokens = 0
        self.num_cached = 0  # answers out of the cache
        self.num_gradient_tokens = 0  # tokens that gradients went through

    @property
    def network(self) -> Network:
        return self._network

    @property
    def device(self) -> torch.device:
        return self.network.device

    @property
    def max_length(self) -> int | None:
        return self.network.encoder.max_length

    @abstractmethod
    def tokens(self, examples: Sequence[Example]) -> Tokens:
        """The rows of the examples, as the network reads them."""

    @cached_property
    def num_parameters(self) -> int:
        """Of the matrices a token passes through: all but the embeddings that are looked up."""
        model = self.network.model
        looked_up = {id(p) for m in model.modules() if isinstance(m, torch.nn.Embedding) for p in m.parameters()}
        head = getattr(model, "get_output_embeddings", lambda: None)()  # of transformers models
        tied = set() if head is None else {id(p) for p in head.parameters()}
        return sum(p.numel() for p in model.parameters() if id(p) not in looked_up or id(p) in tied)

    def meter(self) -> dict[str, float]:
        """What was spent so far. flops: 2 per parameter and token of a forward and 4 of a backward (arXiv:2001.08361, section 2.1),
        attention scores and look-ups left out."""
        flops = 2 * self.num_parameters * self.num_tokens + 4 * self.num_parameters * self.num_gradient_tokens
        return {
            "queries": self.num_queries,
            "gradients": self.num_gradients,
            "forwards": self.num_forwards,
            "tokens": self.num_tokens,
            "cached": self.num_cached,
            "flops": flops,
        }

    def unit(self, threat: ThreatModel) -> float:
        return self.network.mean_embedding_norm() if threat.relative_to == "mean_embedding_norm" else 1.0

    def perturbation_context(
        self, threat: ThreatModel, tokens: Tokens, examples: Sequence[Example], key: Sequence[object]
    ) -> PerturbationContext:
        return PerturbationContext(
            shapes={site: (tokens.ids.shape[1], self.network.width(site)) for site in threat.sites},
            allowed=allowed_positions(threat.where, tokens, () if threat.special else self.network.encoder.special_ids),
            radius=threat.radius * self.unit(threat),
            dtype=torch.float64 if self.network.dtype == torch.float64 else torch.float32,
            generators=[generator(*key, example.id) for example in examples],
            unit=self.unit(threat),
            tokens=tokens,
            names=tuple(example.id for example in examples),
            key=tuple(key),
            network=self.network,
        )

    def climb(
        self, tokens: Tokens, examples: Sequence[Example], edits: Mapping[str, Edit], loss_of: LossOf, gradients: bool = True
    ) -> EditGradients:
        leaves = {site: edit.add.detach().clone().requires_grad_(gradients) for site, edit in edits.items() if edit.add is not None}
        with torch.set_grad_enabled(gradients):
            outputs = self._forward(tokens, {site: Edit(leaf) for site, leaf in leaves.items()})
            losses, scores = loss_of(outputs, tokens, examples)
        gradient_of: dict[str, Tensor] = {}
        if gradients:
            self.num_gradients += len(examples)
            self.num_gradient_tokens += int(tokens.mask.sum())
            gradient_of = dict(zip(leaves, torch.autograd.grad(losses.sum(), list(leaves.values())), strict=True))
        return EditGradients(losses=losses.detach(), scores=scores.detach(), gradients=gradient_of)

    def _default_batch_tokens(self) -> int:
        return CACHED_TOKENS if self.network.head == "classifier" and self.network.device.type == "cpu" else BATCH_TOKENS

    def _forward(self, tokens: Tokens, edits: Mapping[str, Edit] | None = None, needs: frozenset[str] | None = None) -> Outputs:
        rows = tokens.ids.shape[0]
        self.spend(rows)
        copies = self.network.copies if isinstance(self.network, Ensemble) else None  # each is a forward of its own
        self.num_forwards += 1 if copies is None else rows * copies
        self.num_tokens += int(tokens.mask.sum()) * (copies or 1)
        with nullcontext() if self.dropout else without_dropout(self.network):
            return self.network(tokens.to(self.network.device), self.needs if needs is None else needs, edits or {})

    def _all(
        self,
        tokens: Tokens,
        edits: Sequence[Edits] | None,
        read: Callable[[Outputs, Tokens], Tensor],
        needs: frozenset[str] | None = None,
    ) -> Tensor:
        """`read` of every row, batch by batch, in the order of the rows."""

        def read_batch(part: Tokens, rows: Tensor) -> dict[str, Tensor]:
            adds = None if edits is None else stack([edits[i] for i in rows.tolist()], part.ids.shape[1], self.network.device)
            return {"values": read(self._forward(part, adds, needs), part).float().cpu()}

        return map_batches(read_batch, tokens, length_sorted_batches(tokens.lengths, self.batch_tokens))["values"]


def stack(edits: Sequence[Edits], width: int, device: torch.device) -> dict[str, Edit]:
    """Edits of single rows ("T D" each) as one padded batch."""
    return {site: Edit(torch.cat([fit(edit[site][None].to(device), width) for edit in edits])) for site in edits[0]}


__all__ = ["NetworkTarget", "stack"]

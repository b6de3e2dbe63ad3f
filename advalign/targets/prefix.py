"""Rows that begin alike, scored for what follows: the beginning is computed once and its keys and values are shared.

    prefix = CachedPrefix(target, ids)                       # one forward over ids[:-1]
    prefix.read(tails, number, read)                         # logits of the last `number` tokens of every tail

A tail follows `ids`; all tails of one call have one length, so nothing is padded. The cache is never written to: every forward gets a
view of it, as wide as its batch. Whether a model supports this is measured, not read from its configuration: the first row of every
prefix is computed both ways, and where the two differ, or the cache cannot be built, `note` says so and rows are computed whole. The
second computation of that row counts as tokens and forwards, not as a query.
"""

import copy
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from advalign.interfaces import PrefixScorer
from advalign.models import row_cache
from advalign.models.perturb import without_dropout
from advalign.targets.target import NetworkTarget

Read = Callable[[Tensor], Tensor]

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}
"""How far log-probabilities of the two computations may differ before the cache is given up."""


class CachedPrefix(PrefixScorer):
    """One beginning of rows, its keys and values computed once."""

    def __init__(self, target: NetworkTarget, ids: Sequence[int], *, cached: bool = True) -> None:
        """`target`: whose meter counts. `cached` False: rows are computed whole, for comparison."""
        self.target, self.network = target, target.network
        # The last id stays with the tails: its prediction is needed where a tail is nothing but the response.
        self.ids, self.joint = list(ids[:-1]), list(ids[-1:])
        self.note = ""
        self.cache: DynamicCache | None = None
        self.trusted = False
        if cached and self.ids:
            try:
                self.cache = self._build()
            except (AttributeError, KeyError, NotImplementedError, TypeError, ValueError) as error:
                self._drop(f"{type(error).__name__} while it was built")

    @torch.no_grad()
    def read(self, tails: Sequence[Sequence[int]], number: int, read: Read) -> Tensor:
        """`read` ("N R V" logits that predict the last R = `number` tokens of each tail -> "N ..."), in batches, on the CPU."""
        rows = torch.tensor([[*self.joint, *tail] for tail in tails])
        assert rows.shape[1] > number, "a response needs a token before it"
        if not self.trusted:
            self._verify(rows[:1], number)
        self.target.spend(len(rows))
        size = max(1, self.target.batch_tokens // (len(self.ids) + rows.shape[1]))
        return torch.cat([read(self._logits(part, number)).cpu() for part in rows.split(size)])

    def input_gradients(self, tail: Sequence[int], places: slice, number: int, loss: Read) -> tuple[float, Float[Tensor, "n V"]]:
        """loss ("1 R V" -> "1") of one tail, and its gradient with respect to one-hot rows at `places` of the tail."""
        rows = torch.tensor([[*self.joint, *tail]])
        if not self.trusted:
            self._verify(rows, number)
        self.target.spend(1)
        self.target.num_gradients += 1
        self.target.num_gradient_tokens += rows.numel() + (0 if self.cache else len(self.ids))
        module = self.network.model.get_input_embeddings()
        device, shift = self.network.device, len(self.joint)
        with torch.no_grad():
            embeddings = module(rows.to(device))
        start, stop = shift + places.start, shift + places.stop
        leaf = embeddings[:, start:stop].detach().clone().requires_grad_()
        with torch.enable_grad():
            embeddings = torch.cat([embeddings[:, :start], leaf, embeddings[:, stop:]], 1)
            value = loss(self._logits(rows, number, embeddings)).squeeze(0)
            (gradient,) = torch.autograd.grad(value, leaf)
        matrix = module.weight.detach()
        return float(value.detach()), (gradient[0] @ matrix.T).to(torch.promote_types(matrix.dtype, torch.float32)).cpu()

    def _logits(self, rows: Int[Tensor, "N T"], number: int, embeddings: Tensor | None = None) -> Float[Tensor, "N R V"]:
        """Logits of the last `number` tokens; `embeddings` in place of those of `rows`."""
        network, ids = self.network, rows.to(self.network.device)
        start = len(self.ids)
        if self.cache is None and start:
            front = torch.tensor([self.ids], device=ids.device).expand(len(ids), -1)
            ids = torch.cat([front, ids], 1)
            if embeddings is not None:
                with torch.no_grad():
                    before = network.model.get_input_embeddings()(front)
                embeddings = torch.cat([before, embeddings], 1)
        first = 0 if self.cache is None else start
        positions = torch.arange(first, first + ids.shape[1], device=ids.device).expand_as(ids)
        embeddings = network.model.get_input_embeddings()(ids) if embeddings is None else embeddings
        options = {"use_cache": False} if self.cache is None else {"use_cache": True, "past_key_values": _wide(self.cache, len(ids))}
        inputs = network.inputs_at(positions, ids, embeddings, **options)
        self.target.num_forwards += 1
        self.target.num_tokens += ids.numel()
        with without_dropout(network):
            hidden = network.backbone(**inputs).last_hidden_state[:, -number - 1 : -1]
            logits = network.next_token_logits(hidden.flatten(0, 1)).unflatten(0, hidden.shape[:2])
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    @torch.no_grad()
    def _build(self) -> DynamicCache:
        network = self.network
        ids = torch.tensor([self.ids], device=network.device)
        cache = DynamicCache(config=network.model.config)
        self.target.num_forwards += 1
        self.target.num_tokens += ids.numel()
        with without_dropout(network):
            positions, embeddings = torch.arange(ids.shape[1], device=ids.device)[None], network.model.get_input_embeddings()(ids)
            network.backbone(**network.inputs_at(positions, ids, embeddings, use_cache=True, past_key_values=cache))
        if row_cache.holds_states(cache) or not all(isinstance(getattr(layer, "keys", None), Tensor) for layer in cache.layers):
            raise ValueError("a layer without keys")  # a state-space or linear-attention layer keeps a state, which every token overwrites
        return cache

    @torch.no_grad()
    def _verify(self, rows: Int[Tensor, "1 T"], number: int) -> None:
        """Computes the first row both ways; the cache is dropped where they differ."""
        self.trusted = True
        cache, short = self.cache, None
        if cache is None:
            return
        try:
            short = self._logits(rows, number).log_softmax(-1)
        except torch.OutOfMemoryError:
            raise
        except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            self._drop(f"{type(error).__name__} when it was read")
        if short is None:
            return
        self.cache = None
        gap = float((short - self._logits(rows, number).log_softmax(-1)).abs().max())
        if gap <= TOLERANCE.get(self.network.dtype, 0.25):
            self.cache = cache
        else:
            self._drop(f"log-probabilities differ by {gap:.1e}")

    def _drop(self, why: str) -> None:
        self.cache, self.note = None, f"no prefix cache: {why}"


def _wide(cache: DynamicCache, rows: int) -> DynamicCache:
    """A view of a cache of one row as one of `rows`. Layers grow by concatenation, which copies, so the original stays as it is."""
    wide = copy.copy(cache)
    wide.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in wide.layers:
        layer.keys, layer.values = (x.expand(rows, *x.shape[1:]) for x in (layer.keys, layer.values))
    return wide


__all__ = ["CachedPrefix"]

"""A cache whose rows can be selected: one row per prompt becomes one per response, and finished rows are dropped.

Buffers of keys and values are allocated ahead, so a new token is written into its place; transformers' own cache copies everything at
every token. States of recurrent layers are selected as they are.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Int
from torch import Tensor
from transformers import DynamicCache, cache_utils
from transformers.cache_utils import DynamicLayer

RECURRENT: tuple[type, ...] = tuple(
    value for name, value in vars(cache_utils).items() if name == "LinearAttentionCacheLayerMixin"
)  # transformers 4 has none


class GrowingLayer(DynamicLayer):
    """Keys and values of one layer, in buffers that grow."""

    keys: Any
    values: Any
    is_initialized: bool

    def __init__(self, reserve: int) -> None:
        """`reserve`: for how many tokens beyond the present ones a buffer is allocated."""
        super().__init__()
        self.reserve = reserve
        self._buffers: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
        start = 0 if self._buffers is None else self.keys.shape[-2]
        stop = start + key_states.shape[-2]
        if self._buffers is None or stop > self._buffers[0].shape[-2]:
            self._grow(key_states, value_states, start, stop)
        assert self._buffers is not None
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., start:stop, :] = new
        self.keys, self.values = (buffer[..., :stop, :] for buffer in self._buffers)
        return self.keys, self.values

    def batch_select_indices(self, indices: Int[Tensor, "N"]) -> None:
        """The rows at `indices`, which may repeat."""
        if self._buffers is not None:
            length, size = self.keys.shape[-2], self._buffers[0].shape[-2]
            self._buffers = (_select(self.keys, indices, size), _select(self.values, indices, size))
            self.keys, self.values = (buffer[..., :length, :] for buffer in self._buffers)

    def _grow(self, key_states: Tensor, value_states: Tensor, start: int, stop: int) -> None:
        buffers = []
        for new, old in ((key_states, self.keys), (value_states, self.values)):
            buffer = new.new_empty(*new.shape[:-2], stop + self.reserve, new.shape[-1])
            if start:
                buffer[..., :start, :] = old
            buffers.append(buffer)
        self._buffers = (buffers[0], buffers[1])


def new_cache(config: Any, reserve: int) -> DynamicCache:
    """A cache for a model; layers that attend to everything get growing buffers, others (sliding windows, states) those of transformers."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer(reserve) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def holds_states(cache: DynamicCache) -> bool:
    """Whether a layer has a state that every token overwrites."""
    return any(isinstance(layer, RECURRENT) for layer in cache.layers)


def select_rows(cache: DynamicCache, rows: Int[Tensor, "N"]) -> None:
    """The cache of the rows at `rows`, which may repeat, in place."""
    for layer in cache.layers:
        if isinstance(layer, DynamicLayer):
            layer.batch_select_indices(rows)
        if isinstance(layer, RECURRENT):
            _select_states(layer, rows)


def _select_states(layer: Any, rows: Int[Tensor, "N"]) -> None:
    for states in (layer.conv_states, layer.recurrent_states):
        for number, state in states.items() if isinstance(states, dict) else enumerate(states):
            if isinstance(state, Tensor):
                states[number] = state.index_select(0, rows)


def _select(values: Tensor, rows: Int[Tensor, "N"], size: int) -> Tensor:
    buffer = values.new_empty(len(rows), *values.shape[1:-2], size, values.shape[-1])
    buffer[..., : values.shape[-2], :] = values[rows]
    return buffer


__all__ = ["GrowingLayer", "holds_states", "new_cache", "select_rows"]

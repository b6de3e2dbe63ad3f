"""A key-value cache whose rows can be chosen: one row per prompt becomes one per response, and finished rows leave.

Buffers have room for what is still to come, so a new token is written into its place; transformers' own cache copies everything at
every token.
"""

from typing import Any

from jaxtyping import Int
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class Growing(DynamicLayer):
    """Keys and values of one layer. `room`: for how many tokens beyond the first ones there is place at once."""

    keys: Any
    values: Any
    is_initialized: bool

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
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
            self._buffers = (_chosen(self.keys, indices, size), _chosen(self.values, indices, size))
            self.keys, self.values = (buffer[..., :length, :] for buffer in self._buffers)

    def _grow(self, key_states: Tensor, value_states: Tensor, start: int, stop: int) -> None:
        made = []
        for new, old in ((key_states, self.keys), (value_states, self.values)):
            buffer = new.new_empty(*new.shape[:-2], stop + self.room, new.shape[-1])
            if start:
                buffer[..., :start, :] = old
            made.append(buffer)
        self._buffers = (made[0], made[1])


def new(config: Any, room: int) -> DynamicCache:
    """A cache for a model; layers that attend to everything get buffers, others (sliding windows) stay as they are."""
    cache = DynamicCache(config=config)
    cache.layers = [Growing(room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def divisible(cache: DynamicCache) -> bool:
    """Whether rows can be chosen. A state-space layer keeps a state that this file does not know."""
    return bool(cache.layers) and all(isinstance(layer, DynamicLayer) for layer in cache.layers)


def choose(cache: DynamicCache, rows: Int[Tensor, "N"]) -> None:
    """The cache of the rows at `rows`, which may repeat, in place."""
    for layer in cache.layers:
        layer.batch_select_indices(rows)


def _chosen(values: Tensor, rows: Int[Tensor, "N"], size: int) -> Tensor:
    buffer = values.new_empty(len(rows), *values.shape[1:-2], size, values.shape[-1])
    buffer[..., : values.shape[-2], :] = values[rows]
    return buffer


__all__ = ["Growing", "choose", "divisible", "new"]

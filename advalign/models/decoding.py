"""Rows that are read token by token, with the model's cache or without one.

A prompt is read once and left padded; its row is then repeated for every response, and rows that have ended leave the batch. Whether a
model's cache gives what one forward over the whole row gives is tried out on a few short rows (`agrees`); where it does not (states that
are kept outside a cache, or know no padding), every token reads its whole row again, right padded: slow, and right.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from einops import repeat
from jaxtyping import Float, Int
from torch import Tensor

from advalign.models import architecture, positions, row_cache
from advalign.models.padding import pad
from advalign.models.padding_free import REFUSALS
from advalign.models.perturb import apply_edit, edited
from advalign.types import Edit

if TYPE_CHECKING:
    from advalign.models.forward import Network

PROMPTS, COPIES, NUM_STEPS = (5, 3, 2), (1, 2, 1), 3
"""Lengths of the prompts that `agrees` reads, their responses, and the tokens of each."""
TOLERANCE = {torch.float64: 3e-6, torch.float32: 2e-3}
"""Largest difference of a hidden state, relative to its length (norms are often computed in float32, in float64 models too; a state that
is missing changes all of it). In half precision: `HALF_TOLERANCE`."""
HALF_TOLERANCE = 0.2


class Decoder(ABC):
    """Abstract: rows of a batch, and the hidden states behind their last tokens."""

    hidden: Float[Tensor, "B D"]
    """The states that predict the next token."""

    @abstractmethod
    def read(self, ids: Int[Tensor, "B"]) -> None:
        """One more token per row."""

    @abstractmethod
    def select(self, rows: Int[Tensor, "N"]) -> None:
        """Goes on with the rows at `rows`, which may repeat."""


class CachedDecoder(Decoder):
    """Every token is read once. Prompts are left padded, and position ids are explicit."""

    positions: Int[Tensor, "B #T"]
    """Positions of the tokens that were read last."""
    mask: Int[Tensor, "B T"] | None
    """Which tokens of the cache are not padding; None: none is, and attention is faster without a mask."""

    def __init__(
        self,
        network: Network,
        prompts: Sequence[Sequence[int]],
        number: int,
        last_position: int,
        *,
        compiled: bool = False,
        edits: Mapping[str, Edit] | None = None,
    ) -> None:
        """`number`: of tokens that will follow; `compiled`: single tokens run through the network's compiled blocks; `edits`: of the
        prompts' hidden states, by site, left padded as the prompts are."""
        self.network, self.last_position, self.compiled = network, last_position, compiled
        ids, mask = _left_pad(prompts, network.encoder.pad_id)
        ids, mask = ids.to(network.device), mask.to(network.device)
        self.argument = architecture.cache_argument(network.backbone)
        self.cache = row_cache.new_cache(network.model.config, number)
        self.positions = (mask.cumsum(1) - 1).clamp(min=0)
        self.mask = None if bool(mask.all()) else mask
        inside = {site: edit for site, edit in (edits or {}).items() if site != "embedding"}
        with edited(network.backbone, inside):
            self.hidden = self._forward(ids, (edits or {}).get("embedding"))
        self.positions = self.positions[:, -1:]

    def read(self, ids: Int[Tensor, "B"]) -> None:
        # Rows at the end of the context are decoded along with their batch, and dropped.
        self.positions = (self.positions + 1).clamp(max=self.last_position)
        if self.mask is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], 1)
        self.hidden = self._forward(ids[:, None])

    def select(self, rows: Int[Tensor, "N"]) -> None:
        row_cache.select_rows(self.cache, rows)
        self.positions, self.hidden = self.positions[rows], self.hidden[rows]
        self.mask = None if self.mask is None else self.mask[rows]

    def _forward(self, ids: Int[Tensor, "B T"], edit: Edit | None = None) -> Float[Tensor, "B D"]:
        # Embeddings, as in the trainer: given ids and no mask, transformers warns of padding that is not there.
        embeddings = apply_edit(self.network.model.get_input_embeddings()(ids), edit or Edit())
        # What keeps states alone has read its padding with the prompt.
        mask = self.mask if self.argument == "past_key_values" or ids.shape[1] > 1 else None
        options = {"attention_mask": mask, self.argument: self.cache, "use_cache": True}
        inputs = self.network.inputs_at(self.positions, ids, embeddings, **options)
        blocks = self.network.compiled if self.compiled and ids.shape[1] == 1 else None
        with nullcontext() if blocks is None else blocks.on(self.network.backbone):
            return self.network.backbone(**inputs).last_hidden_state[:, -1]  # type: ignore[no-any-return]


class WholeRowDecoder(Decoder):
    """Every token reads its whole row again, right padded, as in the trainer."""

    def __init__(self, network: Network, prompts: Sequence[Sequence[int]], last_position: int) -> None:
        self.network, self.last_position = network, last_position
        self.rows = [list(prompt) for prompt in prompts]
        self.hidden = self._forward()

    def read(self, ids: Int[Tensor, "B"]) -> None:
        # Rows at the end of the context keep their length, and are dropped.
        self.rows = [[*row, token] if len(row) <= self.last_position else row for row, token in zip(self.rows, ids.tolist(), strict=True)]
        self.hidden = self._forward()

    def select(self, rows: Int[Tensor, "N"]) -> None:
        self.rows, self.hidden = [self.rows[i] for i in rows.tolist()], self.hidden[rows]

    def _forward(self) -> Float[Tensor, "B D"]:
        lengths = torch.tensor([len(row) for row in self.rows], device=self.network.device)
        hidden = self.network.hidden_states(pad(self.rows, lengths.tolist(), self.network.encoder.pad_id).to(self.network.device))
        return hidden[torch.arange(len(lengths), device=lengths.device), lengths - 1]


def new_decoder(network: Network, prompts: Sequence[Sequence[int]], number: int, last_position: int, *, compiled: bool = False) -> Decoder:
    """A decoder that has read the prompts."""
    if network.caches:
        return CachedDecoder(network, prompts, number, last_position, compiled=compiled)
    return WholeRowDecoder(network, prompts, last_position)


@torch.no_grad()
def agrees(network: Network, ids: Sequence[int]) -> bool:
    """Whether decoding with a cache gives the hidden states of one forward over whole rows: three prompts of different lengths, left
    padded, one of them with two responses, and a row that leaves. `ids`: ten ordinary tokens or more."""
    device, length = network.device, positions.row_bound(network.model, None)[0] or max(PROMPTS) + NUM_STEPS
    prompts = [list(ids[i : i + max(1, min(n, length - NUM_STEPS))]) for i, n in enumerate(PROMPTS)]
    owner = torch.arange(len(prompts)).repeat_interleave(torch.tensor(COPIES))
    follow = torch.tensor([list(ids[i + 2 : i + 2 + NUM_STEPS]) for i in range(len(owner))], device=device)
    rows = [prompts[p] + tokens for p, tokens in zip(owner.tolist(), follow.tolist(), strict=True)]
    expected = network.hidden_states(pad(rows, [0] * len(rows), network.encoder.pad_id).to(device))
    if expected.isnan().any():  # there is nothing to compare with, and what is sampled is refused
        return True
    starts = torch.tensor([len(prompts[p]) - 1 for p in owner.tolist()], device=device)
    places = torch.arange(len(owner), device=device)
    try:
        decoder = CachedDecoder(network, prompts, NUM_STEPS, length - 1)
        decoder.select(owner.to(device))
        for step in range(NUM_STEPS):
            if not _same(decoder.hidden, expected[places, starts[places] + step]):
                return False
            if step == 1:
                decoder.select(places[1:])
                places = places[1:]
            decoder.read(follow[places, step])
        return _same(decoder.hidden, expected[places, starts[places] + NUM_STEPS])
    except REFUSALS:
        return False


def _same(x: Tensor, y: Tensor) -> bool:
    tolerance = TOLERANCE.get(x.dtype, HALF_TOLERANCE)
    return bool(((x - y).norm(dim=-1) <= tolerance * y.norm(dim=-1)).all())


def _left_pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = repeat(torch.arange(width), "t -> b t", b=len(rows)) >= torch.tensor([[width - len(row)] for row in rows])
    for b, row in enumerate(rows):
        ids[b, width - len(row) :] = torch.tensor(row, dtype=torch.long)
    return ids, mask.long()


__all__ = ["CachedDecoder", "Decoder", "WholeRowDecoder", "agrees", "new_decoder"]

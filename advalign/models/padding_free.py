"""Rows without padding, and with what they have in common once: "B T" becomes one row of N tokens while the blocks run.

    rows  [p p a a a .]          one row  [p p | a a a | b]        a reads p p and itself, b reads p p and itself
          [p p b . . .]

All but attention works on tokens one by one, so nothing but attention needs to know. Attention gathers rows of like lengths side by
side: the common beginning reads itself; every row's rest reads that beginning and itself. Embeddings, edits and the head stay in
rows: objectives and adversaries never see a layout. Two rows have a beginning in common where they share a group and their first
tokens are equal; rows with edits of their own are packed without sharing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

from advalign.types import Edit, Tokens

NAME = "advalign_rows"  # of the attention function in a model's configuration
KEYWORD = "rows_layout"  # through which a layer is told the layout
SAVED = 0.1  # a layout is worth its gathers if it saves this share of the tokens
ROOM = 1.25  # rows are attended to side by side while padding adds at most a quarter to what they are
KINDS = ("full_attention", "sliding_attention")


@dataclass(frozen=True)
class Block:
    """Rows of like lengths, for attention. `keys`: all tokens of each row, right padded with any; `queries`: those of its tokens that
    no earlier row has, from token `first` on; `mask`: what each query reads, None for plainly causal (where all rows start alike, one
    for all); `real`: which queries are no padding."""

    keys: Int[Tensor, "R K"]
    queries: Int[Tensor, "R Q"]
    first: Int[Tensor, "#R"]
    mask: Bool[Tensor, "#R Q K"] | None
    real: Bool[Tensor, "R Q"]

    def to(self, device: torch.device) -> Block:
        mask = None if self.mask is None else self.mask.to(device)
        return Block(self.keys.to(device), self.queries.to(device), self.first.to(device), mask, self.real.to(device))

    def within(self, window: int | None) -> Bool[Tensor, "#R Q K"] | None:
        """What each query reads in a layer that looks back `window` tokens, itself among them."""
        return self.mask if window is None else _reach(self.first, self.queries.shape[1], self.keys.shape[1], window)


@dataclass(frozen=True)
class PackedLayout:
    """`source[n]`: which token of the flattened rows stands at n; `place[b, t]`: where token t of row b stands (`padding`: nowhere);
    `positions`: in its row; `order`: puts the queries of all blocks, one after the other, in place."""

    source: Int[Tensor, "N"]
    place: Int[Tensor, "B T"]
    padding: Bool[Tensor, "B T"]
    positions: Int[Tensor, "N"]
    blocks: tuple[Block, ...]
    order: Int[Tensor, "N"]

    def pack(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "1 N D"]:
        return x.flatten(0, 1)[self.source][None]

    def unpack(self, x: Float[Tensor, "1 N D"]) -> Float[Tensor, "B T D"]:
        """Zero at padding."""
        return x[0][self.place].masked_fill(self.padding[..., None], 0)

    def inputs(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Of a forward over the packed row. A mask of four axes is handed on as it is, and never read."""
        embeddings = self.pack(inputs["inputs_embeds"])
        mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=embeddings.device)
        places = {"inputs_embeds": embeddings, "position_ids": self.positions[None], "attention_mask": mask}
        return {**inputs, **places, KEYWORD: self}

    def edits(self, edits: Mapping[str, Edit]) -> dict[str, Edit]:
        """Edits of blocks, packed; that of the embedding has been made by then."""
        packed = {}
        for site, edit in edits.items():
            add = None if edit.add is None else self.pack(edit.add)
            where = None if edit.where is None else edit.where.flatten()[self.source][None]
            packed[site] = replace(edit, add=add, where=where)
        return packed


def layout(tokens: Tokens, *, share: bool) -> PackedLayout | None:
    """The layout of right-padded rows; None where it would save too little. With `share` the beginning that the rows of a group have
    in common is there once."""
    mask = tokens.mask.cpu()
    lengths = mask.sum(1)
    common = _common(tokens, lengths) if share else torch.zeros_like(lengths)
    owners = _owners(tokens.group.cpu(), common)
    number = int((lengths - common).sum()) + sum(int(common[rows[0]]) for rows in owners)
    if number > (1 - SAVED) * mask.numel():
        return None
    return _laid_out(mask, lengths, common, owners, tokens.ids.device)


def _common(tokens: Tokens, lengths: Int[Tensor, "B"]) -> Int[Tensor, "B"]:
    """How many first tokens each row shares with all of its group; at least one token of every row is its own."""
    ids, group = tokens.ids.cpu(), tokens.group.cpu()
    found = torch.zeros_like(lengths)
    for g in group.unique().tolist():
        rows = (group == g).nonzero().squeeze(1)
        if len(rows) > 1:
            shortest = int(lengths[rows].min()) - 1
            same = (ids[rows, :shortest] == ids[rows[0], :shortest]).all(0).long()
            found[rows] = int(same.cumprod(0).sum())
    return found


def _owners(group: Int[Tensor, "B"], common: Int[Tensor, "B"]) -> list[list[int]]:
    """Rows that share a beginning; the first of each list brings it."""
    shared: dict[int, list[int]] = {}
    for row, (g, n) in enumerate(zip(group.tolist(), common.tolist(), strict=True)):
        if n:
            shared.setdefault(g, []).append(row)
    return list(shared.values())


def _laid_out(
    mask: Bool[Tensor, "B T"], lengths: Int[Tensor, "B"], common: Int[Tensor, "B"], owners: list[list[int]], device: torch.device
) -> PackedLayout:
    width = mask.shape[1]
    column = torch.arange(width)
    bringer = torch.arange(len(mask))  # the row whose tokens stand for a row's beginning
    for rows in owners:
        bringer[rows] = rows[0]
    own = (column[None] >= common[:, None]) & mask
    stored = own | ((bringer == torch.arange(len(mask)))[:, None] & mask)
    source = stored.flatten().nonzero().squeeze(1)
    number = torch.zeros(mask.numel(), dtype=torch.long)
    number[source] = torch.arange(len(source))
    number = number.view_as(mask)
    place = torch.where(own, number, number[bringer]) * mask
    starts = [(row, 0, int(lengths[row])) for row in range(len(mask)) if not common[row]]
    starts += [(rows[0], 0, int(common[rows[0]])) for rows in owners]
    starts += [(row, int(common[row]), int(lengths[row])) for row in range(len(mask)) if common[row]]
    blocks = tuple(_block(members, place) for members in _alike(starts))
    order = torch.cat([b.queries[b.real] for b in blocks]).argsort()
    return PackedLayout(
        source=source.to(device),
        place=place.to(device),
        padding=~mask.to(device),
        positions=(source % width).to(device),
        blocks=tuple(block.to(device) for block in blocks),
        order=order.to(device),
    )


def _alike(segments: list[tuple[int, int, int]]) -> list[list[tuple[int, int, int]]]:
    """(row, first, end) triples in lists of like queries and keys."""
    lists: list[list[tuple[int, int, int]]] = []
    area = 0  # of the last list, without padding
    for row, first, end in sorted(segments, key=lambda s: (s[1], -s[2], s[0])):
        if end == first:
            continue
        mine = (end - first) * end
        members = lists[-1] if lists else []
        widest = (max(e for _, _, e in members), max(e - f for _, f, e in members)) if members else (0, 0)
        padded = (len(members) + 1) * max(widest[0], end) * max(widest[1], end - first)
        same_kind = bool(members) and (members[0][1] == 0) == (first == 0)
        if same_kind and padded <= ROOM * (area + mine):
            members.append((row, first, end))
            area += mine
        else:
            lists.append([(row, first, end)])
            area = mine
    return lists


def _block(members: list[tuple[int, int, int]], place: Int[Tensor, "B T"]) -> Block:
    rows = torch.tensor([row for row, _, _ in members])
    first, end = torch.tensor([m[1] for m in members]), torch.tensor([m[2] for m in members])
    keys = place[rows, : int(end.max())]
    step = torch.arange(int((end - first).max()))
    where = first[:, None] + step
    real = where < end[:, None]
    where = where.clamp(max=keys.shape[1] - 1)
    queries = keys.gather(1, where)
    starts = first.unique() if len(first.unique()) == 1 else first
    mask = _reach(starts, queries.shape[1], keys.shape[1]) if bool(first.any()) else None
    return Block(keys, queries, starts, mask, real)


def _reach(first: Int[Tensor, "R"], queries: int, keys: int, window: int | None = None) -> Bool[Tensor, "R Q K"]:
    query = (first[:, None] + torch.arange(queries, device=first.device))[:, :, None]
    key = torch.arange(keys, device=first.device)
    return key <= query if window is None else (key <= query) & (key > query - window)


# --------------------------------------------------------------------------------------------------- attention


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, dropout: float = 0.0,
    scaling: float | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """transformers' SDPA attention; and where a layout is given, the same for packed rows. Shapes "1 H N d"."""
    here: PackedLayout | None = kwargs.pop(KEYWORD, None)
    if here is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)  # type: ignore[no-any-return]
    return _packed(here, query, key, value, dropout, scaling, kwargs.get("sliding_window")), None


@torch.compiler.disable  # every layout would be compiled anew
def _packed(
    here: PackedLayout, query: Tensor, key: Tensor, value: Tensor, dropout: float, scaling: float | None, window: int | None
) -> Tensor:
    times = query.shape[1] // key.shape[1]
    outputs = []
    for block in here.blocks:
        q = _rows(query, block.queries)
        k, v = (repeat_kv(_rows(x, block.keys), times) for x in (key, value))
        mask = block.within(window)
        mask = None if mask is None else mask[:, None]
        out = nn.functional.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=mask is None, scale=scaling)
        outputs.append(out.transpose(1, 2)[block.real])
    return torch.cat(outputs)[here.order][None]


def _rows(x: Float[Tensor, "1 H N d"], where: Int[Tensor, "R K"]) -> Float[Tensor, "R H K d"]:
    return x[0].transpose(0, 1)[where].transpose(1, 2)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


# ------------------------------------------------------------------------------------------------ who can be packed


def prepare(model: Any) -> bool:
    """Gives a causal model the attention function above where it now uses SDPA; whether its rows can be packed, as far as its
    configuration says (`agrees` tries it)."""
    config: Any = getattr(getattr(model, "base_model", None), "config", None)
    implementation = getattr(config, "_attn_implementation", None)
    if implementation == NAME:
        return True
    kinds = getattr(config, "layer_types", None) or ()
    able = getattr(model, "_supports_attention_backend", False) and not getattr(model, "_is_stateful", False)
    if not able or implementation != "sdpa" or any(kind not in KINDS for kind in kinds):
        return False
    config._attn_implementation = NAME
    return True


REFUSALS = (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError)


@torch.no_grad()
def agrees(run: Callable[[PackedLayout | None, Tokens], Tensor], device: torch.device, size: int) -> bool:
    """Whether packed rows give what padded rows give: tried once, on three short rows of which two share a beginning. A model may mix
    tokens elsewhere than in its attention, and its configuration does not say so; one that cannot run them at all is padded too."""
    ids = torch.tensor([[1, 2, 3, 4, 5, 6], [1, 2, 3, 5, 0, 0], [6, 5, 4, 0, 0, 0]], device=device) % size
    mask = torch.arange(6, device=device)[None] < torch.tensor([6, 4, 3], device=device)[:, None]
    rows = torch.arange(3, device=device)
    tokens = Tokens(ids=ids * mask, mask=mask, target=mask, group=torch.tensor([0, 0, 1], device=device), key=rows)
    packed = layout(tokens, share=True)
    assert packed is not None
    try:
        there, here = run(packed, tokens)[mask], run(None, tokens)[mask]
    except REFUSALS:
        return False
    tolerance = 0.1 if here.dtype in (torch.bfloat16, torch.float16) else 1e-3  # of a typical number: mixed tokens are off by all of it
    return bool((there - here).abs().max() <= tolerance * here.abs().mean())


__all__ = ["PackedLayout", "agrees", "layout", "prepare"]

"""Rows without padding, and with common beginnings once: "B T" becomes one row of N tokens while the blocks run.

    rows  [p p a a a .]          one row  [p p | a a a | b]        a reads p p and itself, b reads p p and itself
          [p p b . . .]

Only attention mixes tokens, so only attention reads the layout. It gathers rows of similar lengths side by side: the common beginning
reads itself; the remainder of every row reads that beginning and itself. Embeddings, edits and the head stay in rows: objectives and
adversaries never see a layout. Two rows have a beginning in common where they share a group and their first tokens are equal; rows with
their own edits are packed without sharing; those whose group has one edit (`Edit.common`) share it with the beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

from advalign.models import architecture, processor_attention
from advalign.types import Edit, Tokens

NAME = "advalign_rows"  # of the attention function in a model's configuration
KEYWORD = "rows_layout"  # argument by which a layer receives the layout
MIN_SAVING = 0.1  # a layout is worth its gathers if it saves this fraction of the tokens
MAX_PADDING = 1.25  # rows share a block while padding multiplies the area of their attention by at most this
KINDS = ("full_attention", "sliding_attention")


@dataclass(frozen=True)
class Block:
    """Rows of similar lengths, for attention. Tokens are numbered by their place in the packed row."""

    keys: Int[Tensor, "R K"]
    """All tokens of each row, right padded with any."""
    queries: Int[Tensor, "R Q"]
    """Those of its tokens that no earlier row has, from token `first` on."""
    first: Int[Tensor, "#R"]
    """Position in the row of its first query; one number where all are equal."""
    mask: Bool[Tensor, "#R Q K"] | None
    """What each query reads; one for all rows where `first` is; None: causal."""
    real: Bool[Tensor, "R Q"]
    """Which queries are not padding."""

    def to(self, device: torch.device) -> Block:
        mask = None if self.mask is None else self.mask.to(device)
        return Block(self.keys.to(device), self.queries.to(device), self.first.to(device), mask, self.real.to(device))

    def within(self, window: int | None) -> Bool[Tensor, "#R Q K"] | None:
        """What each query reads in a layer that looks back `window` tokens, itself included."""
        return self.mask if window is None else _causal_mask(self.first, self.queries.shape[1], self.keys.shape[1], window)


@dataclass(frozen=True)
class PackedLayout:
    """Where the tokens of rows "B T" are in the packed row "N"."""

    source: Int[Tensor, "N"]
    """Number of the token in the flattened rows."""
    place: Int[Tensor, "B T"]
    """Place of each token in the packed row; 0 at padding."""
    padding: Bool[Tensor, "B T"]
    """Which tokens of the rows are padding."""
    positions: Int[Tensor, "N"]
    """Position of each token in its own row."""
    blocks: tuple[Block, ...]
    """Rows that attention reads side by side."""
    order: Int[Tensor, "N"]
    """Puts the queries of all blocks, one after the other, in the order of the packed row."""

    def pack(self, x: Shaped[Tensor, "B T *S"]) -> Shaped[Tensor, "1 N *S"]:
        return x.flatten(0, 1)[self.source][None]

    def unpack(self, x: Float[Tensor, "1 N D"]) -> Float[Tensor, "B T D"]:
        """Zero at padding."""
        return x[0][self.place].masked_fill(self.padding[..., None], 0)

    def inputs(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of a forward over the packed row. A mask of four axes passes through transformers unchanged, and is never read."""
        rows = {name: self.pack(x) for name, x in inputs.items() if isinstance(x, Tensor)}
        mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=rows["inputs_embeds"].device)
        return {"position_ids": self.positions[None], **inputs, **rows, "attention_mask": mask, KEYWORD: self}

    def edits(self, edits: Mapping[str, Edit]) -> dict[str, Edit]:
        """Edits of the outputs of blocks, packed."""
        packed = {}
        for site, edit in edits.items():
            add = None if edit.add is None else self.pack(edit.add)
            where = None if edit.where is None else edit.where.flatten()[self.source][None]
            packed[site] = replace(edit, add=add, where=where)
        return packed


def build_layout(tokens: Tokens, *, share: bool) -> PackedLayout | None:
    """The layout of right-padded rows; None where it would save too little. With `share` the common beginning of the rows of a group is
    there once."""
    mask = tokens.mask.cpu()
    lengths = mask.sum(1)
    common = _common_lengths(tokens, lengths) if share else torch.zeros_like(lengths)
    sharing = _rows_that_share(tokens.group.cpu(), common)
    number = int((lengths - common).sum()) + sum(int(common[rows[0]]) for rows in sharing)
    if number > (1 - MIN_SAVING) * mask.numel():
        return None
    return _lay_out(mask, lengths, common, sharing, tokens.ids.device)


def _common_lengths(tokens: Tokens, lengths: Int[Tensor, "B"]) -> Int[Tensor, "B"]:
    """How many first tokens each row shares with all of its group; at least one token of every row is its own."""
    ids, group = tokens.ids.cpu(), tokens.group.cpu()
    common = torch.zeros_like(lengths)
    for g in group.unique().tolist():
        rows = (group == g).nonzero().squeeze(1)
        if len(rows) > 1:
            shortest = int(lengths[rows].min()) - 1
            same = (ids[rows, :shortest] == ids[rows[0], :shortest]).all(0).long()
            common[rows] = int(same.cumprod(0).sum())
    return common


def _rows_that_share(group: Int[Tensor, "B"], common: Int[Tensor, "B"]) -> list[list[int]]:
    """Rows that share a beginning; it is stored with the first of each list."""
    sharing: dict[int, list[int]] = {}
    for row, (g, n) in enumerate(zip(group.tolist(), common.tolist(), strict=True)):
        if n:
            sharing.setdefault(g, []).append(row)
    return list(sharing.values())


def _lay_out(
    mask: Bool[Tensor, "B T"], lengths: Int[Tensor, "B"], common: Int[Tensor, "B"], sharing: list[list[int]], device: torch.device
) -> PackedLayout:
    width = mask.shape[1]
    column = torch.arange(width)
    owner = torch.arange(len(mask))  # the row that a row's beginning is stored with
    for rows in sharing:
        owner[rows] = rows[0]
    unshared = (column[None] >= common[:, None]) & mask
    stored = unshared | ((owner == torch.arange(len(mask)))[:, None] & mask)
    source = stored.flatten().nonzero().squeeze(1)
    number = torch.zeros(mask.numel(), dtype=torch.long)
    number[source] = torch.arange(len(source))
    number = number.view_as(mask)
    place = torch.where(unshared, number, number[owner]) * mask
    segments = [(row, 0, int(lengths[row])) for row in range(len(mask)) if not common[row]]
    segments += [(rows[0], 0, int(common[rows[0]])) for rows in sharing]
    segments += [(row, int(common[row]), int(lengths[row])) for row in range(len(mask)) if common[row]]
    blocks = tuple(_block(members, place) for members in _similar(segments))
    order = torch.cat([b.queries[b.real] for b in blocks]).argsort()
    return PackedLayout(
        source=source.to(device),
        place=place.to(device),
        padding=~mask.to(device),
        positions=(source % width).to(device),
        blocks=tuple(block.to(device) for block in blocks),
        order=order.to(device),
    )


def _similar(segments: list[tuple[int, int, int]]) -> list[list[tuple[int, int, int]]]:
    """(row, first, end) triples in lists with similar numbers of queries and keys."""
    lists: list[list[tuple[int, int, int]]] = []
    area = 0  # of the last list, without padding
    for row, first, end in sorted(segments, key=lambda s: (s[1], -s[2], s[0])):
        if end == first:
            continue
        segment_area = (end - first) * end
        members = lists[-1] if lists else []
        widest = (max(e for _, _, e in members), max(e - f for _, f, e in members)) if members else (0, 0)
        padded = (len(members) + 1) * max(widest[0], end) * max(widest[1], end - first)
        same_kind = bool(members) and (members[0][1] == 0) == (first == 0)
        if same_kind and padded <= MAX_PADDING * (area + segment_area):
            members.append((row, first, end))
            area += segment_area
        else:
            lists.append([(row, first, end)])
            area = segment_area
    return lists


def _block(members: list[tuple[int, int, int]], place: Int[Tensor, "B T"]) -> Block:
    rows = torch.tensor([row for row, _, _ in members])
    first, end = torch.tensor([m[1] for m in members]), torch.tensor([m[2] for m in members])
    keys = place[rows, : int(end.max())]
    step = torch.arange(int((end - first).max()))
    position = first[:, None] + step
    real = position < end[:, None]
    position = position.clamp(max=keys.shape[1] - 1)
    queries = keys.gather(1, position)
    starts = first.unique() if len(first.unique()) == 1 else first
    mask = _causal_mask(starts, queries.shape[1], keys.shape[1]) if bool(first.any()) else None
    return Block(keys, queries, starts, mask, real)


def _causal_mask(first: Int[Tensor, "R"], queries: int, keys: int, window: int | None = None) -> Bool[Tensor, "R Q K"]:
    query = (first[:, None] + torch.arange(queries, device=first.device))[:, :, None]
    key = torch.arange(keys, device=first.device)
    return key <= query if window is None else (key <= query) & (key > query - window)


# --------------------------------------------------------------------------------------------------- attention


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, dropout: float = 0.0,
    scaling: float | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """transformers' SDPA attention; where a layout is given, the same for packed rows. Shapes "1 H N d"."""
    layout: PackedLayout | None = kwargs.pop(KEYWORD, None)
    if layout is not None:
        return _attend_packed(layout, query, key, value, dropout, scaling, kwargs.get("sliding_window")), None
    if processor_attention.reads_one_token(query, key, attention_mask, kwargs):
        return processor_attention.single_token(query, key, value, attention_mask, dropout, scaling), None
    causal = not architecture.has_option(module, "is_causal") or module.is_causal
    if processor_attention.reads_short_rows(query, key, attention_mask, dropout, {"is_causal": causal, **kwargs}):
        return processor_attention.short_rows(query, key, value, attention_mask, scaling).transpose(1, 2).contiguous(), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)  # type: ignore[no-any-return]


@torch.compiler.disable  # every layout would be compiled again
def _attend_packed(
    layout: PackedLayout, query: Tensor, key: Tensor, value: Tensor, dropout: float, scaling: float | None, window: int | None
) -> Tensor:
    outputs = []
    for block in layout.blocks:
        q, k, v = _rows(query, block.queries), _rows(key, block.keys), _rows(value, block.keys)
        outputs.append(_attend(q, k, v, block.within(window), dropout, scaling).transpose(1, 2)[block.real])
    return torch.cat(outputs)[layout.order][None]


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, scaling: float | None) -> Tensor:
    mask = None if mask is None else mask[:, None]
    if processor_attention.reads_short_rows(query, key, mask, dropout, {}):
        return processor_attention.short_rows(query, key, value, mask, scaling)
    key, value = (repeat_kv(x, query.shape[1] // key.shape[1]) for x in (key, value))
    return nn.functional.scaled_dot_product_attention(query, key, value, mask, dropout, is_causal=mask is None, scale=scaling)


def _rows(x: Float[Tensor, "1 H N d"], places: Int[Tensor, "R K"]) -> Float[Tensor, "R H K d"]:
    return x[0].transpose(0, 1)[places].transpose(1, 2)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


# ---------------------------------------------------------------------------------------- which models can be packed


def prepare(model: Any) -> bool:
    """Gives a causal model the attention function above in place of SDPA; whether its rows can be packed, as far as its
    configuration says (`agrees` tries it)."""
    config, implementation, kinds = architecture.attention_kinds(model)
    if implementation == NAME:
        return True
    if not architecture.takes_attention_functions(model) or implementation != "sdpa" or any(kind not in KINDS for kind in kinds):
        return False
    config._attn_implementation = NAME
    return True


REFUSALS = (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError)


def ordinary_ids(size: int, special: Set[int], number: int) -> list[int]:
    """Ids spread over a vocabulary of `size`, without special tokens, whose hidden states may be a thousand times as large as others;
    repeated where there are fewer."""
    ids = [i for i in range(size) if i not in special] or list(range(size))
    return [ids[(len(ids) * (2 * k + 1)) // (2 * number)] for k in range(number)]


@torch.no_grad()
def agrees(run: Callable[[Tokens, PackedLayout | None], Tensor], device: torch.device, ids: Sequence[int]) -> bool:
    """Whether packed rows give what padded rows give: tried once, on three short rows of six tokens `ids`, of which two share a
    beginning. A model may mix tokens outside its attention, and its configuration does not say so; one that cannot run packed rows at
    all is padded too. The error of a token is relative to the length of its hidden state."""
    order = torch.tensor([[0, 1, 2, 3, 4, 5], [0, 1, 2, 4, 0, 0], [5, 4, 3, 0, 0, 0]], device=device)
    mask = torch.arange(6, device=device)[None] < torch.tensor([6, 4, 3], device=device)[:, None]
    rows = torch.arange(3, device=device)
    shuffled = torch.tensor(list(ids), device=device)[order] * mask
    tokens = Tokens(ids=shuffled, mask=mask, target=mask, group=torch.tensor([0, 0, 1], device=device), key=rows)
    packed = build_layout(tokens, share=True)
    assert packed is not None
    try:
        unpacked, padded = run(tokens, packed)[mask], run(tokens, None)[mask]
    except REFUSALS:
        return False
    tolerance = 0.1 if padded.dtype in (torch.bfloat16, torch.float16) else 1e-3  # mixed tokens are off by all of a hidden state
    return bool(((unpacked - padded).norm(dim=-1) <= tolerance * padded.norm(dim=-1)).all())


__all__ = ["PackedLayout", "agrees", "build_layout", "ordinary_ids", "prepare"]

"""Rows of token ids, right padded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from advalign.types import Tokens


@dataclass(frozen=True)
class Row:
    """One row before it is padded."""

    ids: list[int]
    """Token ids."""
    target: list[bool]
    """Per token: whether it is a target."""
    roles: list[int]
    """Per token: index into ROLES; -1: the template."""
    turns: list[int]
    """Per token: the number of its message; -1: the template."""
    types: list[int] | None = None
    """Per token: its segment, as the tokenizer says. None: it says nothing."""

    def cut(self, length: int) -> Row:
        """Its first tokens."""
        return self if len(self.ids) <= length else self.pick(range(length))

    def pick(self, positions: Sequence[int]) -> Row:
        """The tokens at these positions. Nothing predicts the first one, so it is not a target."""
        return Row(
            ids=[self.ids[t] for t in positions],
            target=[place > 0 and self.target[t] for place, t in enumerate(positions)],
            roles=[self.roles[t] for t in positions],
            turns=[self.turns[t] for t in positions],
            types=None if self.types is None else [self.types[t] for t in positions],
        )


def padded(rows: Sequence[Row], pad_id: int, group: Sequence[int] | None = None) -> Tokens:
    """Right-padded rows; `group`: their group numbers (None: each row its own). Token types are there where every row has them."""
    tokens = pad([row.ids for row in rows], [0] * len(rows), pad_id, group)
    columns = {
        name: _filled(values, tokens.ids.shape[1], fill)
        for name, values, fill in (
            ("target", [row.target for row in rows], False),
            ("role", [row.roles for row in rows], -1),
            ("turn", [row.turns for row in rows], -1),
        )
    }
    types = [row.types for row in rows if row.types is not None]
    if rows and len(types) == len(rows):
        columns["token_types"] = _filled(types, tokens.ids.shape[1], 0)
    return replace(tokens, **columns)


def pad(rows: Sequence[Sequence[int]], starts: Sequence[int], pad_id: int, group: Sequence[int] | None = None) -> Tokens:
    """Right-pad; tokens from `starts[b]` on are the target of row b."""
    width = max(len(r) for r in rows)
    ids: Int[Tensor, "B T"] = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    target = torch.zeros(len(rows), width, dtype=torch.bool)
    for b, (row, start) in enumerate(zip(rows, starts, strict=True)):
        ids[b, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[b, : len(row)] = True
        target[b, start : len(row)] = True
    key = torch.arange(len(rows))
    return Tokens(ids=ids, mask=mask, target=target, group=key.clone() if group is None else torch.tensor(group, dtype=torch.long), key=key)


def _filled(rows: Sequence[Sequence[int]], width: int, fill: int | bool) -> Tensor:
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows])

"""The search over replaced words that all discrete adversaries share: rows with slots, first-order gains, greedy moves.

A slot is a word that may change, its options are the pieces that may replace it. A change of one option is worth, to first
order, g · (e' - e), summed over the pieces of the word, with g the gradient of the loss with respect to the embeddings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from advalign.types import Edit, Tokens

Pieces = tuple[int, ...]
CHUNK = 4096  # dot products at once; each takes two vectors of the width of the model
Choice = Mapping[int, int]  # {slot: option}; the other slots are unchanged


class Slot(NamedTuple):
    """A word that may change: pieces start..stop of the unchanged row."""

    start: int
    stop: int
    options: tuple[Pieces, ...]
    """What may replace it."""


class Move(NamedTuple):
    """One substitution."""

    gain: float
    """By how much it raises the loss, to first order."""
    slot: int
    option: int


@dataclass(frozen=True, kw_only=True)
class Row:
    """The search of one row."""

    ids: Pieces
    """The unchanged row."""
    slots: tuple[Slot, ...]
    """The words that may change."""
    limit: int
    """Slots that may change."""
    spare: int
    """Pieces by which the row may grow."""
    best: Choice = field(default_factory=dict)
    """The choice of the highest loss so far."""
    candidate: Choice = field(default_factory=dict)
    """What the next pass evaluates."""
    loss: float | None = None
    """The loss of `best`."""
    moves: tuple[Move, ...] = ()
    """Moves from `best`, the best first."""
    stride: int = 1
    """Slots that one pass changes."""

    def growth(self, slot: int, option: int) -> int:
        """Pieces that an option has more than the word it replaces."""
        return len(self.slots[slot].options[option]) - (self.slots[slot].stop - self.slots[slot].start)

    def splice(self, choice: Choice) -> tuple[list[int], list[int]]:
        """(changed ids, the original position of each of them); new pieces take the positions of the old word's pieces, in order."""
        ids, source, position = [], [], 0
        for number in sorted(choice):
            slot = self.slots[number]
            new = slot.options[choice[number]]
            ids += [*self.ids[position : slot.start], *new]
            source += [*range(position, slot.start), *(min(slot.start + i, slot.stop - 1) for i in range(len(new)))]
            position = slot.stop
        return ids + list(self.ids[position:]), source + list(range(position, len(self.ids)))

    def with_moves(self, moves: Sequence[Move], passes: int) -> Row:
        """The row with its ranked moves; the remaining budget is spread over the `passes` evaluations to come."""
        stride = math.ceil((self.limit - len(self.best)) / passes) if passes else 0
        return replace(self, moves=tuple(moves), stride=stride)

    def propose(self) -> Row:
        """The next candidate: the best moves within stride, limit and spare; after the first only moves with a positive gain."""
        candidate, spare = dict(self.best), self.spare - sum(self.growth(*item) for item in self.best.items())
        for move in self.moves:
            if len(candidate) - len(self.best) >= min(self.stride, self.limit - len(self.best)):
                break
            fits = self.growth(move.slot, move.option) <= spare
            if fits and move.slot not in candidate and (move.gain > 0 or len(candidate) == len(self.best)):
                candidate[move.slot] = move.option
                spare -= self.growth(move.slot, move.option)
        return replace(self, candidate=candidate)

    def record(self, loss: float) -> tuple[Row, bool]:
        """(the row after its candidate had this loss, whether that is the highest so far). The unchanged row comes first. A candidate that
        is not better is tried again with half as many moves; a single move is given up."""
        if self.loss is None or loss > self.loss:
            return replace(self, best=self.candidate, loss=loss), True
        new = set(self.candidate) - set(self.best)
        if len(new) > 1:
            return replace(self, stride=len(new) // 2), False
        return replace(self, moves=tuple(m for m in self.moves if not (m.slot in new and self.candidate[m.slot] == m.option))), False


# --------------------------------------------------------------------------------------------------- first order


def rank_moves(rows: Sequence[Row], gradient: Float[Tensor, "B T D"], embed: nn.Module, order: str) -> list[list[Move]]:
    """Moves of every row from its best choice, the best first. order "gain": by first-order gain; "norm": words by the L1 norm of
    the mean gradient of their pieces, the options of one word by gain."""
    starts = [_starts(row) for row in rows]
    by_row = _moves(rows, starts, gradient, embed)
    if order == "gain":
        return [sorted(moves, key=lambda m: -m.gain) for moves in by_row]
    norms = _norms(rows, starts, gradient)
    ordered = [sorted((-norms[b, m.slot], -m.gain, m) for m in moves) for b, moves in enumerate(by_row)]
    return [[move for _, _, move in moves] for moves in ordered]


def _moves(
    rows: Sequence[Row], starts: Sequence[Mapping[int, int]], gradient: Float[Tensor, "B T D"], embed: nn.Module
) -> list[list[Move]]:
    """All moves with their gains; the dot products of all rows together."""
    owner: list[tuple[int, int, int]] = []  # (row, slot, option) of every sum; option -1 is the unchanged word
    products: list[tuple[int, int, int, float, int]] = []  # (row, position, id, weight, sum)
    for b, row in enumerate(rows):
        for s, start in starts[b].items():
            old = row.ids[row.slots[s].start : row.slots[s].stop]
            for o, pieces in enumerate((old, *row.slots[s].options), -1):
                products += [(b, start + i, pieces[j], weight, len(owner)) for i, j, weight in align(len(old), len(pieces))]
                owner.append((b, s, o))
    totals = torch.zeros(len(owner), dtype=torch.float64)
    for part in range(0, len(products), CHUNK):
        row_numbers, t, ids, weights, sums = (list(column) for column in zip(*products[part : part + CHUNK], strict=True))
        gradients = gradient[row_numbers, t]
        dots = (gradients * embed(torch.tensor(ids, device=gradient.device)).to(gradients.dtype)).sum(-1).double().cpu()
        totals.index_add_(0, torch.tensor(sums), dots * torch.tensor(weights, dtype=torch.float64))
    moves: list[list[Move]] = [[] for _ in rows]
    unchanged = 0.0
    for (b, s, o), value in zip(owner, totals.tolist(), strict=True):
        if o < 0:
            unchanged = value
        else:
            moves[b].append(Move(value - unchanged, s, o))
    return moves


def _norms(rows: Sequence[Row], starts: Sequence[Mapping[int, int]], gradient: Float[Tensor, "B T D"]) -> dict[tuple[int, int], float]:
    """{(row, slot): L1 norm of the mean gradient of the slot's pieces}."""
    slots = [(b, s) for b, by_slot in enumerate(starts) for s in by_slot]
    sizes = [rows[b].slots[s].stop - rows[b].slots[s].start for b, s in slots]
    places = [(b, starts[b][s] + i, n) for n, (b, s) in enumerate(slots) for i in range(sizes[n])]
    if not places:
        return {}
    row_numbers, t, number = (list(column) for column in zip(*places, strict=True))
    into = torch.tensor(number, device=gradient.device)
    sums = gradient.new_zeros(len(slots), gradient.shape[2]).index_add(0, into, gradient[row_numbers, t])
    return dict(zip(slots, [x / n for x, n in zip(sums.abs().sum(1).tolist(), sizes, strict=True)], strict=True))


def _starts(row: Row) -> dict[int, int]:
    """Where the unchanged slots begin, in the row with its best choice."""
    starts, shift = {}, 0
    for s, slot in enumerate(row.slots):
        if s in row.best:
            shift += row.growth(s, row.best[s])
        else:
            starts[s] = slot.start + shift
    return starts


def align(old: int, new: int) -> list[tuple[int, int, float]]:
    """(old piece, new piece, weight) when `old` pieces are stretched to `new`; weights sum to 1 per old piece.

    2 -> 3: new pieces 0 and 1 share old piece 0, new piece 2 takes the place of old piece 1.
    """
    if new < old:
        return [(i, i * new // old, 1.0) for i in range(old)]
    places = [j * old // new for j in range(new)]
    return [(i, j, 1 / places.count(i)) for j, i in enumerate(places)]


# --------------------------------------------------------------------------------------------------- the edit


def edit(rows: Sequence[Row], choices: Sequence[Choice], tokens: Tokens, *, pad: int, like: Tensor, width: int) -> Edit:
    """The changed rows, padded again, and where every original position went. `like` has the dtype and device of the deltas, of
    `width` features."""
    spliced = [row.splice(choice) for row, choice in zip(rows, choices, strict=True)]
    longest = max(len(ids) for ids, _ in spliced)
    ids = torch.full((len(rows), longest), pad, dtype=tokens.ids.dtype)
    source = torch.full((len(rows), longest), -1)
    origin = torch.full(tokens.ids.shape, -1)
    for b, (new, positions) in enumerate(spliced):
        ids[b, : len(new)] = torch.tensor(new)
        source[b, : len(new)] = torch.tensor(positions)
        for position, old in reversed(list(enumerate(positions))):  # backwards: of several new pieces the first one counts
            origin[b, old] = position
    source, origin = source.to(tokens.ids.device), origin.to(tokens.ids.device)
    real = source >= 0
    target = tokens.target.gather(1, source.clamp(min=0)) & real
    changed = tokens.moved(source, ids=ids.to(tokens.ids.device), mask=real, target=target)
    return Edit(torch.zeros(len(rows), longest, width, dtype=like.dtype, device=like.device), tokens=changed, origin=origin)

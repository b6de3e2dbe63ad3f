"""What the adversaries that replace words have in common: everything but where the substitutes come from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from advalign.adversaries import _search as search
from advalign.adversaries._unbounded import UnboundedAdversary
from advalign.adversaries._words import Word, WordReader, reader
from advalign.errors import ConfigError, unknown
from advalign.functional import balls
from advalign.interfaces import PerturbationContext
from advalign.plugins import kind_of
from advalign.types import Edit

GUIDES = ("gradient", "random")
ORDERS = ("gain", "norm")
PER_TOKEN = ("policy", "value")  # heads whose outputs belong to tokens: those tokens must stay


@dataclass(frozen=True)
class State:
    context: PerturbationContext
    rows: tuple[search.Row, ...]
    step: int = 0


@dataclass(frozen=True, kw_only=True)
class Discrete(UnboundedAdversary):
    """Abstract. A row's words change, at most a fraction `budget` of them, rounded up.

    guide "gradient": the first evaluation is the row as it was; from its gradient the best moves are taken, kept if the loss
    rises, and ranked again from the new gradient. "random": `steps` 0 changes as many words as the budget allows, unseen
    (augmentation); more evaluates that many draws, the row as it was among them, and keeps the best. order: moves are ranked by
    first-order "gain", or words by the "norm" of their gradient and the substitutes of one word by gain. Where all gains are zero
    (a divergence, at the clean row) words are drawn at random.
    """

    family: ClassVar[str] = "discrete"

    budget: float = 0.1
    steps: int = 4
    guide: str = "gradient"
    order: str = "gain"

    def options(self, reader: WordReader, words: Sequence[Word], ids: Sequence[int], generator: torch.Generator) -> list[tuple[Any, ...]]:
        """For every word of one row the pieces of its substitutes, () where there are none."""
        raise NotImplementedError

    def describe(self) -> tuple[str, ...]:
        """What `advalign show` says in the place of a ball and its radius."""
        return (f"{kind_of(type(self))} for at most {self.budget:.3g} of the words, by {self.guide}",)

    def __post_init__(self) -> None:
        kind = kind_of(type(self))
        balls.check(self.threat, kind)
        if self.share != "row":
            raise ConfigError(f"{kind}.share: '{self.share}' given; words are replaced row by row, so only 'row' is known.")
        if self.guide not in GUIDES:
            raise unknown(f"{kind}.guide", "guide", self.guide, GUIDES)
        if self.order not in ORDERS:
            raise unknown(f"{kind}.order", "order", self.order, ORDERS)
        if not 0 <= self.budget <= 1:
            raise ConfigError(f"{kind}.budget: {self.budget} given; a fraction of the words, between 0 and 1.")
        if self.steps < 2 and not (self.guide == "random" and self.steps == 0):
            raise ConfigError(
                f"{kind}.steps: {self.steps} given; at least 2 evaluations, the first of the row as it is, or 0 with guide: random."
            )

    # ---------------------------------------------------------------------------------------------- ask and tell

    def start(self, context: PerturbationContext) -> State:
        if context.network is None or context.tokens is None:
            raise ConfigError(f"{kind_of(type(self))}: it replaces words, so it needs the network and its tokens, and was given neither.")
        state = State(context, tuple(self._rows(context)))
        if self.steps:
            return state
        return replace(state, rows=tuple(replace(r, kept=c.asked) for r, c in zip(state.rows, self._drawn(state), strict=True)))

    def ask(self, state: State) -> dict[str, Edit]:
        context, rows = state.context, state.rows
        assert context.tokens is not None
        choices = [row.kept if state.step >= self.steps else row.asked for row in rows]
        like = torch.empty(0, dtype=torch.promote_types(context.dtype, torch.float32), device=context.allowed.device)
        width = context.network.width("embedding")
        return {"embedding": search.edit(rows, choices, context.tokens, pad=context.network.encoder.pad_id, like=like, width=width)}

    def tell(self, state: State, losses: Float[Tensor, "N"], gradients: Mapping[str, Any]) -> State:
        told = [row.told(loss) for row, loss in zip(state.rows, losses.tolist(), strict=True)]
        state = replace(state, rows=tuple(row for row, _ in told), step=state.step + 1)
        passes = self.steps - state.step
        if self.guide == "random":
            return replace(state, rows=self._drawn(state)) if passes else state
        moved = [b for b, (_, better) in enumerate(told) if better]
        rows = list(state.rows)
        for b, moves in zip(moved, self._ranked(state, moved, gradients["embedding"]), strict=True):
            rows[b] = rows[b].with_moves(moves, passes)
        return replace(state, rows=tuple(row.next() for row in rows))

    def _ranked(self, state: State, moved: Sequence[int], gradient: Float[Tensor, "N T D"]) -> list[list[search.Move]]:
        embed = state.context.network.model.get_input_embeddings()
        with torch.no_grad():
            found = search.ranked([state.rows[b] for b in moved], gradient[list(moved)], embed, self.order)
        for b, moves in zip(moved, found, strict=True):
            if all(move.gain == 0 for move in moves):
                order = torch.randperm(len(moves), generator=state.context.generators[b]).tolist()
                moves[:] = [moves[i] for i in order]
        return found

    def _drawn(self, state: State) -> tuple[search.Row, ...]:
        """Every row asks for a fresh random choice that uses up its budget."""
        rows = []
        for row, generator in zip(state.rows, state.context.generators, strict=True):
            moves = []
            for slot in torch.randperm(len(row.slots), generator=generator).tolist():
                option = int(torch.randint(len(row.slots[slot].options), (), generator=generator))
                moves.append(search.Move(1.0, slot, option))
            asked = replace(row, kept={}, moves=tuple(moves), stride=row.limit).next().asked
            rows.append(replace(row, asked=asked))
        return tuple(rows)

    # ---------------------------------------------------------------------------------------------- rows and slots

    def _rows(self, context: PerturbationContext) -> list[search.Row]:
        network, tokens = context.network, context.tokens
        assert tokens is not None
        known = reader(network.encoder)
        allowed = context.allowed & ~tokens.target if network.head in PER_TOKEN else context.allowed
        lengths, ends = tokens.lengths.tolist(), torch.where(tokens.target.any(1), tokens.target.int().argmax(1), -1).tolist()
        found = []
        for length, end, every, here, generator in zip(
            lengths, ends, tokens.ids.tolist(), allowed.tolist(), context.generators, strict=True
        ):
            ids = every[:length]
            if any(known.template) and end >= 0:
                start, stop = known.content(ids, end)
                here = [ok and (t >= end or start <= t < stop) for t, ok in enumerate(here)]
            words = known.words(ids, here)
            options = self.options(known, words, ids, generator)
            slots = [search.Slot(word.start, word.stop, some) for word, some in zip(words, options, strict=True) if some]
            room = max(network.encoder.max_length - length, 0)
            found.append(search.Row(ids=tuple(ids), slots=tuple(slots), limit=math.ceil(self.budget * len(words)), room=room))
        return found

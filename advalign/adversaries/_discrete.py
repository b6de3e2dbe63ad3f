"""What the adversaries that replace words share: everything but the source of the substitutes."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from advalign.adversaries import _word_search as search
from advalign.adversaries._unbounded import UnboundedAdversary
from advalign.adversaries._word_reader import Word, WordReader, reader_of
from advalign.errors import ConfigError
from advalign.functional import deltas
from advalign.interfaces import PerturbationContext
from advalign.models import Network
from advalign.plugins import kind_of
from advalign.ranges import Fraction, Natural, OneOf
from advalign.types import Edit

GUIDES = ("gradient", "random")
ORDERS = ("gain", "norm")
PER_TOKEN = ("policy", "value")  # heads whose outputs belong to tokens: those tokens must stay


@dataclass(frozen=True)
class DiscreteState:
    """The searches of all rows."""

    context: PerturbationContext
    network: Network
    rows: tuple[search.Row, ...]
    step: int = 0


@dataclass(frozen=True, kw_only=True)
class Discrete(UnboundedAdversary[DiscreteState]):
    """Abstract. Words of a row are replaced, at most a fraction `budget` of them, rounded up.

    Guided by gradients, the first evaluation is the unchanged row; from its gradient the best moves are taken, kept if the loss rises, and
    ranked again from the new gradient. Where all gains are zero (a divergence, at the clean row) words are drawn at random.
    """

    family: ClassVar[str] = "discrete"

    budget: Fraction = 0.1
    """Fraction of the words that may change."""
    steps: Natural = 4
    """Evaluations of each row, the first of the unchanged row; 0, with guide random: none."""
    guide: Annotated[str, OneOf(GUIDES, "guide")] = "gradient"
    """gradient, or random: with `steps` 0 as many random words as the budget allows change, unevaluated (augmentation); with more, so many
    draws are evaluated, the unchanged row among them, and the best is kept."""
    order: Annotated[str, OneOf(ORDERS, "order")] = "gain"
    """How moves are ranked: by first-order gain, or words by the norm of their gradient and the substitutes of one word by gain."""

    @abstractmethod
    def options(
        self, reader: WordReader, words: Sequence[Word], ids: Sequence[int], generator: torch.Generator
    ) -> list[tuple[search.Pieces, ...]]:
        """For every word of one row the pieces of its substitutes; () where there are none."""

    def describe(self) -> tuple[str, ...]:
        return (f"{kind_of(type(self))} for at most {self.budget:.3g} of the words, by {self.guide}",)

    def __post_init__(self) -> None:
        kind = kind_of(type(self))
        if self.share != "row":
            raise ConfigError(f"{kind}.share: '{self.share}' given; words are replaced row by row, so it must be 'row'.")
        if self.steps < 2 and not (self.guide == "random" and self.steps == 0):
            raise ConfigError(
                f"{kind}.steps: {self.steps} given; at least 2 evaluations, the first of the unchanged row, or 0 with guide: random."
            )

    # ---------------------------------------------------------------------------------------------- ask and tell

    def start(self, context: PerturbationContext) -> DiscreteState:
        if context.network is None or context.tokens is None:
            raise ConfigError(f"{kind_of(type(self))}: replacing words needs the network and its tokens, and the context has neither.")
        state = DiscreteState(context, context.network, tuple(self._rows(context, context.network)))
        if self.steps:
            return state
        drawn = self._draw(state)
        return replace(state, rows=tuple(replace(r, best=d.candidate) for r, d in zip(state.rows, drawn, strict=True)))

    def ask(self, state: DiscreteState) -> dict[str, Edit]:
        context, rows, network = state.context, state.rows, state.network
        assert context.tokens is not None
        choices = [row.best if state.step >= self.steps else row.candidate for row in rows]
        like = torch.empty(0, dtype=deltas.delta_dtype(context), device=context.allowed.device)
        width = network.width("embedding")
        return {"embedding": search.edit(rows, choices, context.tokens, pad=network.encoder.pad_id, like=like, width=width)}

    def tell(self, state: DiscreteState, losses: Float[Tensor, "N"], gradients: Mapping[str, Any]) -> DiscreteState:
        records = [row.record(loss) for row, loss in zip(state.rows, losses.tolist(), strict=True)]
        state = replace(state, rows=tuple(row for row, _ in records), step=state.step + 1)
        passes = self.steps - state.step
        if self.guide == "random":
            return replace(state, rows=self._draw(state)) if passes else state
        improved = [b for b, (_, better) in enumerate(records) if better]
        rows = list(state.rows)
        for b, moves in zip(improved, self._ranked(state, improved, gradients["embedding"]), strict=True):
            rows[b] = rows[b].with_moves(moves, passes)
        return replace(state, rows=tuple(row.propose() for row in rows))

    def _ranked(self, state: DiscreteState, improved: Sequence[int], gradient: Float[Tensor, "N T D"]) -> list[list[search.Move]]:
        embed = state.network.model.get_input_embeddings()
        with torch.no_grad():
            ranking = search.rank_moves([state.rows[b] for b in improved], gradient[list(improved)], embed, self.order)
        for b, moves in zip(improved, ranking, strict=True):
            if all(move.gain == 0 for move in moves):
                order = torch.randperm(len(moves), generator=state.context.generators[b]).tolist()
                moves[:] = [moves[i] for i in order]
        return ranking

    def _draw(self, state: DiscreteState) -> tuple[search.Row, ...]:
        """Every row with a fresh random candidate that uses up its budget."""
        rows = []
        for row, generator in zip(state.rows, state.context.generators, strict=True):
            moves = []
            for slot in torch.randperm(len(row.slots), generator=generator).tolist():
                option = int(torch.randint(len(row.slots[slot].options), (), generator=generator))
                moves.append(search.Move(1.0, slot, option))
            candidate = replace(row, best={}, moves=tuple(moves), stride=row.limit).propose().candidate
            rows.append(replace(row, candidate=candidate))
        return tuple(rows)

    # ---------------------------------------------------------------------------------------------- rows and slots

    def _rows(self, context: PerturbationContext, network: Network) -> list[search.Row]:
        tokens = context.tokens
        assert tokens is not None
        reader = reader_of(network.encoder)
        allowed = context.allowed & ~tokens.target if network.head in PER_TOKEN else context.allowed
        if tokens.role is not None:  # what a chat template writes stays
            allowed = allowed & (tokens.role >= 0)
        lengths, ends = tokens.lengths.tolist(), torch.where(tokens.target.any(1), tokens.target.int().argmax(1), -1).tolist()
        rows = []
        for length, end, padded, open_places, generator in zip(
            lengths, ends, tokens.ids.tolist(), allowed.tolist(), context.generators, strict=True
        ):
            ids = padded[:length]
            if tokens.role is None and any(reader.template) and end >= 0:
                start, stop = reader.content(ids, end)
                open_places = [ok and (t >= end or start <= t < stop) for t, ok in enumerate(open_places)]
            words = reader.words(ids, open_places)
            options = self.options(reader, words, ids, generator)
            slots = [search.Slot(word.start, word.stop, pieces) for word, pieces in zip(words, options, strict=True) if pieces]
            spare = max(network.encoder.max_length - length, 0)
            rows.append(search.Row(ids=tuple(ids), slots=tuple(slots), limit=math.ceil(self.budget * len(words)), spare=spare))
        return rows

"""Rows that are too long: refused or cut, as configured, and counted.

    error   refused in a sentence that names max_length and the model's positions; the default of rows with a prompt and a response
    right   the end of the row goes, and with it the end of the response: it is no longer closed. A prompt that leaves no room is refused.
            The default of sampled texts that a discriminator or a reward model reads
    left    the beginning of the row goes, but for the token that begins every text

Texts for a classifier, and pairs for a model that reads both ways, lose tokens as in transformers' pipeline: at the tokenizer's own side
unless another one is given (right in all but few), of two texts the longer one first. A rollout is never cut, since its reward belongs to
all of its tokens: it is sampled no longer than its row may be, and a learner that takes shorter rows is refused.
"""

from __future__ import annotations

import warnings

from advalign.errors import BudgetError, unknown
from advalign.models.padding import Row

MODES = ("error", "left", "right")
SHARED_REMEDY = "rows of rollouts are built once, so give this learner the max_length of the one that samples, or less to that one"


class Truncation:
    """What happens to the rows of one encoder that are longer than it allows."""

    mode: str | None
    """error, left or right; None: the default of each kind of row."""
    limit: int
    """The most tokens of a row: max_length, or what the model has positions for, if that is less."""
    num_truncated: int
    """Rows cut so far."""

    def __init__(self, mode: str | None, max_length: int, positions: int | None) -> None:
        if mode is not None and mode not in MODES:
            raise unknown("model.options.truncation", "mode", mode, MODES)
        self.mode, self.max_length, self.positions = mode, max_length, positions
        self.limit = max_length if positions is None else min(max_length, positions)
        self.num_truncated = 0

    @property
    def bound(self) -> str:
        """The limit, in words."""
        return f"max_length {self.max_length}" + (f" and the model's {self.positions} positions" if self.limit < self.max_length else "")

    def text_side(self, own: str) -> str:
        """Where a text for a classifier loses tokens; `own`: the tokenizer's own side."""
        return own if self.mode in (None, "error") else str(self.mode)

    def check_texts(self, lengths: list[int]) -> list[bool]:
        """Which texts are cut, given their lengths in tokens. They are counted, or refused."""
        long = [length > self.limit for length in lengths]
        if any(long) and self.mode == "error":
            raise BudgetError(f"encoder: a text of {max(lengths)} tokens is longer than {self.bound}; {self._remedy('the text')}.")
        self._count(sum(long), max(lengths, default=0), self.mode or "right")
        return long

    def texts(self, rows: list[Row], own: str) -> list[Row]:
        """Texts that no tokenizer has cut."""
        long = self.check_texts([len(row.ids) for row in rows])
        left = self.text_side(own) == "left"
        picks = [range(max(len(row.ids) - self.limit, 0), len(row.ids)) if left else range(min(self.limit, len(row.ids))) for row in rows]
        return [row.pick(pick) if cut else row for row, pick, cut in zip(rows, picks, long, strict=True)]

    def row(self, row: Row, *, bos_id: int | None, prompt_length: int, default: str = "error") -> Row:
        """A prompt and its response. `bos_id`: the token that is kept where a row begins with it; `default`: what happens to a row that
        is too long where no mode is set."""
        length, mode = len(row.ids), self.mode or default
        no_room = prompt_length >= self.limit
        if length <= self.limit and not no_room:
            return row
        if no_room and mode != "left":
            raise BudgetError(f"encoder: a prompt of {prompt_length} tokens leaves no room in {self.bound}; {self._prompt_remedy()}.")
        if length <= self.limit:
            return row
        if mode == "error":
            raise BudgetError(
                f"encoder: a prompt of {prompt_length} tokens and a response of {length - prompt_length} are longer than {self.bound}; "
                f"{self._remedy('them')}."
            )
        self._count(1, length, mode)
        if mode == "right":
            return row.pick(range(self.limit))
        keep = min(int(row.ids[0] == bos_id), self.limit - 1)
        return row.pick([*range(keep), *range(length - self.limit + keep, length)])

    def rollout(self, prompt_length: int, response_length: int) -> None:
        """Refuses a rollout that does not fit whole."""
        if prompt_length >= self.limit:
            raise BudgetError(f"encoder: a prompt of {prompt_length} tokens leaves no room in {self.bound}; {self._prompt_remedy()}.")
        if prompt_length + response_length > self.limit:
            raise BudgetError(
                f"encoder: a prompt of {prompt_length} tokens and a sampled response of {response_length} are longer than {self.bound}, "
                "and what was rewarded whole is not trained in part; give this learner the max_length of the one that samples, or lower "
                "sampling.max_new_tokens."
            )

    def check_width(self, width: int, *, shared: bool = False) -> None:
        """Refuses rows that another encoder has built: where the model has no positions for them, and with `shared` beyond `max_length`."""
        if self.positions is not None and width > self.positions:
            raise BudgetError(f"encoder: rows of {width} tokens, and this model has {self.positions} positions; {SHARED_REMEDY}.")
        if shared and width > self.limit:
            raise BudgetError(f"encoder: rows of {width} tokens are longer than {self.bound}; {SHARED_REMEDY}.")

    def prompt(self, ids: list[int], *, bos_id: int | None, room: int) -> list[int]:
        """A prompt that responses of `room` tokens are sampled behind: where rows lose their beginning, it already has lost its own."""
        if self.mode != "left" or not room or len(ids) + room <= self.limit:
            return ids
        if room >= self.limit:
            raise BudgetError(f"encoder: sampling.max_new_tokens {room} leaves no room for a prompt in {self.bound}; lower it.")
        self._count(1, len(ids), "left")
        keep = int(ids[0] == bos_id)
        return [*ids[:keep], *ids[len(ids) - (self.limit - room) + keep :]]

    def lost_beginning(self, whole: list[int], ids: list[int]) -> int | None:
        """How many tokens `ids` lack at the beginning of `whole`, the first one apart; None: they are something else."""
        lost = len(whole) - len(ids)
        return lost if lost > 0 and len(ids) > 1 and whole[lost + 1 :] == ids[1:] else None

    def _remedy(self, what: str) -> str:
        raised = "" if self.limit < self.max_length else "raise max_length, "
        return f"{raised}shorten {what}, or give options: {{truncation: left}} or {{truncation: right}}"

    def _prompt_remedy(self) -> str:
        raised = "" if self.limit < self.max_length else "raise max_length or "
        return f"{raised}shorten the prompt"

    def _count(self, number: int, length: int, mode: str) -> None:
        if number and not self.num_truncated:
            lost = "beginning" if mode == "left" else "end"
            warnings.warn(
                f"encoder: a row of {length} tokens is longer than {self.bound} and loses its {lost} (truncation: {mode}); num_truncated "
                "in the log counts such rows.",
                stacklevel=3,
            )
        self.num_truncated += number


__all__ = ["MODES", "Truncation"]

"""What an attack may spend, what it proposes, and how the harness judges it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from advalign.checked import Checked
from advalign.ranges import Bound, Count, Natural, PositiveBound, Words


@dataclass(frozen=True)
class Effect:
    """What the value of a field does to the results of an evaluation; marks an annotation, as in `Annotated[int, NEUTRAL]`."""

    name: str
    """none; content: not the path that is given, but what is there; code: the function behind a dotted path."""


NEUTRAL, CONTENT, CODE = Effect("none"), Effect("content"), Effect("code")


@dataclass(frozen=True, kw_only=True)
class Budget(Checked, section="budget"):
    """What an attack may spend or change per example; None is unlimited."""

    queries: Count | None = None
    """Texts or edits sent to the target."""
    edits: PositiveBound | None = None
    """Fraction of the words that may change."""
    radius: Bound | None = None
    """Norm of an edit of hidden states, in the unit of the attack's own threat model."""
    seconds: PositiveBound | None = None
    """Wall-clock time."""


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """What an attack proposes for one example: a text, or an edit of hidden states for the example's own text."""

    text: str | None = None
    """The text to judge."""
    edits: Mapping[str, Tensor] | None = None
    """{site: what is added to the hidden states there}, instead of a text."""
    note: str = ""
    """A remark for the report."""
    attempts: tuple[str, ...] = ()
    """Several texts instead of one; the example is broken if any of them breaks it."""
    forced: str | None = None
    """The forced beginning of a generator's response; what the generator adds is judged."""
    queries: int | None = None
    """What the example cost: its questions to the target, and one per attempt, whose judging no meter counts. Used if every proposal of a
    call gives it and the sum covers the meter; else the meter's mean counts."""
    refused: str = ""
    """Why the attack did not try the example, whose status is then `not_tried`."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """What the status of a result says about its example."""

    right: bool | None
    """Whether the example is right under attack; None: that was not established."""
    meaning: str
    """For a table of terms."""


STATUSES: Mapping[str, Status] = {
    "succeeded": Status(right=False, meaning="right before, within budget, wrong after"),
    "failed": Status(right=True, meaning="right before, within budget, still right"),
    "over_budget": Status(right=True, meaning="exceeded queries, radius, positions or words; counts as failed"),
    "skipped": Status(right=False, meaning="wrong before; counts as wrong under attack"),
    "undetermined": Status(right=None, meaning="the judge could not tell or failed; never a safe answer"),
    "not_tried": Status(right=None, meaning="nothing could be changed or sent, or the attack declined: a withstood attack it is not"),
    "timed_out": Status(right=None, meaning="exceeded the budget of seconds, which depends on the machine"),
    "error": Status(right=None, meaning="the attack, or the model on what it proposed, raised"),
}
"""{status of a result: what it means}. Rates count what was established; gates count everything else as broken."""


@dataclass(frozen=True, kw_only=True)
class AttackResult:
    """The harness's judgement of one proposal."""

    example: Words
    """Id of the example."""
    attack: Words
    """Name of the attack in its suite."""
    status: str
    """One of `STATUSES`."""
    attempts: Natural = 1
    """Texts that were judged."""
    broken: Natural = 0
    """How many of `attempts` broke the example."""
    queries: Natural = 0
    """Texts or edits that the target answered for this example."""
    seconds: float = 0.0
    """Wall-clock time; depends on the batch."""
    distance: float = 0.0
    """Fraction of the words that changed, or norm of the edit in the unit of the threat model."""
    before: str = ""
    """The text before the attack."""
    after: str = ""
    """The text that was judged."""
    note: str = ""
    """The proposal's remark, or the reason of the status."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Numbers about the answer and the change, by name."""
    spent: Mapping[str, float] = field(default_factory=dict)
    """What else of the target's meter fell on this example, by name; like `seconds` it depends on the batch."""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> AttackResult:
        """From a line of results.jsonl, in which null stands for a number that is nan."""
        numbers = {name: math.nan for name in ("distance", "seconds") if name in values and values[name] is None}
        metrics = {name: math.nan if x is None else x for name, x in values.get("metrics", {}).items()}
        return cls(**{**values, **numbers, "metrics": metrics})


@dataclass(frozen=True, kw_only=True)
class FoundSuffix:
    """The result of one search for a suffix."""

    text: str | None
    """The prompt with the suffix; None: the example's own text."""
    suffix: tuple[int, ...]
    """Its token ids."""
    loss: float
    """The loss that was lowered."""
    queries: int
    """Suffixes and gradients sent to the target for this prompt."""
    trace: tuple[tuple[int, float], ...]
    """(queries, lowest loss so far) after every call: the curve of loss over budget."""
    elicits: bool = False
    """Whether greedy decoding gives the reference response."""
    note: str = ""
    """A remark for the proposal."""

"""What an attack may spend, what it found, and what the harness says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What an attack may spend or change per example; None is unlimited. `radius` in the attack's own threat model."""

    queries: int | None = None
    edits: float | None = None
    radius: float | None = None
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """What an attack found: a text, or an edit of hidden states for the example's own text.

    attempts: several texts instead of one; the example is broken if any of them breaks it. forced: the beginning of the response
    that was put into a generator's mouth; what it adds is judged. queries: what the attack says it spent on this very example.
    refused: why it was not tried at all; such an example is in no rate, since it did not withstand anything.
    """

    text: str | None = None
    edits: Mapping[str, Tensor] | None = None
    note: str = ""
    attempts: tuple[str, ...] = ()
    forced: str | None = None
    queries: int | None = None
    refused: str = ""


@dataclass(frozen=True, kw_only=True)
class AttackResult:
    """The harness's verdict. status: succeeded | failed | skipped (wrong before) | over_budget | undetermined (the judge could not
    tell) | error. Of `attempts` texts that were judged, `broken` broke the example; one attempt is the rule. `spent`: what of the
    target's meter fell on this example, queries apart; like seconds it depends on the batch, and is no part of the verdict."""

    example: str
    attack: str
    status: str
    attempts: int = 1
    broken: int = 0
    queries: int = 0
    seconds: float = 0.0
    distance: float = 0.0
    before: str = ""
    after: str = ""
    note: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    spent: Mapping[str, float] = field(default_factory=dict)

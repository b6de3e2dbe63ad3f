"""The generated side of a comparison: which of a policy's texts a discriminator sees, and which real ones they are paired with."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from advalign.errors import ConfigError, unknown
from advalign.interfaces import Context, Source
from advalign.types import Example, RolloutGroup

MATCHES = ("none", "prompt")
UNITS = ("words", "characters")
Text = tuple[str, str, bool]  # prompt, text, finished


@dataclass(frozen=True, kw_only=True)
class Generated(Source):
    """Abstract base: which rows of the source `sampled` are negatives.

    match: "prompt" takes the real rows of the very prompts that were sampled (GAD, arXiv:2511.10643), so that every group of
    `bradley_terry` has both sides. `group_size` then bounds the generated rows per prompt.
    always: `sampled` is drawn even where no active objective reads it (a warm-up in which the discriminator meets the policy's texts).
    replay: this share of the generated rows comes from the last `replay_steps` steps: older ones would bias the game's fixed point.
    override: a generated text that its example verifies is never called fake.
    """

    sampled: str | None = None
    match: str = "none"
    group_size: int | None = None
    always: bool = False
    replay: float = 0.0
    replay_steps: int = 20
    override: bool = False

    def __post_init__(self) -> None:
        if self.match not in MATCHES:
            raise unknown("sources.contrast.match", "match", self.match, MATCHES)
        if self.match == "prompt" and not self.sampled:
            raise ConfigError("sources.contrast.match: prompts are matched with those of a source that samples; name it as sampled.")
        if not 0 <= self.replay <= 1:
            raise ConfigError(f"sources.contrast.replay: got {self.replay}, must be a share from 0 to 1.")


@dataclass(frozen=True, kw_only=True)
class LengthMatched:
    """Abstract base. lengths: generated rows are paired with real ones whose length in `length_unit` differs by at most this, relative
    to the longer; rows without a partner leave the draw, so that length alone tells a discriminator nothing. Where none has one the
    nearest pair stays, so that a run goes on."""

    lengths: float | None = None
    length_unit: str = "words"

    def length(self, text: str) -> int:
        if self.length_unit not in UNITS:
            raise unknown("sources.contrast.length_unit", "unit", self.length_unit, UNITS)
        return len(text.split()) if self.length_unit == "words" else len(text)

    def paired(self, real: Sequence[Example], generated: Sequence[Text], by_prompt: bool) -> tuple[list[Example], list[Text]]:
        """Pairs of nearest length, each row used once."""
        assert self.lengths is not None
        free, pairs = list(generated), []
        for example in real:
            own = self.length(example.meta["response"])
            fits = [i for i, row in enumerate(free) if not by_prompt or row[0] == example.prompt]
            best = min(fits, key=lambda i: abs(self.length(free[i][1]) - own), default=None)
            if best is None:
                continue
            other = self.length(free[best][1])
            if abs(other - own) <= self.lengths * max(other, own):
                pairs.append((example, free.pop(best)))
        if not pairs:
            both = [(e, row) for e in real for row in generated if not by_prompt or row[0] == e.prompt]
            pairs = [min(both, key=lambda p: abs(self.length(p[0].meta["response"]) - self.length(p[1][1])))] if both else []
        return [example for example, _ in pairs], [row for _, row in pairs]


class GeneratedPool:
    """A policy's texts of this step and of the last ones."""

    def __init__(self, config: Generated, context: Context) -> None:
        self.config, self.context = config, context
        self.past: list[tuple[int, list[Text]]] = []  # (step, rows), oldest first
        self._own: tuple[int, Sequence[RolloutGroup]] = (-1, [])

    def take(self, number: int, step: int, repeat: int, rng: random.Random) -> list[Text]:
        """`number` rows, or with matched prompts the groups of as many prompts."""
        groups = self._drawn(step)
        if groups is None:
            return []
        kept = [[(g.example.prompt, r.text, r.finished) for r in g.rollouts if not self._right(g.example, r.text)] for g in groups]
        fresh = [row for rows in kept for row in rows]
        old = [row for then, rows in self.past for row in rows if step - then <= self.config.replay_steps]
        if repeat == 0 and self.config.replay > 0:
            self.past = [entry for entry in self.past if step - entry[0] < self.config.replay_steps] + [(step, fresh)]
        if self.config.match == "prompt":  # whole groups; what is recalled belongs to prompts of this draw
            fresh = [row for rows in kept[:number] for row in rows[: self.config.group_size]]
            asked, number = {prompt for prompt, _, _ in fresh}, len(fresh)
            old = [row for row in old if row[0] in asked]
        recalled = min(round(self.config.replay * number), len(old))
        return rng.sample(old, recalled) + rng.sample(fresh, min(number - recalled, len(fresh)))

    def _drawn(self, step: int) -> Sequence[RolloutGroup] | None:
        """What the policy wrote in this step, if anybody asked for it."""
        if self.config.sampled is None:
            return None
        found: Sequence[RolloutGroup] | None = self.context.current_items(self.config.sampled)
        if found is not None or not self.config.always:
            return found
        if self._own[0] != step:  # once a step, however often this is drawn
            self._own = (step, self.context.source(self.config.sampled).draw(step, 0))
        return self._own[1]

    def _right(self, example: Example, text: str) -> bool:
        return self.config.override and example.verify is not None and example.verify(text) >= 1

    def state_dict(self) -> dict[str, Any]:
        return {"pool": [[step, [list(row) for row in rows]] for step, rows in self.past]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.past = [(step, [(p, t, f) for p, t, f in rows]) for step, rows in state["pool"]]


class Verified:
    """The rollouts of source `of` that their own examples verify, of this draw or, where it has none, of the last `kept` that had."""

    def __init__(self, of: str, kept: int, context: Context) -> None:
        self.of, self.kept, self.context = of, kept, context
        self.past: list[list[Example]] = []

    def take(self, number: int, rng: random.Random) -> list[Example]:
        groups: Sequence[RolloutGroup] = self.context.current_items(self.of) or ()
        found = [
            replace(g.example, meta={**g.example.meta, "response": r.text})
            for g in groups
            for r in g.rollouts
            if g.example.verify is not None and g.example.verify(r.text) >= 1
        ]
        if found:  # kept without their verifiers, as a checkpoint keeps them
            bare = [Example(prompt=e.prompt, id=e.id, meta={"response": e.meta["response"]}) for e in found]
            self.past = [*self.past, bare][-self.kept :]
        known = found or [example for examples in self.past for example in examples]
        if not known:
            raise ConfigError(
                f"sources.contrast.real: '{self.of}' is sampled, and nothing it wrote so far is right (or nobody drew it); name "
                "demonstrations, or begin with a stage that teaches the task."
            )
        return rng.sample(known, min(number, len(known)))

    def state_dict(self) -> dict[str, Any]:
        return {"verified": [[[e.id, e.prompt, e.meta["response"]] for e in examples] for examples in self.past]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.past = [[Example(prompt=p, id=i, meta={"response": t}) for i, p, t in examples] for examples in state.get("verified", [])]

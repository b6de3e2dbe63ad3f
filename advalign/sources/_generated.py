"""The generated side of a comparison: which of a policy's texts a discriminator sees, and which real ones they are paired with."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from advalign.checked import Checked
from advalign.errors import ConfigError, unknown
from advalign.interfaces import Context, Source
from advalign.names import SampledName
from advalign.ranges import Bound, Count, Fraction, OneOf
from advalign.types import Example, Prompt, Response, RolloutGroup
from advalign.types.messages import from_plain, response_text, to_plain

MATCHES = ("none", "prompt")
UNITS = ("words", "characters")
Text = tuple[Prompt, Response, bool]
"""Prompt, text, finished."""


@dataclass(frozen=True, kw_only=True)
class Generated(Source):
    """Abstract base: which rows of the source `sampled` are negatives."""

    sampled: SampledName | None = None
    """Name of the source that a policy samples for. None: no generated rows."""
    match: Annotated[str, OneOf(MATCHES, "match")] = "none"
    """prompt: the real rows of the very prompts that were sampled (GAD, arXiv:2511.10643), so that every group of `bradley_terry` has
    both sides. none: any real rows."""
    group_size: Count | None = None
    """With `match: prompt`, the most generated rows per prompt. None: all."""
    always: bool = False
    """Draw `sampled` even where no active objective reads it (a warm-up in which the discriminator sees the policy's texts)."""
    replay: Fraction = 0.0
    """Fraction of the generated rows that comes from earlier steps."""
    replay_steps: Count = 20
    """Those steps: older ones would bias the fixed point of the game."""
    override: bool = False
    """A generated text that its example verifies is not a negative."""

    def __post_init__(self) -> None:
        if self.match == "prompt" and not self.sampled:
            raise ConfigError("sources.contrast.match: prompts are matched with those of a source that samples; name it as sampled.")


@dataclass(frozen=True, kw_only=True)
class LengthMatched(Checked):
    """Abstract base: pairs of rows of similar length, so that length alone tells a discriminator nothing."""

    lengths: Bound | None = None
    """Largest difference in length of a pair, relative to the longer one; rows without a partner leave the draw. Where no row has a
    partner the nearest pair stays, so that a run goes on. None: rows are not paired."""
    length_unit: Annotated[str, OneOf(UNITS, "unit")] = "words"
    """words or characters."""

    def length(self, text: str) -> int:
        if self.length_unit not in UNITS:
            raise unknown("sources.contrast.length_unit", "unit", self.length_unit, UNITS)
        return len(text.split()) if self.length_unit == "words" else len(text)

    def _length(self, response: Response) -> int:
        return self.length(response_text(response))

    def paired(self, real: Sequence[Example], generated: Sequence[Text], by_prompt: bool) -> tuple[list[Example], list[Text]]:
        """Pairs of nearest length, each row used once; with `by_prompt` of one prompt."""
        assert self.lengths is not None
        free, pairs = list(generated), []
        for example in real:
            length = self._length(example.meta["response"])
            candidates = [i for i, row in enumerate(free) if not by_prompt or row[0] == example.prompt]
            nearest = min(candidates, key=lambda i: abs(self._length(free[i][1]) - length), default=None)
            if nearest is None:
                continue
            other = self._length(free[nearest][1])
            if abs(other - length) <= self.lengths * max(other, length):
                pairs.append((example, free.pop(nearest)))
        if not pairs:
            every = [(e, row) for e in real for row in generated if not by_prompt or row[0] == e.prompt]
            pairs = [min(every, key=lambda p: abs(self._length(p[0].meta["response"]) - self._length(p[1][1])))] if every else []
        return [example for example, _ in pairs], [row for _, row in pairs]


class GeneratedPool:
    """A policy's texts of this step and of earlier ones."""

    def __init__(self, config: Generated, context: Context) -> None:
        self.config, self.context = config, context
        self.past: list[tuple[int, list[Text]]] = []  # (step, rows), oldest first
        self._drawn: tuple[int, Sequence[RolloutGroup]] = (-1, [])  # (step, groups) where `always` draws here

    def take(self, number: int, step: int, repeat: int, rng: random.Random) -> list[Text]:
        """`number` rows, or with matched prompts the groups of as many prompts."""
        groups = self._groups(step)
        if groups is None:
            return []
        if groups and not isinstance(groups[0], RolloutGroup):
            raise ConfigError(f"sources: sampled is '{self.config.sampled}', which samples no responses; name a source of rollouts.")
        by_group: list[list[Text]] = [
            [(g.example.prompt, r.text, r.finished) for r in g.rollouts if not self._right(g.example, r.text)] for g in groups
        ]
        fresh = [row for rows in by_group for row in rows]
        old = [row for then, rows in self.past for row in rows if step - then <= self.config.replay_steps]
        if repeat == 0 and self.config.replay > 0:
            self.past = [entry for entry in self.past if step - entry[0] < self.config.replay_steps] + [(step, fresh)]
        if self.config.match == "prompt":  # whole groups; replayed rows belong to prompts of this draw
            fresh = [row for rows in by_group[:number] for row in rows[: self.config.group_size]]
            prompts, number = {prompt for prompt, _, _ in fresh}, len(fresh)
            old = [row for row in old if row[0] in prompts]
        num_replayed = min(round(self.config.replay * number), len(old))
        return rng.sample(old, num_replayed) + rng.sample(fresh, min(number - num_replayed, len(fresh)))

    def _groups(self, step: int) -> Sequence[RolloutGroup] | None:
        """What the policy wrote in this step; None where nothing was drawn."""
        if self.config.sampled is None:
            return None
        groups: Sequence[RolloutGroup] | None = self.context.current_items(self.config.sampled)
        if groups is not None or not self.config.always:
            return groups
        if self._drawn[0] != step:  # once a step, however often this is drawn
            self._drawn = (step, self.context.source(self.config.sampled).draw(step, 0))
        return self._drawn[1]

    def _right(self, example: Example, text: str) -> bool:
        return self.config.override and example.verify is not None and example.verify(text) >= 1

    def state_dict(self) -> dict[str, Any]:
        return {"pool": [[step, [[to_plain(p), to_plain(t), f] for p, t, f in rows]] for step, rows in self.past]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.past = [(step, [(from_plain(p), from_plain(t), f) for p, t, f in rows]) for step, rows in state["pool"]]


class Verified:
    """The rollouts of a source that their own examples verify, of this draw or, where it has none, of the last `num_draws` that had."""

    def __init__(self, source: str, num_draws: int, context: Context) -> None:
        self.source, self.num_draws, self.context = source, num_draws, context
        self.past: list[list[Example]] = []

    def take(self, number: int, rng: random.Random) -> list[Example]:
        groups: Sequence[RolloutGroup] = self.context.current_items(self.source) or ()
        verified = [
            replace(g.example, meta={**g.example.meta, "response": r.text})
            for g in groups
            for r in g.rollouts
            if g.example.verify is not None and g.example.verify(r.text) >= 1
        ]
        if verified:  # stored without their verifiers, as a checkpoint stores them
            stored = [Example(prompt=e.prompt, id=e.id, meta={"response": e.meta["response"]}) for e in verified]
            self.past = [*self.past, stored][-self.num_draws :]
        examples = verified or [example for draw in self.past for example in draw]
        if not examples:
            raise ConfigError(
                f"sources.contrast.real: '{self.source}' is sampled, and none of its responses so far is right (or it was not drawn); name "
                "demonstrations, or begin with a stage that teaches the task."
            )
        return rng.sample(examples, min(number, len(examples)))

    def state_dict(self) -> dict[str, Any]:
        return {"verified": [[[e.id, to_plain(e.prompt), e.meta["response"]] for e in draw] for draw in self.past]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.past = [[Example(prompt=from_plain(p), id=i, meta={"response": t}) for i, p, t in draw] for draw in state.get("verified", [])]

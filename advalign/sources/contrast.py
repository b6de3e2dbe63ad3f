"""Real against not real, for discriminators."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from advalign.errors import ConfigError, unknown
from advalign.protocols import Context, Task
from advalign.sources._corrupt import CORRUPTIONS, corrupted
from advalign.types import Example, LabelRows, RolloutGroup, Rows

__all__ = ["Contrast"]

MATCHES = ("none", "prompt")
UNITS = ("words", "characters")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One row. `kind`: index into LabelRows.KINDS. `group`: rows of one prompt share a number. `offset`: taken off the score."""

    prompt: str
    text: str
    finished: bool = True
    kind: int = 0
    group: int = 0
    offset: float = 0.0


REAL, PERTURBED, GENERATED, CORRUPTED = range(4)


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """Rows labelled real (a demonstration), perturbed (the same text under a changed prompt it violates), corrupted (a changed text
    under the same prompt) or generated. A column `rejected_prompt` (one, or a list) of the real data gives changed prompts.

    GAPO's preferential prompts (arXiv:2503.20194): negatives are (c', t) with t unchanged, and (c, G(c)). `batch_size` real
    rows per draw, as many perturbed ones where `perturb` names a task, as many corrupted ones where `corrupt` names ways to do it,
    and as many generated ones where `sampled` has drawn.

    match: "prompt" takes the real rows of the very prompts that were sampled (GAD, arXiv:2511.10643), so that every group of
    `bradley_terry` has both sides. `group_size` then bounds the generated rows per prompt.
    lengths: generated rows are paired with real ones whose length in `length_unit` differs by at most this, relative to the longer;
    real and generated rows without a partner leave the draw, so that length alone tells a discriminator nothing.
    always: `sampled` is drawn even where no active objective reads it (a warm-up in which the discriminator meets the policy's texts).
    replay: this share of the generated rows comes from the last `replay_steps` steps: older ones would bias the game's fixed point.
    override: a generated text that its example verifies is never called fake.
    swap: this share of the perturbed rows takes the prompt of another demonstration, one that the text violates: every prompt then
    stands on both sides, and memorising the few real prompts tells the discriminator nothing.
    minus_logprob: a policy; log p(text | prompt) under it is taken off every score (AIRL, arXiv:1710.11248, where D = f - log pi).
    """

    real: str
    sampled: str | None = None
    perturb: Task | None = None
    corrupt: tuple[str, ...] = ()
    batch_size: int = 16
    match: str = "none"
    group_size: int | None = None
    lengths: float | None = None
    length_unit: str = "words"
    always: bool = False
    replay: float = 0.0
    replay_steps: int = 20
    override: bool = False
    swap: float = 0.0
    minus_logprob: str | None = None

    yields: ClassVar[type[Rows]] = LabelRows

    def __post_init__(self) -> None:
        if self.match not in MATCHES:
            raise unknown("sources.contrast.match", "match", self.match, MATCHES)
        if self.length_unit not in UNITS:
            raise unknown("sources.contrast.length_unit", "unit", self.length_unit, UNITS)
        for name in self.corrupt:
            if name not in CORRUPTIONS:
                raise unknown("sources.contrast.corrupt", "corruption", name, CORRUPTIONS)
        if self.match == "prompt" and not self.sampled:
            raise ConfigError("sources.contrast.match: prompts are matched with those of a source that samples; name it as sampled.")
        for name in ("replay", "swap"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"sources.contrast.{name}: got {getattr(self, name)}, must be a share from 0 to 1.")

    @property
    def after(self) -> tuple[str, ...]:
        return tuple(name for name in (self.real, self.sampled) if name)

    def start(self, context: Context, name: str) -> _Runtime:
        return _Runtime(self, context, name)


class _Runtime:
    def __init__(self, config: Contrast, context: Context, name: str) -> None:
        self.config, self.context, self.name = config, context, name
        self.pool: list[tuple[int, list[tuple[str, str, bool]]]] = []  # (step, generated rows), oldest first
        self.notes: dict[str, float] = {}  # of the last draw, for the log
        self._own: tuple[int, Sequence[RolloutGroup]] = (-1, [])

    def draw(self, step: int, repeat: int) -> list[Verdict]:
        rng = self.context.random("source", self.name, step, repeat)
        paired = self.config.match == "prompt" or self.config.lengths is not None  # then the real side depends on the generated one
        generated = self._generated(step, repeat, rng) if paired else []
        real = self._real(generated, rng)
        if self.config.match == "prompt":
            wanted = {example.prompt for example in real}
            generated = [row for row in generated if row[0] in wanted]
        if self.config.lengths is not None and generated:
            real, generated = self._paired(real, generated, self.config.lengths)
        groups: dict[str, int] = {}  # rows are matched by the prompt they started from
        items: list[Verdict] = []
        for example in real:
            items += self._about(example, groups.setdefault(example.prompt, len(groups)), rng)
        for prompt, text, finished in generated if paired else self._generated(step, repeat, rng):
            number = groups.setdefault(prompt, len(groups))
            items.append(Verdict(prompt=prompt, text=text, finished=finished, kind=GENERATED, group=number))
        return self._offset(items)

    # ------------------------------------------------------------------------------------------- the real side

    def _real(self, generated: Sequence[tuple[str, str, bool]], rng: random.Random) -> list[Example]:
        source = self.context.source(self.config.real)
        if self.config.match == "none" or not generated:
            return list(source.sample(self.config.batch_size, rng))
        known: dict[str, list[Example]] = {}
        for example in source.examples:
            known.setdefault(example.prompt, []).append(example)
        prompts = [prompt for prompt in dict.fromkeys(prompt for prompt, _, _ in generated) if prompt in known]
        if not prompts:
            raise ConfigError(
                f"sources.{self.name}.match: none of the prompts that '{self.config.sampled}' answered has a real response in "
                f"'{self.config.real}'; let both read the same data."
            )
        return [rng.choice(known[prompt]) for prompt in prompts[: self.config.batch_size]]

    def _about(self, example: Example, group: int, rng: random.Random) -> list[Verdict]:
        """A real row, and what is made of it."""
        text = example.meta["response"]
        found = [Verdict(prompt=example.prompt, text=text, group=group)]
        changed = self._perturbed(example, rng)
        if changed is not None:
            found.append(Verdict(prompt=changed, text=text, kind=PERTURBED, group=group))
        if self.config.corrupt:
            worse = corrupted(text, self.config.corrupt, rng, example.verify)
            if worse is not None:
                found.append(Verdict(prompt=example.prompt, text=worse, kind=CORRUPTED, group=group))
        return found

    def _perturbed(self, example: Example, rng: random.Random) -> str | None:
        """A prompt that the example's text violates: one that the data gives, one of another example, one that a task makes; None
        where there is no way to find one."""
        text, given = example.meta["response"], example.meta.get("rejected_prompt")
        if given:
            return given if isinstance(given, str) else str(rng.choice(list(given)))
        if self.config.swap and rng.random() < self.config.swap:
            others = self.context.source(self.config.real).sample(16, rng)
            for other in others:
                if other.prompt != example.prompt and (other.verify is None or other.verify(text) < 1):
                    return other.prompt
        return None if self.config.perturb is None else self.config.perturb.perturb(example, text, rng).prompt

    # -------------------------------------------------------------------------------------- the generated side

    def _generated(self, step: int, repeat: int, rng: random.Random) -> list[tuple[str, str, bool]]:
        groups = self._drawn(step)
        if groups is None:
            return []
        kept = [[(g.example.prompt, r.text, r.finished) for r in g.rollouts if not self._right(g.example, r.text)] for g in groups]
        fresh = [row for rows in kept for row in rows]
        old = [row for then, rows in self.pool for row in rows if step - then <= self.config.replay_steps]
        if repeat == 0 and self.config.replay > 0:
            self.pool = [entry for entry in self.pool if step - entry[0] < self.config.replay_steps] + [(step, fresh)]
        if self.config.match == "prompt":  # whole groups; what is recalled belongs to prompts of this draw
            own = [row for rows in kept[: self.config.batch_size] for row in rows[: self.config.group_size]]
            asked = {prompt for prompt, _, _ in own}
            old = [row for row in old if row[0] in asked]
            recalled = min(round(self.config.replay * len(own)), len(old))
            return rng.sample(own, len(own) - recalled) + rng.sample(old, recalled)
        number = self.config.batch_size if self.config.lengths is None else 4 * self.config.batch_size  # some will find no partner
        recalled = min(round(self.config.replay * number), len(old))
        return rng.sample(old, recalled) + rng.sample(fresh, min(number - recalled, len(fresh)))

    def _drawn(self, step: int) -> Sequence[RolloutGroup] | None:
        """What the policy wrote in this step, if anybody asked for it."""
        if self.config.sampled is None:
            return None
        found: Sequence[RolloutGroup] | None = self.context.drawn(self.config.sampled)
        if found is not None or not self.config.always:
            return found
        if self._own[0] != step:  # once a step, however often this is drawn
            self._own = (step, self.context.source(self.config.sampled).draw(step, 0))
        return self._own[1]

    def _right(self, example: Example, text: str) -> bool:
        return self.config.override and example.verify is not None and example.verify(text) >= 1

    def _paired(
        self, real: Sequence[Example], generated: Sequence[tuple[str, str, bool]], tolerance: float
    ) -> tuple[list[Example], list[tuple[str, str, bool]]]:
        """Pairs of nearest length, each row used once: by prompt where prompts are matched."""
        free = list(generated)
        pairs = []
        for example in real:
            own = self._length(example.meta["response"])
            fits = [i for i, row in enumerate(free) if self.config.match == "none" or row[0] == example.prompt]
            best = min(fits, key=lambda i: abs(self._length(free[i][1]) - own), default=None)
            if best is not None and abs(self._length(free[best][1]) - own) <= tolerance * max(self._length(free[best][1]), own):
                pairs.append((example, free.pop(best)))
        self.notes["length_matched"] = len(pairs) / max(len(real), 1)
        return [example for example, _ in pairs], [row for _, row in pairs]

    def _length(self, text: str) -> int:
        return len(text.split()) if self.config.length_unit == "words" else len(text)

    # ------------------------------------------------------------------------------------------------ rows

    def _offset(self, items: list[Verdict]) -> list[Verdict]:
        if self.config.minus_logprob is None or not items:
            return items
        prompts, texts, finished = [i.prompt for i in items], [i.text for i in items], [i.finished for i in items]
        found = self.context.logprobs(self.config.minus_logprob, prompts, texts, finished)
        return [replace(item, offset=value) for item, value in zip(items, found, strict=True)]

    def rows(self, items: Sequence[Verdict], encoder: Any) -> LabelRows:
        if not items:
            raise ConfigError(
                f"sources.{self.name}: a draw without any row; raise lengths, or let the policy's responses come nearer to the real ones "
                "before they are compared."
            )
        columns = ([i.prompt for i in items], [i.text for i in items], [i.finished for i in items], [i.group for i in items])
        kind = torch.tensor([item.kind for item in items])
        offset = None if self.config.minus_logprob is None else torch.tensor([item.offset for item in items])
        return LabelRows(tokens=encoder.verdicts(*columns), labels=(kind == REAL).long(), kind=kind, offset=offset)

    def state_dict(self) -> dict[str, Any]:
        return {"pool": [[step, [list(row) for row in rows]] for step, rows in self.pool]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.pool = [(step, [(p, t, f) for p, t, f in rows]) for step, rows in state["pool"]]

"""Real against not real, for discriminators."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from advalign.errors import ConfigError, unknown
from advalign.interfaces import Context, SourceRuntime, Task
from advalign.sources._corrupt import CORRUPTIONS, corrupted
from advalign.sources._generated import UNITS, Generated, GeneratedPool, LengthMatched, Text, Verified
from advalign.types import Example, LabelRows, Rows

__all__ = ["Contrast"]

REAL, PERTURBED, GENERATED, CORRUPTED = range(4)


@dataclass(frozen=True, kw_only=True)
class DiscriminatorRow:
    """One row. `kind`: index into LabelRows.KINDS. `group`: rows of one prompt share a number. `offset`: taken off the score."""

    prompt: str
    text: str
    finished: bool = True
    kind: int = REAL
    group: int = 0
    offset: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Contrast(LengthMatched, Generated):
    """Rows labelled real (a demonstration), perturbed (the same text under a changed prompt it violates), corrupted (a changed text
    under the same prompt) or generated. A column `rejected_prompt` (one, or a list) of the real data gives changed prompts.

    `real` names demonstrations, or a source of rollouts: then the responses that their examples verify are the real side (Cooper,
    arXiv:2508.05613, with `corrupt` for the negatives); a draw that has none takes those of the last `replay_steps` draws.

    GAPO's preferential prompts (arXiv:2503.20194): negatives are (c', t) with t unchanged, and (c, G(c)). `batch_size` real
    rows per draw, as many perturbed ones where `perturb` names a task, as many corrupted ones where `corrupt` names ways to do it,
    and as many generated ones where `sampled` has drawn.

    swap: this share of the perturbed rows takes the prompt of another demonstration, one that the text violates: every prompt then
    stands on both sides, and memorising the few real prompts tells the discriminator nothing.
    minus_logprob: a policy; log p(text | prompt) under it is taken off every score (AIRL, arXiv:1710.11248, where D = f - log pi).
    """

    real: str
    perturb: Task | None = None
    corrupt: tuple[str, ...] = ()
    batch_size: int = 16
    swap: float = 0.0
    minus_logprob: str | None = None

    row_type: ClassVar[type[Rows]] = LabelRows

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length_unit not in UNITS:
            raise unknown("sources.contrast.length_unit", "unit", self.length_unit, UNITS)
        for name in self.corrupt:
            if name not in CORRUPTIONS:
                raise unknown("sources.contrast.corrupt", "corruption", name, CORRUPTIONS)
        if not 0 <= self.swap <= 1:
            raise ConfigError(f"sources.contrast.swap: got {self.swap}, must be a share from 0 to 1.")

    @property
    def depends_on(self) -> tuple[str, ...]:
        return tuple(name for name in (self.real, self.sampled) if name)

    @property
    def draw_size(self) -> int:
        return self.batch_size

    def start(self, context: Context, name: str) -> _Runtime:
        return _Runtime(self, context, name)


class _Runtime(SourceRuntime[DiscriminatorRow]):
    def __init__(self, config: Contrast, context: Context, name: str) -> None:
        self.config, self.context, self.name = config, context, name
        self.pool = GeneratedPool(config, context)
        self.verified = Verified(config.real, config.replay_steps, context)
        self.logs: dict[str, float] = {}  # of the last draw, for the log

    def draw(self, step: int, repeat: int) -> list[DiscriminatorRow]:
        config, rng = self.config, self.context.random("source", self.name, step, repeat)
        paired = config.match == "prompt" or config.lengths is not None  # then the real side depends on the generated one
        spare = 4 if config.lengths is not None and config.match == "none" else 1  # some will find no partner
        generated = self.pool.take(spare * config.batch_size, step, repeat, rng) if paired else []
        real = self._real(generated, rng)
        if config.match == "prompt":
            wanted = {example.prompt for example in real}
            generated = [row for row in generated if row[0] in wanted]
        if config.lengths is not None and generated:
            number = len(real)
            real, generated = config.paired(real, generated, config.match == "prompt")
            self.logs["length_matched"] = len(real) / max(number, 1)
        groups: dict[str, int] = {}  # rows are matched by the prompt they started from
        items: list[DiscriminatorRow] = []
        for example in real:
            items += self._about(example, groups.setdefault(example.prompt, len(groups)), rng)
        for prompt, text, finished in generated if paired else self.pool.take(config.batch_size, step, repeat, rng):
            number = groups.setdefault(prompt, len(groups))
            items.append(DiscriminatorRow(prompt=prompt, text=text, finished=finished, kind=GENERATED, group=number))
        return self._offset(items)

    def _real(self, generated: Sequence[Text], rng: random.Random) -> list[Example]:
        source = self.context.source(self.config.real)
        if self.context.source_config(self.config.real).draws_before_updates:
            return self.verified.take(self.config.batch_size, rng)
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

    def _about(self, example: Example, group: int, rng: random.Random) -> list[DiscriminatorRow]:
        """A real row, and what is made of it."""
        text = example.meta["response"]
        found = [DiscriminatorRow(prompt=example.prompt, text=text, group=group)]
        changed = self._perturbed(example, rng)
        if changed is not None:
            found.append(DiscriminatorRow(prompt=changed, text=text, kind=PERTURBED, group=group))
        if self.config.corrupt:
            worse = corrupted(text, self.config.corrupt, rng, example.verify)
            if worse is not None:
                found.append(DiscriminatorRow(prompt=example.prompt, text=worse, kind=CORRUPTED, group=group))
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

    def _offset(self, items: list[DiscriminatorRow]) -> list[DiscriminatorRow]:
        if self.config.minus_logprob is None or not items:
            return items
        prompts, texts, finished = [i.prompt for i in items], [i.text for i in items], [i.finished for i in items]
        found = self.context.logprobs(self.config.minus_logprob, prompts, texts, finished)
        return [replace(item, offset=value) for item, value in zip(items, found, strict=True)]

    def rows(self, items: Sequence[DiscriminatorRow], encoder: Any) -> LabelRows:
        if not items:
            raise ConfigError(
                f"sources.{self.name}: a draw without any row; raise lengths, or let the policy's responses come nearer to the real ones "
                "before they are compared."
            )
        columns = ([i.prompt for i in items], [i.text for i in items], [i.finished for i in items], [i.group for i in items])
        kind = torch.tensor([item.kind for item in items])
        offset = None if self.config.minus_logprob is None else torch.tensor([item.offset for item in items])
        return LabelRows(tokens=encoder.scored_pairs(*columns), labels=(kind == REAL).long(), kind=kind, offset=offset)

    def state_dict(self) -> dict[str, Any]:
        return self.pool.state_dict() | self.verified.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.pool.load_state_dict(state)
        self.verified.load_state_dict(state)

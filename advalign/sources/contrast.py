"""Real against not real, for discriminators."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch

from advalign.errors import ConfigError, located
from advalign.interfaces import Context, SourceRuntime, Task
from advalign.models.row_bounds import doubtful
from advalign.names import SamplerName, SourceName
from advalign.ranges import Count, Distinct, Fraction, OneOf
from advalign.sources._corrupt import CORRUPTIONS, corrupt
from advalign.sources._generated import Generated, GeneratedPool, LengthMatched, Text, Verified
from advalign.sources._responses import other_prompt
from advalign.types import Example, LabelRows, Prompt, Response, Rows
from advalign.types.messages import is_messages, response_text

if TYPE_CHECKING:
    from advalign.models.encode import Encoder

__all__ = ["Contrast"]

REAL, PERTURBED, GENERATED, CORRUPTED = range(4)


@dataclass(frozen=True, kw_only=True)
class DiscriminatorRow:
    """One row for a discriminator."""

    prompt: Prompt
    """Its prompt."""
    text: Response
    """The response to score."""
    finished: bool = True
    """Whether the text ended by itself."""
    kind: int = REAL
    """Index into LabelRows.KINDS."""
    group: int = 0
    """Rows of one prompt share a number."""
    offset: float = 0.0
    """Subtracted from the score."""


@dataclass(frozen=True, kw_only=True)
class Contrast(LengthMatched, Generated):
    """Rows labelled real (a demonstration), perturbed (the same text under a changed prompt it violates), corrupted (a changed text
    under the same prompt) or generated. A column `rejected_prompt` (one, or a list) of the real data gives changed prompts.

    GAPO's preferential prompts (arXiv:2503.20194): negatives are (c', t) with t unchanged, and (c, G(c)).
    """

    real: SourceName
    """Name of a source of demonstrations; or of rollouts: then the responses that their examples verify are the real side (Cooper,
    arXiv:2508.05613, with `corrupt` for the negatives), of the last `replay_steps` draws where the current one has none."""
    perturb: Task | None = None
    """Task that makes as many perturbed rows as real ones. None: none."""
    corrupt: Annotated[tuple[Annotated[str, OneOf(CORRUPTIONS, "corruption")], ...], Distinct()] = ()
    """Corruptions that make as many corrupted rows as real ones: numbers, operators, drop, repeat, swap, cut."""
    batch_size: Count = 16
    """Real rows per draw, and as many generated ones where `sampled` has drawn."""
    swap: Fraction = 0.0
    """Fraction of the perturbed rows that takes the prompt of another demonstration, which the text violates: every prompt is then on
    both sides, and memorising the few real prompts tells the discriminator nothing."""
    minus_logprob: SamplerName | None = None
    """A policy; log p(text | prompt) under it, at the temperature at which `sampled` samples, is subtracted from every score (AIRL,
    arXiv:1710.11248, where D = f - log pi)."""

    occasional_metrics: ClassVar[tuple[str, ...]] = ("length_matched",)
    row_type: ClassVar[type[Rows]] = LabelRows

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
        self.logs: dict[str, float] = {}

    def draw(self, step: int, repeat: int) -> list[DiscriminatorRow]:
        config, rng = self.config, self.context.random("source", self.name, step, repeat)
        paired = config.match == "prompt" or config.lengths is not None  # then the real side depends on the generated one
        factor = 4 if config.lengths is not None and config.match == "none" else 1  # some rows will find no partner
        generated = self.pool.take(factor * config.batch_size, step, repeat, rng) if paired else []
        real = self._real(generated, rng)
        if config.match == "prompt":
            prompts = {example.prompt for example in real}
            generated = [row for row in generated if row[0] in prompts]
        if config.lengths is not None and generated:
            number = len(real)
            real, generated = config.paired(real, generated, config.match == "prompt")
            self.logs["length_matched"] = len(real) / max(number, 1)
        groups: dict[Prompt, int] = {}  # rows are matched by the prompt they started from
        items: list[DiscriminatorRow] = []
        for example in real:
            items += self._real_and_changed(example, groups.setdefault(example.prompt, len(groups)), rng)
        for prompt, text, finished in generated if paired else self.pool.take(config.batch_size, step, repeat, rng):
            group = groups.setdefault(prompt, len(groups))
            items.append(DiscriminatorRow(prompt=prompt, text=text, finished=finished, kind=GENERATED, group=group))
        return self._with_offset(items)

    def _real(self, generated: Sequence[Text], rng: random.Random) -> list[Example]:
        source = self.context.source(self.config.real)
        if self.context.source_config(self.config.real).draws_before_updates:
            return self.verified.take(self.config.batch_size, rng)
        if self.config.match == "none" or not generated:
            return list(source.sample(self.config.batch_size, rng))
        by_prompt: dict[Prompt, list[Example]] = {}
        for example in source.examples:
            by_prompt.setdefault(example.prompt, []).append(example)
        prompts = [prompt for prompt in dict.fromkeys(prompt for prompt, _, _ in generated) if prompt in by_prompt]
        if not prompts:
            raise ConfigError(
                f"sources.{self.name}.match: none of the prompts that '{self.config.sampled}' answered has a real response in "
                f"'{self.config.real}'; let both read the same data."
            )
        return [rng.choice(by_prompt[prompt]) for prompt in prompts[: self.config.batch_size]]

    def _real_and_changed(self, example: Example, group: int, rng: random.Random) -> list[DiscriminatorRow]:
        """A real row, and its perturbed and corrupted ones."""
        text = example.meta["response"]
        rows = [DiscriminatorRow(prompt=example.prompt, text=text, group=group)]
        prompt = self._perturbed(example, rng)
        if prompt is not None:
            rows.append(DiscriminatorRow(prompt=prompt, text=text, kind=PERTURBED, group=group))
        if self.config.corrupt:
            corrupted = corrupt(response_text(text), self.config.corrupt, rng, example.verify)
            if corrupted is not None:
                rows.append(DiscriminatorRow(prompt=example.prompt, text=corrupted, kind=CORRUPTED, group=group))
        return rows

    def _perturbed(self, example: Example, rng: random.Random) -> Prompt | None:
        """A prompt that the example's text violates: one from the data, one of another example, or one that the task makes; None where
        there is no way to get one."""
        text, column = response_text(example.meta["response"]), example.meta.get("rejected_prompt")
        if column:
            prompt = column if isinstance(column, str) or is_messages(column) else rng.choice(list(column))
            return other_prompt(example, prompt, f"sources.{self.name}: rejected_prompt of '{example.id}'")
        if self.config.swap and rng.random() < self.config.swap:
            others = self.context.source(self.config.real).sample(16, rng)
            for other in others:
                if other.prompt != example.prompt and (other.verify is None or other.verify(text) < 1):
                    return other.prompt
        return None if self.config.perturb is None else self.config.perturb.perturb(example, text, rng).prompt

    def _with_offset(self, items: list[DiscriminatorRow]) -> list[DiscriminatorRow]:
        if self.config.minus_logprob is None or not items:
            return items
        prompts, texts, finished = [i.prompt for i in items], [i.text for i in items], [i.finished for i in items]
        logprobs = self.context.logprobs(self.config.minus_logprob, prompts, texts, finished, temperature=self._temperature())
        return [replace(item, offset=logprob) for item, logprob in zip(items, logprobs, strict=True)]

    def _temperature(self) -> float:
        """That of the source whose responses are compared: the reward (`form: airl`) has log pi at it."""
        request = None if self.config.sampled is None else self.context.source_config(self.config.sampled).request
        return 1.0 if request is None else request.sampling.temperature

    def rows(self, items: Sequence[DiscriminatorRow], encoder: Encoder) -> LabelRows:
        if not items:
            raise ConfigError(
                f"sources.{self.name}: a draw without any row; raise lengths, or let the policy's responses come nearer to the real ones "
                "before they are compared."
            )
        columns = ([i.prompt for i in items], [i.text for i in items], [i.finished for i in items], [i.group for i in items])
        kind = torch.tensor([item.kind for item in items])
        offset = None if self.config.minus_logprob is None else torch.tensor([item.offset for item in items])
        return LabelRows(tokens=encoder.scored_pairs(*columns), labels=(kind == REAL).long(), kind=kind, offset=offset)

    def check_rows(self, encoder: Encoder) -> None:
        real = self.context.source(self.config.real).examples
        for example in doubtful(encoder, [e for e in real if isinstance(e, Example) and "response" in e.meta]):
            with located(f"sources.{self.name}: {example.described}"):
                encoder.scored_pairs([example.prompt], [example.meta["response"]], [True])

    def state_dict(self) -> dict[str, Any]:
        return self.pool.state_dict() | self.verified.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.pool.load_state_dict(state)
        self.verified.load_state_dict(state)

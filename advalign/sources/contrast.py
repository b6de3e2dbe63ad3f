"""Real against not real, for discriminators."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from advalign.protocols import Context, Task
from advalign.types import Example, LabelRows, RolloutGroup, Rows

__all__ = ["Contrast"]

Verdict = tuple[str, str, bool, int, int]  # prompt, text, finished, index into LabelRows.KINDS, group


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """Rows labelled real (a demonstration), perturbed (the same text under a changed prompt it violates) or generated.

    GAPO's preferential prompts (arXiv:2503.20194): negatives are (c', t) with t unchanged, and (c, G(c)). `batch_size` real
    rows per draw, as many perturbed ones where `perturb` names a task, and as many generated ones where `sampled` has
    drawn. `replay` of the generated rows come from the last `replay_steps` steps: older ones would bias the game's
    fixed point. `override`: a generated text that its example verifies is never called fake. `swap` of the perturbed rows
    take the prompt of another demonstration, one that the text violates: every prompt then stands on both sides, and
    memorising the few real prompts tells the discriminator nothing.
    """

    real: str
    sampled: str | None = None
    perturb: Task | None = None
    batch_size: int = 16
    replay: float = 0.0
    replay_steps: int = 20
    override: bool = False
    swap: float = 0.0

    yields: ClassVar[type[Rows]] = LabelRows

    @property
    def after(self) -> tuple[str, ...]:
        return tuple(name for name in (self.real, self.sampled) if name)

    def start(self, context: Context, name: str) -> _Runtime:
        return _Runtime(self, context, name)


class _Runtime:
    def __init__(self, config: Contrast, context: Context, name: str) -> None:
        self.config, self.context, self.name = config, context, name
        self.pool: list[tuple[int, list[tuple[str, str, bool]]]] = []  # (step, generated rows), oldest first

    def draw(self, step: int, repeat: int) -> list[Verdict]:
        rng = self.context.random("source", self.name, step, repeat)
        real = self.context.source(self.config.real).sample(self.config.batch_size, rng)
        items: list[Verdict] = []
        groups: dict[str, int] = {}  # rows are matched by the prompt they started from
        for example in real:
            group = groups.setdefault(example.prompt, len(groups))
            items.append((example.prompt, example.meta["response"], True, 0, group))
            changed = self._perturbed(example, rng)
            if changed is not None:
                items.append((changed, example.meta["response"], True, 1, group))
        for prompt, text, finished in self._generated(step, repeat, rng):
            items.append((prompt, text, finished, 2, groups.setdefault(prompt, len(groups))))
        return items

    def _perturbed(self, example: Example, rng: random.Random) -> str | None:
        """A prompt that the example's text violates; None where there is no way to find one."""
        text = example.meta["response"]
        if self.config.swap and rng.random() < self.config.swap:
            others = self.context.source(self.config.real).sample(16, rng)
            for other in others:
                if other.prompt != example.prompt and (other.verify is None or other.verify(text) < 1):
                    return other.prompt
        return None if self.config.perturb is None else self.config.perturb.perturb(example, text, rng).prompt

    def _generated(self, step: int, repeat: int, rng: random.Random) -> list[tuple[str, str, bool]]:
        groups: Sequence[RolloutGroup] | None = self.context.drawn(self.config.sampled) if self.config.sampled else None
        if groups is None:
            return []
        fresh = [(g.example.prompt, r.text, r.finished) for g in groups for r in g.rollouts if not self._right(g.example, r.text)]
        old = [row for then, rows in self.pool for row in rows if step - then <= self.config.replay_steps]
        number = self.config.batch_size
        recalled = min(round(self.config.replay * number), len(old))
        chosen = rng.sample(old, recalled) + rng.sample(fresh, min(number - recalled, len(fresh)))
        if repeat == 0 and self.config.replay > 0:
            self.pool = [entry for entry in self.pool if step - entry[0] < self.config.replay_steps] + [(step, fresh)]
        return chosen

    def _right(self, example: Example, text: str) -> bool:
        return self.config.override and example.verify is not None and example.verify(text) >= 1

    def rows(self, items: Sequence[Verdict], encoder: Any) -> LabelRows:
        prompts, texts, finished, kinds, group = (list(column) for column in zip(*items, strict=True))
        tokens = encoder.verdicts(prompts, texts, finished, group)
        kind = torch.tensor(kinds)
        return LabelRows(tokens=tokens, labels=(kind == 0).long(), kind=kind)

    def state_dict(self) -> dict[str, Any]:
        return {"pool": [[step, [list(row) for row in rows]] for step, rows in self.pool]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.pool = [(step, [(p, t, f) for p, t, f in rows]) for step, rows in state["pool"]]

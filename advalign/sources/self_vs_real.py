"""A real response against the learner's own, as preference pairs."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from advalign.errors import ConfigError, located
from advalign.interfaces import Context, SourceRuntime
from advalign.models.row_bounds import doubtful
from advalign.names import SourceName
from advalign.ranges import Count, ProperFraction
from advalign.sources._rollouts import LearnerSource, check_prompts
from advalign.types import Example, PairRows, Rollout, RolloutGroup, Rows, Sampling, from_json, to_json, without_verifier
from advalign.types.messages import response_text

if TYPE_CHECKING:
    from advalign.models.encode import Encoder

__all__ = ["SelfVsReal"]

Pair = tuple[str, RolloutGroup]
"""A real response, and the group whose only rollout is the learner's own."""


@dataclass(frozen=True, kw_only=True)
class SelfVsReal(LearnerSource):
    """Pairs (prompt, chosen = a response of the source `real`, rejected = what `learner` answers): SPIN (arXiv:2401.01335, algorithm 1).

    `learner` may be a frozen copy: with `frozen: {previous: {learner: policy, refresh: 100}}` the opponent is the previous iterate, as in
    the paper, and `previous` as the reference of the DPO objective makes the loss the paper's. An answer that equals the real response
    teaches nothing and is drawn again.
    """

    real: SourceName
    """Name of a source of demonstrations."""
    batch_size: Count = 16
    """Pairs per draw."""
    sampling: Sampling = field(default_factory=Sampling)
    """How the learner's own responses are sampled."""
    history: ProperFraction = 0.0
    """Fraction of the pairs that comes from earlier draws (the paper mixes the pairs of this iteration and of the one before)."""
    history_draws: Count = 20
    """Number of those draws."""
    override: bool = False
    """An answer that its example verifies is not rejected."""
    tries: Count = 3
    """How often an answer is drawn at most."""

    row_type: ClassVar[type[Rows]] = PairRows

    @property
    def draw_size(self) -> int:
        return self.batch_size

    def start(self, context: Context, name: str) -> _Runtime:
        return _Runtime(self, context, name)


class _Runtime(SourceRuntime[Pair]):
    def __init__(self, config: SelfVsReal, context: Context, name: str) -> None:
        self.config, self.context, self.name = config, context, name
        self.past: list[list[Pair]] = []
        self.logs: dict[str, float] = {}

    def draw(self, step: int, repeat: int) -> list[Pair]:
        config, rng = self.config, self.context.random("source", self.name, step, repeat)
        old = [pair for pairs in self.past for pair in pairs]
        num_old = min(round(config.history * config.batch_size), len(old))
        fresh = self._sampled(config.batch_size - num_old, rng, step, repeat)
        if config.history:
            self.past = [*self.past, fresh][-config.history_draws :]
        lengths = [len(group.rollouts[0].response_ids) for _, group in fresh]
        self.logs = {"num_pairs": float(len(fresh)), "completions/mean_length": sum(lengths) / max(len(lengths), 1)}
        return fresh + rng.sample(old, num_old)

    def _sampled(self, number: int, rng: random.Random, step: int, repeat: int) -> list[Pair]:
        pairs: list[Pair] = []
        examples = list(self.context.source(self.config.real).sample(number, rng))
        for attempt in range(self.config.tries):
            key = ("versus", self.name, step, repeat, attempt)
            groups = self.context.generate(self.config.learner, examples, 1, self.config.sampling, key)
            again: list[Example] = []
            for example, group in zip(examples, groups, strict=True):
                text, real = group.rollouts[0].text, response_text(example.meta["response"])
                right = self.config.override and example.verify is not None and example.verify(text) >= 1
                if text == real or right:
                    again.append(example)
                else:
                    pairs.append((real, without_verifier(group)))
            examples = again
            if not examples:
                break
        if not pairs:
            raise ConfigError(
                f"sources.{self.name}: every answer of '{self.config.learner}' is right or equals the real response; there is nothing left "
                "to learn from this game (end the stage earlier, with until)."
            )
        return pairs

    def check_rows(self, encoder: Encoder) -> None:
        path = f"sources.{self.name}"
        examples = [e for e in self.context.source(self.config.real).examples if isinstance(e, Example) and "response" in e.meta]
        check_prompts(encoder, examples, self.config.sampling, path)
        for example in doubtful(encoder, examples) if not encoder.bidirectional else ():
            with located(f"{path}: {example.described}"):
                real = encoder.response(response_text(example.meta["response"]))
                encoder.truncation.rollout(len(encoder.prompt(example.prompt)), len(real))

    def rows(self, items: Sequence[Pair], encoder: Encoder) -> PairRows:
        prompts = encoder.prompts([group.example.prompt for _, group in items])
        if encoder.bidirectional or prompts != [group.prompt_ids for _, group in items]:
            return self._rows_of_texts(items, encoder)
        # The learner's own ids, as they were sampled: text is not tokenised again.
        groups = []
        for (real, group), ids in zip(items, encoder.responses([real for real, _ in items]), strict=True):
            chosen = Rollout(response_ids=ids, sampler_logprobs=[], text=real, finished=True)
            groups.append(RolloutGroup(example=group.example, prompt_ids=group.prompt_ids, rollouts=[chosen, group.rollouts[0]]))
        return PairRows(tokens=encoder.rollouts(groups))

    def _rows_of_texts(self, items: Sequence[Pair], encoder: Encoder) -> PairRows:
        """Rows for a learner with another tokenizer (a reward model), which tokenises the texts itself."""
        prompts = [group.example.prompt for _, group in items for _ in range(2)]
        texts = [text for real, group in items for text in (real, group.rollouts[0].text)]
        finished = [done for _, group in items for done in (True, group.rollouts[0].finished)]
        return PairRows(tokens=encoder.scored_pairs(prompts, texts, finished, [i for i in range(len(items)) for _ in range(2)]))

    def state_dict(self) -> dict[str, Any]:
        return {"past": [[[real, to_json(group)] for real, group in pairs] for pairs in self.past]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.past = [[(real, from_json(values)) for real, values in pairs] for pairs in state["past"]]

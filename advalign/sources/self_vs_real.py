"""A real response against one's own, as preference pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from advalign.errors import ConfigError
from advalign.interfaces import Context, Source, SourceRuntime
from advalign.sources import _rollouts
from advalign.types import Example, PairRows, Rollout, RolloutGroup, Rows, Sampling

__all__ = ["SelfVsReal"]

Pair = tuple[str, RolloutGroup]  # a real response, and the group whose only rollout is the learner's own


@dataclass(frozen=True, kw_only=True)
class SelfVsReal(Source):
    """Pairs (prompt, chosen = a response of the source `real`, rejected = what `learner` answers): SPIN (arXiv:2401.01335, algorithm 1).

    `learner` may be a frozen copy: with `frozen: {previous: {of: policy, refresh: 100}}` the opponent is the previous iterate, as in the
    paper, and `previous` as the reference of the DPO term makes the loss the paper's. `batch_size` pairs per draw; `history` of them
    come from the last `history_draws` draws (the paper mixes the pairs of this iteration and of the one before). An answer that equals the
    real response teaches nothing and is drawn again, up to `tries` times. `override`: an answer that its example verifies is not rejected.
    """

    real: str
    learner: str = "policy"
    batch_size: int = 16
    sampling: Sampling = field(default_factory=Sampling)
    history: float = 0.0
    history_draws: int = 20
    override: bool = False
    tries: int = 3

    row_type: ClassVar[type[Rows]] = PairRows
    draws_before_updates: ClassVar[bool] = True

    @property
    def players(self) -> Sequence[tuple[str, str]]:
        return (("learner", self.learner),)

    @property
    def draw_size(self) -> int:
        return self.batch_size

    @property
    def samples_with(self) -> str | None:
        return self.learner

    def __post_init__(self) -> None:
        if not 0 <= self.history < 1:
            raise ConfigError(f"sources.self_vs_real.history: got {self.history}, must be a share, at least 0 and below 1.")
        for name in ("batch_size", "tries", "history_draws"):
            if getattr(self, name) < 1:
                raise ConfigError(f"sources.self_vs_real.{name}: got {getattr(self, name)}, must be at least 1.")

    @property
    def depends_on(self) -> tuple[str, ...]:
        return (self.real,)

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
        recalled = min(round(config.history * config.batch_size), len(old))
        fresh = self._played(config.batch_size - recalled, rng, step, repeat)
        if config.history:
            self.past = [*self.past, fresh][-config.history_draws :]
        lengths = [len(group.rollouts[0].response_ids) for _, group in fresh]
        self.logs = {"num_pairs": float(len(fresh)), "completions/mean_length": sum(lengths) / max(len(lengths), 1)}
        return fresh + rng.sample(old, recalled)

    def _played(self, number: int, rng: Any, step: int, repeat: int) -> list[Pair]:
        found: list[Pair] = []
        asked = list(self.context.source(self.config.real).sample(number, rng))
        for attempt in range(self.config.tries):
            key = ("versus", self.name, step, repeat, attempt)
            groups = self.context.generate(self.config.learner, asked, 1, self.config.sampling, key)
            again: list[Example] = []
            for example, group in zip(asked, groups, strict=True):
                own, real = group.rollouts[0], example.meta["response"]
                right = self.config.override and example.verify is not None and example.verify(own.text) >= 1
                if own.text == real or right:
                    again.append(example)
                else:
                    found.append((real, _rollouts.without_verifier(group)))
            asked = again
            if not asked:
                break
        if not found:
            raise ConfigError(
                f"sources.{self.name}: every answer of '{self.config.learner}' is right or equals the real response; there is nothing left "
                "to learn from this game (end the stage earlier, with until)."
            )
        return found

    def rows(self, items: Sequence[Pair], encoder: Any) -> PairRows:
        prompts = encoder.prompts([group.example.prompt for _, group in items])
        if encoder.bidirectional or prompts != [group.prompt_ids for _, group in items]:
            return self._retold(items, encoder)
        # The learner's own ids, as they were sampled: text is not tokenised again.
        both = []
        for (real, group), ids in zip(items, encoder.responses([real for real, _ in items]), strict=True):
            chosen = Rollout(response_ids=ids, sampler_logprobs=[], text=real, finished=True)
            both.append(RolloutGroup(example=group.example, prompt_ids=group.prompt_ids, rollouts=[chosen, group.rollouts[0]]))
        return PairRows(tokens=encoder.rollouts(both))

    def _retold(self, items: Sequence[Pair], encoder: Any) -> PairRows:
        """For a learner with another tokenizer (a reward model): the same texts, in its own words."""
        prompts = [group.example.prompt for _, group in items for _ in range(2)]
        texts = [text for real, group in items for text in (real, group.rollouts[0].text)]
        finished = [done for _, group in items for done in (True, group.rollouts[0].finished)]
        return PairRows(tokens=encoder.scored_pairs(prompts, texts, finished, [i for i in range(len(items)) for _ in range(2)]))

    def state_dict(self) -> dict[str, Any]:
        return {"past": [[[real, _rollouts.to_json(group)] for real, group in pairs] for pairs in self.past]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.past = [[(real, _rollouts.from_json(values)) for real, values in pairs] for pairs in state["past"]]

"""The contract of a source: a draw is a function of (seed, step, repeat) and of a state that a checkpoint holds."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from advalign.engine.learner import Learner
from advalign.interfaces import Source, SourceRuntime
from advalign.names import SAMPLER, references
from advalign.testing import _runs
from advalign.testing._rules import explained, is_plugin, require, same, seed_global_generators
from advalign.training.run_spec import Frozen, ordered
from advalign.training.trainer import Trainer
from advalign.types import PairRows, Rows, Tokens

NAME = "checked"


def check_source(
    source: Source,
    *,
    sources: Mapping[str, Source] | None = None,
    learners: Mapping[str, Learner] | None = None,
    frozen: Mapping[str, Frozen] | None = None,
    data: Any = _runs.QUESTIONS,
    depends_on_seed: bool = True,
) -> None:
    """Raises AssertionError for the first rule that the source breaks. It is started four times, as the source "checked" of a tiny run.

    `sources`: those that it names. `learners`: beside a tiny one for every player and scorer that it names. `data`: texts that the
    tokenizers of those know. `depends_on_seed`: False for a source that draws the same whatever the seed of the run.
    """
    is_plugin(source, Source, "sources")
    with explained(source, "row_type is not declared; name the container of its rows: row_type: ClassVar[type[Rows]] = DemoRows"):
        assert issubclass(source.row_type, Rows)
    case = _Case(source, dict(sources or {}), dict(learners or {}), dict(frozen or {}), data)
    first = case.start(seed=0)
    draws = [first.draw(step) for step in range(3)]
    _rows(source, draws[0])
    _logs(source, first.runtime)
    _function_of_seed_and_step(case, draws, depends_on_seed)
    _resumes(case)


@dataclass(frozen=True)
class _Case:
    source: Source
    sources: dict[str, Source]
    learners: dict[str, Learner]
    frozen: dict[str, Frozen]
    data: Any

    def start(self, seed: int) -> _Started:
        """The source in a run of its own. Global generators are seeded differently every time: nothing may depend on them."""
        seed_global_generators(torch.seed() % 2**31)
        every = [self.source, *self.sources.values()]
        scorers = {r.scoring_learner for s in every for r in s.reward_parts if r.scoring_learner is not None}
        writers = {r.name for s in every for r in references(s) if r.mark == SAMPLER}
        writers |= {s.samples_with for s in every if s.samples_with is not None}
        learners = {name: _runs.learner(data=self.data) for name in sorted(writers) if name not in self.frozen} | self.learners
        with explained(self.source, "start raised"):
            run = _runs.started(
                {**self.sources, NAME: self.source},
                learners=learners,
                scorers=sorted(scorers - set(learners) - set(self.frozen)),
                frozen=self.frozen,
                seed=seed,
                data=self.data,
            )
        runtime = run.context.sources[NAME]
        require(isinstance(runtime, SourceRuntime), self.source, f"start returns a {type(runtime).__name__}, which is no SourceRuntime.")
        return _Started(self.source, run)


@dataclass(frozen=True)
class _Started:
    source: Source
    run: Trainer

    @property
    def runtime(self) -> SourceRuntime[Any]:
        return self.run.context.sources[NAME]

    def draw(self, step: int, repeat: int = 0) -> Any:
        """The rows of a draw, the other sources drawn before it as in a step."""
        self.run.context.items = {}
        for name in ordered(self.run.config["sources"]):
            if name != NAME:
                self.run.context.items[name] = self.run.context.sources[name].draw(step, repeat)
        with explained(self.source, f"draw(step={step}, repeat={repeat}) raised"), self._sampling_is_declared():
            items = self.runtime.draw(step, repeat)
        require(isinstance(items, Sequence) and len(items) > 0, self.source, "a draw is empty, or is no sequence of items.")
        with explained(self.source, "rows raised on the items of its own draw"):
            return self.runtime.rows(items, self.run.learners["policy"].network.encoder)

    @contextmanager
    def _sampling_is_declared(self) -> Iterator[None]:
        """A source that samples, or attacks a model, draws before the first learner moves."""
        context, source = self.run.context, self.source
        generate, target = context.generate, context.target

        def sampled(learner: str, *arguments: Any, **options: Any) -> Any:
            sentence = f"a draw samples with '{learner}', and draws_before_updates is False: it would sample after some learners moved."
            require(source.draws_before_updates, source, sentence)
            return generate(learner, *arguments, **options)

        def attacked(learner: str) -> Any:
            sentence = f"a draw attacks '{learner}', and draws_before_updates is False: it would attack after some learners moved."
            require(source.draws_before_updates, source, sentence)
            return target(learner)

        context.generate, context.target = sampled, attacked  # type: ignore[method-assign]
        try:
            yield
        finally:
            context.generate, context.target = generate, target  # type: ignore[method-assign]


def _rows(source: Source, rows: Any) -> None:
    kind = type(rows).__name__
    require(isinstance(rows, source.row_type), source, f"rows are {kind}, and row_type declares {source.row_type.__name__}.")
    tokens = rows.tokens
    require(isinstance(tokens, Tokens), source, "rows have no `tokens`; make them with the encoder that is handed in.")
    number = tokens.ids.shape[0]
    for f in fields(rows):
        x = getattr(rows, f.name)
        columns = x.shape[0] if isinstance(x, Tensor) else number
        require(columns == number, source, f"column '{f.name}' has {columns} entries for {number} rows.")
    require(number % 2 == 0 or not isinstance(rows, PairRows), source, f"pairs have {number} rows; rows 2i are chosen, 2i + 1 rejected.")
    require(bool((tokens.mask.long().diff(dim=1) <= 0).all()), source, "rows are not right padded.")
    require(not bool((tokens.target & ~tokens.mask).any()), source, "padding is marked as target.")
    require(not bool(tokens.target[:, 0].any()), source, "the first token is a target; nothing before it predicts it.")
    require(tokens.key.unique().numel() == number, source, "two rows have the same key; random starts are keyed by it.")


def _logs(source: Source, runtime: SourceRuntime[Any]) -> None:
    for name, value in runtime.logs.items():
        number = isinstance(name, str) and isinstance(value, int | float)
        require(number, source, f"logs hold {name!r}: {value!r}; names and numbers are written to the log of the run.")
    require(
        isinstance(source.draw_size, int) and source.draw_size > 0, source, f"draw_size is {source.draw_size}; items of one draw, above 0."
    )


def _function_of_seed_and_step(case: _Case, draws: Sequence[Any], depends_on_seed: bool) -> None:
    again = case.start(seed=0)
    repeated = [again.draw(step) for step in range(len(draws))]
    sentence = "two runs with the same seed draw different rows; draw from context.random(...), context.generator(...) and its own state."
    require(same(list(draws), repeated), case.source, sentence)
    second = case.start(seed=1)
    differs = not same(list(draws), [second.draw(step) for step in range(len(draws))])
    sentence = (
        "runs with other seeds draw the same rows; key its choices by context.random(name, step, ...), or give depends_on_seed=False."
    )
    require(differs or not depends_on_seed, case.source, sentence)


def _resumes(case: _Case) -> None:
    """Two draws, a checkpoint, two more: a resumed run draws the same two."""
    first = case.start(seed=0)
    for step in range(2):
        first.draw(step)
    file = io.BytesIO()
    with explained(case.source, "its state_dict cannot be saved; keep numbers, texts, lists, dictionaries and tensors"):
        torch.save({name: s.state_dict() for name, s in first.run.context.sources.items()}, file)
        state = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    want = [first.draw(step) for step in (2, 3)]
    resumed = case.start(seed=0)
    with explained(case.source, "load_state_dict raised on its own state_dict"):
        for name, runtime in resumed.run.context.sources.items():
            runtime.load_state_dict(state[name])
    got = [resumed.draw(step) for step in (2, 3)]
    sentence = "a run resumed from its state_dict draws other rows; state_dict holds everything that a draw moves."
    require(same(want, got), case.source, sentence)
    keys = [name for name in state[NAME] if not isinstance(name, str)]
    require(
        not keys and not any(isinstance(x, float) and math.isnan(x) for x in state[NAME].values()), case.source, "its state has no names."
    )


__all__ = ["check_source"]

"""One mixed training step.

The sources that active objectives read are drawn: policies sample, and the current discriminators score. Every learner in turn builds its
rows, annotates them and makes its updates. Sources that sample draw before the first update, so a reward is never given by a discriminator
that was already trained on the row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import Tensor

from advalign.engine import rng
from advalign.engine.micro import split_groups
from advalign.engine.plan import Plan
from advalign.interfaces import check_rows
from advalign.training.annotate import Annotator, Draw, needed_columns
from advalign.training.columns import columns
from advalign.training.context import RunContext
from advalign.training.frozen_copies import FrozenCopies
from advalign.training.references import reads_reference
from advalign.training.run_spec import StepPlan, TrainingArguments
from advalign.training.throughput import Meter
from advalign.types import Example, RolloutGroup, RolloutRows, TokenRows


@dataclass(kw_only=True)
class TrainingStep:
    """One step of a run, carried out by `run`."""

    plan: StepPlan
    """What it runs."""
    step: int
    """Steps before it."""
    args: TrainingArguments
    """Arguments of the run."""
    context: RunContext
    """The started learners and sources; holds what the step has drawn so far."""
    copies: FrozenCopies
    """The frozen copies."""
    annotator: Annotator
    """What completes the rows."""
    meter: Meter
    """What counts tokens and operations."""
    drawn: dict[tuple[str, int], Sequence[Any]] = field(default_factory=dict)
    """{(source, repeat): what it drew}"""
    annotated: dict[str, TokenRows] = field(default_factory=dict)
    """{source: rows of its rollouts}: all learners and repeats of the step read the same ones."""
    reference_logprobs: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    """{(source, frozen copy): reference log-probabilities of its rollouts}"""

    def run(self, skipping: Mapping[str, bool]) -> dict[str, Any]:
        """Draws, then updates every learner; returns the logs. `skipping`: {gated learner: whether it skips its updates}."""
        self._create_copies()
        self.context.items = {}
        logs: dict[str, Any] = dict(self._draw_before_updates())
        for name, plan in self.plan.active.items():
            skips, spec = skipping.get(name, False), self.plan.config["learners"][name]
            logs |= {f"{name}/skipped": float(skips)} if name in skipping else {}
            logs |= self._complete_samples_of(name)
            runtime = self.context.learners[name]
            if skips:
                runtime.advance_schedule(spec.num_updates)
            for repeat in range(1 if skips else spec.updates):
                rows = {}
                for source in plan.sources:
                    rows[source], source_logs = self.rows(source, name, repeat)
                    logs |= source_logs
                numbers = self._update(plan, rows, repeat, train=not skips)
                logs |= {name: x for name, x in numbers.items() if repeat == 0 or not _before_training(plan, name)}
            logs |= runtime.guard.take_logs()
            self.copies.average(name)
        return logs

    # ------------------------------------------------------------------------------------------------------ rows

    def rows(self, source: str, learner: str, repeat: int = 0) -> tuple[TokenRows, dict[str, float]]:
        """The rows that a learner reads of a source, and what to log about them."""
        if source in self.annotated:
            width = int(self.annotated[source].tokens.lengths.max())
            self.context.learners[learner].network.encoder.truncation.check_width(width, shared=True)
            return self._with_own_reference(source, learner), {}
        config, runtime = self.plan.config["sources"][source], self.context.sources[source]
        items = self._draw(source, repeat)
        logs: dict[str, float] = {}
        if not config.draws_before_updates:
            logs |= {f"{source}/{k}": v for k, v in runtime.logs.items()}
        rows: Any = runtime.rows(items, self.context.learners[learner].network.encoder)
        check_rows(rows, items, config.row_type, f"sources.{source}")
        self.context.processes.check_equal(f"sources.{source}", rows.tokens.ids)
        rows, row_logs = self.annotator(self._request(source, learner), rows)
        logs |= {f"{source}/{k}": v for k, v in row_logs.items()}
        if config.row_type is RolloutRows:
            self.annotated[source] = rows
            if rows.ref_logprobs is not None:
                owner = learner if config.reward_penalty is None else config.samples_with
                self.reference_logprobs[source, self.annotator.references.get(owner or learner, "")] = rows.ref_logprobs
            return self._with_own_reference(source, learner), logs
        return rows, logs

    def _request(self, source: str, learner: str) -> Draw:
        """What a learner asks of a draw: columns that any objective reads, and reference columns if one of its own does."""
        config, readers = self.plan.config["sources"][source], self.plan.readers(source)
        needed = needed_columns(config, readers, self.plan.config["learners"])
        if config.reward_penalty is None and not any(reads_reference(o) for o in readers if o.learner == learner):
            needed -= {"ref_logprobs", "anchor"}
        return Draw(name=source, source=config, learner=learner, needed=needed)

    def _with_own_reference(self, source: str, learner: str) -> TokenRows:
        """The rollouts of a source, which learners share, with the reference log-probabilities of this learner where it reads them."""
        rows, request = self.annotated[source], self._request(source, learner)
        assert isinstance(rows, RolloutRows)
        if not any(reads_reference(o) for o in self.plan.readers(source) if o.learner == learner):
            return rows
        key = (source, self.annotator.references.get(learner, ""))
        if key not in self.reference_logprobs:
            self.reference_logprobs[key] = self.annotator.reference_logprobs(request, rows, own=True)
        return replace(rows, ref_logprobs=self.reference_logprobs[key])

    def _complete_samples_of(self, learner: str) -> dict[str, float]:
        """Before `learner` is updated: completes its rollouts that other learners alone read, since `old_logprobs` are of these weights."""
        logs: dict[str, float] = {}
        samplers = {learner, *(name for name, copy in self.copies.specs.items() if copy.learner == learner)}
        for reader, plan in self.plan.active.items():
            for source in plan.sources if reader != learner else ():
                config, own = self.plan.config["sources"][source], self.plan.active[learner].sources
                if config.row_type is RolloutRows and config.samples_with in samplers and source not in own:
                    logs |= self.rows(source, reader)[1]
        return logs

    def _draw_before_updates(self) -> dict[str, float]:
        """Draws the sources that sample or attack, in order of their dependencies."""
        logs: dict[str, float] = {}
        for name in self.plan.sources:
            if self.plan.config["sources"][name].draws_before_updates:
                self._draw(name, 0)
                logs |= {f"{name}/{k}": v for k, v in self.context.sources[name].logs.items()}
        assert self.context.rollout_engine is not None
        return logs | {f"rollout/{k}": v for k, v in self.context.rollout_engine.logs.items()}

    def _draw(self, source: str, repeat: int) -> Sequence[Any]:
        """The items of a source: rollouts are drawn once per step, others once per repeat, which all learners read."""
        config = self.plan.config["sources"][source]
        key = (source, 0 if config.row_type is RolloutRows else repeat)
        if key not in self.drawn:
            self.drawn[key] = self.context.items[source] = self.context.sources[source].draw(self.step, repeat)
            self.meter.sampled(config.samples_with or "", self.drawn[key])
        return self.drawn[key]

    def _create_copies(self) -> None:
        """The frozen copies that this step reads; sources create those that only they name when they ask for them."""
        self.copies.refresh(self.step)
        specs, plans = self.copies.specs, self.plan.active.values()
        read = {view for p in plans for component in p.components for view in component if view in specs}
        config, references = self.plan.config["sources"], self.annotator.references
        for objective in (o for p in plans for o in p.objectives.values()):
            penalised = config[objective.source].reward_penalty is not None
            readers = [objective.learner] * reads_reference(objective) + [config[objective.source].samples_with] * penalised
            read |= {references[reader] for reader in readers if reader is not None}
        read |= {name for name, copy in specs.items() if copy.ema is not None}
        for name in sorted(read):
            self.copies.get(name)

    # --------------------------------------------------------------------------------------------------- updates

    def _update(self, plan: Plan, rows: Mapping[str, TokenRows], repeat: int, *, train: bool) -> dict[str, float]:
        """The updates of one learner on one draw; means of their metrics."""
        name, spec, args = plan.learner, self.plan.config["learners"][plan.learner], self.args
        runtime = self.context.learners[name]
        values: dict[str, list[float]] = {}
        runtime.configure(spec)
        measure = bool(args.measure_every) and self.step % args.measure_every == 0
        for epoch in range(spec.epochs if train else 1):
            splits = {source: self._split(source, r, spec.minibatches, name, repeat, epoch) for source, r in rows.items()}
            for number in range(spec.minibatches):
                numbers = {s: splits[s][number] for s in rows if len(splits[s][number])}
                minibatch = {s: rows[s].index(n) for s, n in numbers.items()}
                minibatch = self._with_current(plan, minibatch, first=(repeat, epoch, number) == (0, 0, 0))
                key = (args.seed, "update", name, self.step, repeat, epoch, number)
                logs = runtime.update(
                    plan,
                    minibatch,
                    self.copies.networks,
                    budget=args.token_budget,
                    key=key,
                    measure=measure,
                    train=train,
                    row_name=partial(self._row_name, rows, numbers, repeat),
                )
                runtime.guard.stop_after(args.max_skipped)
                self.meter.updated(name, plan, minibatch)
                for k, v in logs.items():
                    if epoch == 0 or not _before_training(plan, k):
                        values.setdefault(k, []).append(v)
        return {k: sum(v) / len(v) for k, v in values.items()}

    def _with_current(self, plan: Plan, rows: Mapping[str, TokenRows], *, first: bool) -> dict[str, TokenRows]:
        """The rows with `current_logprobs` where an objective reads them: log-probabilities of the weights as they are now. In the `first`
        update on what the learner has just sampled they are `old_logprobs`."""
        result = dict(rows)
        for source in sorted({o.source for o in plan.objectives.values() if "current_logprobs" in o.columns} & rows.keys()):
            config, network = self.plan.config["sources"][source], self.context.learners[plan.learner].network
            if first and config.samples_with == plan.learner and not config.steps_ahead:
                continue
            current = columns(network, rows[source], {"logprobs"}, self.args.token_budget, self.context.processes)["logprobs"]
            result[source] = replace(rows[source], current_logprobs=current)  # type: ignore[call-arg]
        return result

    def _row_name(self, rows: Mapping[str, TokenRows], numbers: Mapping[str, Tensor], repeat: int, source: str, index: int) -> str:
        """What the log calls row `index` of an update, which is row `numbers[source][index]` of the `rows` of a draw."""
        number, items = int(numbers[source][index]), self._draw(source, repeat)
        ids = [i.example.id for i in items for _ in i.rollouts] if all(isinstance(i, RolloutGroup) for i in items) else []
        ids = ids or [item.id if isinstance(item, Example) else "" for item in items]
        per_item = max(len(rows[source].tokens.ids) // max(len(ids), 1), 1)  # a pair has two rows
        name = ids[number // per_item] if number // per_item < len(ids) else ""
        return f"row {number}" + (f" of example {name!r}" if name else "")

    def _split(self, source: str, rows: TokenRows, number: int, learner: str, repeat: int, epoch: int) -> list[Tensor]:
        """Row numbers of every minibatch: consecutive groups in the first epoch, shuffled groups in the others."""
        key = (self.args.seed, "minibatches", learner, source, self.step, repeat, epoch)
        return split_groups(rows, number, rng.generator(*key) if epoch else None)


def _before_training(plan: Plan, name: str) -> bool:
    """Whether a number of the log is to be of rows that the step has not trained on yet."""
    objective, _, metric = name.partition("/")
    return objective in plan.objectives and metric.partition("/")[0] in plan.objectives[objective].first_pass_metrics

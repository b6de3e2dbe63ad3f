"""The trainer: sources, adversaries and objectives by name, one mixed step, spelled out.

One step: the sources that active objectives read are drawn (policies sample, rewards score with the discriminator of
now); every learner in turn builds its rows, annotates a draw of rollouts, and makes its updates. Policies that sample come
first and discriminators after, so a reward is never given by a discriminator that has already seen the row.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as hf_logging

from advalign.engine.learner import Learner, LearnerRuntime
from advalign.engine.micro import split_groups
from advalign.engine.plan import Plan
from advalign.engine.process_group import ProcessGroup
from advalign.errors import ConfigError
from advalign.interfaces import Adversary, Objective, Source, check_rows
from advalign.models import Network
from advalign.models.sharing import load_order
from advalign.rollout.hf import HF
from advalign.training import build, checkpoint, distributed, evaluate
from advalign.training.annotate import Annotator, annotate_feedback, annotate_pairs
from advalign.training.context import DistributedRolloutEngine, FrozenCopies, RunContext
from advalign.training.logs import ProgressBar, RunLog
from advalign.training.run_spec import Frozen, RunSpec, TrainingArguments, learners_of, ordered
from advalign.training.schedule import Follow, Gate, Ramp, Stage, Timeline
from advalign.training.throughput import Meter
from advalign.types import FeedbackRows, PairRows, RolloutRows


class Trainer:
    """`model` is short for one learner named "policy"; its other fields are then the defaults of `Learner`."""

    def __init__(
        self,
        *,
        model: str | Learner | None = None,
        learners: Mapping[str, Learner] | None = None,
        sources: Mapping[str, Source],
        objectives: Mapping[str, Objective],
        adversaries: Mapping[str, Adversary] | None = None,
        frozen: Mapping[str, Frozen] | None = None,
        evaluations: Mapping[str, evaluate.Evaluation | evaluate.DiscriminatorEvaluation] | None = None,
        schedules: Mapping[str, Ramp | Follow] | None = None,
        stages: Sequence[Stage] = (),
        gates: Mapping[str, Gate] | None = None,
        rollout: Any = None,
        args: TrainingArguments | None = None,
        callbacks: Sequence[Any] = (),
        networks: Mapping[str, Network] | None = None,
    ) -> None:
        self.args = args or TrainingArguments()
        self.config: dict[str, Any] = {
            "learners": learners_of(model, learners),
            "sources": dict(sources),
            "objectives": dict(objectives),
            "adversaries": dict(adversaries or {}),
        }
        self.run_spec = RunSpec(
            config=self.config,
            frozen=dict(frozen or {}),
            schedules=dict(schedules or {}),
            stages=list(stages) or [Stage(steps=self.args.max_steps, name="train")],
            gates=dict(gates or {}),
        )
        self.timeline = Timeline(self.run_spec.stages, self.run_spec.schedules, self.run_spec.gates)
        self.evaluations, self.callbacks, self.step = dict(evaluations or {}), list(callbacks), 0
        self.engine = rollout or HF()
        self._given = dict(networks or {})
        self._started = False
        load_order(self.config["learners"], self._given)
        self.run_spec.check({name: self._given.get(name, learner).head for name, learner in self.config["learners"].items()})
        evaluate.check(self.evaluations, self.config["learners"])

    # ------------------------------------------------------------------------------------------- before the run

    @property
    def total_steps(self) -> int:
        return sum(stage.steps for stage in self.run_spec.stages)

    @property
    def model(self) -> Network:
        """The first learner's network."""
        self.start()
        return next(iter(self.learners.values())).network

    @property
    def stage(self) -> Stage:
        """The current one."""
        return self.run_spec.stages[self.timeline.place(self.step)[0]]

    def plans(self) -> dict[str, Plan]:
        """What every learner runs at the current step."""
        return self.run_spec.plans(self.stage, self.step, self.timeline.place(self.step)[1], values=self.timeline.values)

    def formula(self) -> str:
        """The losses of every stage, as text; loads nothing."""
        return self.run_spec.formula()

    def notes(self) -> list[str]:
        """What is allowed and yet probably not meant: of the configuration, and once models are loaded, of their sizes."""
        found = self.run_spec.notes()
        if self._started and self.args.distributed == "fsdp" and self.ranks.number == 1:
            found.append(
                "args.distributed: fsdp given, and there is one process, so weights are whole; launch more (torchrun, accelerate)."
            )
        sizes = {n: sum(p.numel() for p in r.network.parameters()) for n, r in self.learners.items()} if self._started else {}
        return found + build.warn_large_discriminators(self.config["sources"], sizes)

    def _active_config(self) -> tuple[dict[str, Any], dict[str, Objective]]:
        return self.run_spec.active_config(self.stage, self.step, self.timeline.place(self.step)[1], values=self.timeline.values)

    def start(self) -> None:
        """Load models and start sources. `train` does it; call it to look at the models before."""
        if self._started:
            return
        hf_logging.disable_progress_bar()
        args = self.args
        self.accelerator = distributed.accelerator(args.mixed_precision)
        self.ranks, shards = ProcessGroup(self.accelerator), distributed.sharding(self.accelerator, args)
        distributed.refuse(self.ranks.number, shards is not None, self.config["sources"], self.config["objectives"])
        self.context = RunContext(args.seed, self.engine, args.token_budget, self.ranks)
        self.context.total_steps = self.total_steps
        self.context.source_configs = self.config["sources"]
        self.learners: dict[str, LearnerRuntime] = {}
        networks = build.networks(self.config["learners"], self._given, args.seed)
        for name, learner in self.config["learners"].items():
            network = networks[name].to(self.accelerator.device)
            self.learners[name] = LearnerRuntime(name, learner, network, self.accelerator, self.total_steps, shards)
        self.context.learners = self.learners
        self.meter = Meter(self.learners, self.ranks.number, {name: copy.learner for name, copy in self.run_spec.frozen.items()})
        self.copies = self.context.copies = FrozenCopies(self.run_spec.frozen, self.learners)
        self.annotator = Annotator(self.learners, self.copies.networks, self.ranks, args.token_budget)
        # Started in order of need, so that a source may take hold of another one.
        for name in ordered(self.config["sources"]):
            self.context.sources[name] = self.config["sources"][name].start(self.context, name)
        build.check_tokenizers(self.run_spec, self.context)
        self._started = True

    # ------------------------------------------------------------------------------------------------ the run

    def train(self, resume: bool = False, progress: bool = True) -> list[dict[str, Any]]:
        """Run every stage. `resume` continues from the newest checkpoint in output_dir, or starts where there is none.
        Returns the log, one dictionary per step."""
        self.start()
        folder = Path(self.args.output_dir) if self.args.output_dir else None
        if resume and folder is None:
            raise ConfigError("args.output_dir: none given, so there is nothing to resume from; set it to the folder of the run.")
        newest = self._begin(folder, resume) if folder is not None else None
        if newest is not None:
            self.load_checkpoint(newest)
        log = RunLog(folder, self.step) if folder is not None and self.ranks.main else None
        history: list[dict[str, Any]] = []
        with ProgressBar(self.total_steps, self.step, "", enabled=progress and self.ranks.main) as bar:
            while not self.timeline.finished(self.step):
                stage = self.stage
                followed = {f"schedules/{path}": value for path, value in self.timeline.values.items()}
                with self.meter.step():
                    taken = self.training_step()
                logs: dict[str, Any] = {"stage": stage.name} | followed | taken
                due = bool(self.args.eval_steps) and self.step % self.args.eval_steps == 0
                logs |= self.evaluate() if due else {}
                logs = self.ranks.same(logs)  # what follows from a number happens everywhere
                self.timeline.observe(self.step, logs)  # a stage may end by what was just evaluated
                if self.args.eval_steps and not due and self.timeline.finished(self.step):
                    logs |= self.evaluate()
                history.append({"step": self.step, **logs})
                if log is not None:
                    log.write(self.step, logs, self.meter.steps[-1])
                bar.step(self.step, stage.name, logs)
                for callback in self.callbacks:
                    callback.on_step(self, logs)
                if folder is not None and self.args.save_steps and self.step % self.args.save_steps == 0:
                    self.save_checkpoint(folder)
        if log is not None:
            log.close()
        if folder is not None:
            self.save_pretrained(folder)
        return history

    def _begin(self, folder: Path, resume: bool) -> Path | None:
        """The checkpoint to continue from; without one the folder is cleared. All processes see one folder."""
        newest = checkpoint.latest(folder) if resume and self.ranks.main else None
        name = self.ranks.same(None if newest is None else newest.name)
        if name is None and self.ranks.main:
            _clear(folder)
        self.ranks.wait()
        return None if name is None else folder / name

    def training_step(self) -> dict[str, float]:
        """Draw, then update every learner; policies before the discriminators that judge them."""
        plans = {name: p for name, p in self.plans().items() if p.terms}
        config, _ = self._active_config()
        self._freeze(plans, [t for p in plans.values() for t in p.terms.values()])
        self.context.items = {}
        logs: dict[str, float] = {}
        for name in ordered({s: config["sources"][s] for p in plans.values() for s in p.sources}):
            if config["sources"][name].draws_before_updates:
                self._items(name, 0)
                logs |= {f"{name}/{k}": v for k, v in self.context.sources[name].logs.items()}
        logs |= {f"rollout/{k}": v for k, v in self.engine.logs.items()}
        annotated: dict[str, Any] = {}
        for name, p in plans.items():
            skips_update = self.timeline.skips_update(name)
            logs |= {f"{name}/skipped": float(skips_update)} if name in self.run_spec.gates else {}
            for repeat in range(1 if skips_update else config["learners"][name].updates):
                rows = {s: self._rows(s, name, repeat, config, annotated, logs) for s in p.sources}
                logs |= self._updates(name, p, rows, config["learners"][name], repeat, train=not skips_update)
            self.copies.average(name)
            self.learners[name].scheduler.step()
        self.step += 1
        return logs

    def _items(self, source: str, repeat: int) -> Any:
        if source not in self.context.items or (repeat and self.config["sources"][source].row_type is not RolloutRows):
            self.context.items[source] = self.context.sources[source].draw(self.step, repeat)
            self.meter.sampled(self.config["sources"][source].samples_with or "", self.context.items[source])
        return self.context.items[source]

    def _rows(
        self, source: str, learner: str, repeat: int, config: Mapping[str, Any], annotated: dict[str, Any], logs: dict[str, float]
    ) -> Any:
        if source in annotated and config["sources"][source].row_type is RolloutRows:
            return annotated[source]
        items, runtime = self._items(source, repeat), self.context.sources[source]
        if not config["sources"][source].draws_before_updates:
            logs |= {f"{source}/{k}": v for k, v in runtime.logs.items()}
        rows = runtime.rows(items, self.learners[learner].network.encoder)
        check_rows(rows, items, config["sources"][source].row_type, f"sources.{source}")
        self.ranks.agree(f"sources.{source}", rows.tokens.ids)
        readers = [t for t in self._active_config()[1].values() if t.source == source]
        needed = self.annotator.needs(config["sources"][source], readers, config["learners"])
        if isinstance(rows, RolloutRows):
            rows, found = self.annotator(source, config["sources"][source], rows, needed)
            logs |= {f"{source}/{k}": v for k, v in found.items()}
            annotated[source] = rows
        elif isinstance(rows, PairRows):
            reference, budget = self.frozen.get("reference"), self.args.token_budget
            rows = annotate_pairs(rows, needed, reference=reference, budget=budget, ranks=self.ranks)
        elif isinstance(rows, FeedbackRows):
            own, frozen = self.learners[learner].network, self.frozen.get("reference")
            rows = annotate_feedback(rows, needed, policy=own, reference=frozen, budget=self.args.token_budget, ranks=self.ranks)
        return rows

    def _updates(self, name: str, p: Plan, rows: Mapping[str, Any], spec: Learner, repeat: int, train: bool) -> dict[str, float]:
        means: dict[str, list[float]] = {}
        self.learners[name].set_learning_rate(spec.learning_rate)
        measure = bool(self.args.measure_every) and self.step % self.args.measure_every == 0
        for epoch in range(spec.epochs if train else 1):
            splits = {s: split_groups(r, spec.minibatches) for s, r in rows.items()}
            for number in range(spec.minibatches):
                chosen = {s: r.index(splits[s][number]) for s, r in rows.items() if len(splits[s][number])}
                key = (self.args.seed, "update", name, self.step, repeat, epoch, number)
                budget = self.args.token_budget
                logs = self.learners[name].update(p, chosen, self.frozen, budget=budget, key=key, measure=measure, train=train)
                self.meter.updated(name, p, chosen)
                for k, v in logs.items():
                    means.setdefault(k, []).append(v)
        return {k: sum(v) / len(v) for k, v in means.items()}

    # --------------------------------------------------------------------------------------------- frozen copies

    @property
    def frozen(self) -> dict[str, Network]:
        """The frozen copies that exist by now."""
        return self.copies.networks

    def _freeze(self, plans: Mapping[str, Plan], terms: Any) -> None:
        """FrozenCopies that this step reads; sources make those that only they name when they ask for them."""
        self.copies.refresh(self.step)
        wanted = {v for p in plans.values() for component in p.components for v in component if v in self.run_spec.frozen}
        penalised = {n for n, s in self.config["sources"].items() if s.reward_penalty is not None}
        if any("ref_logprobs" in t.columns or t.source in penalised for t in terms):
            wanted.add("reference")
        wanted |= {n for n, f in self.run_spec.frozen.items() if f.ema is not None}
        for name in sorted(wanted):
            self.copies.get(name)

    # ------------------------------------------------------------------------------------- evaluate, save, resume

    def evaluate(self) -> dict[str, float]:
        """Every evaluation, as {"<name>/<metric>": value}."""
        self.start()
        logs: dict[str, float] = {}
        for name, evaluation in self.evaluations.items():
            network = self.context.learner(evaluation.learner).network
            found = evaluate.run(
                evaluation, network, DistributedRolloutEngine(self.engine, self.ranks), self.args.token_budget, self.context
            )
            logs |= {f"{name}/{k}": v for k, v in found.items()}
        for callback in self.callbacks:
            callback.on_evaluate(self, logs)
        return logs

    def save_pretrained(self, folder: str | Path) -> None:
        """One folder per learner, readable by `from_pretrained`."""
        for name, runtime in self.learners.items():
            network = runtime.whole()
            if network is not None and self.ranks.main:
                network.save_pretrained(Path(folder) / name)
        self.ranks.wait()

    def save_checkpoint(self, folder: Path) -> None:
        networks = {f"learner.{n}": r.network for n, r in self.learners.items()} | {f"frozen.{n}": f for n, f in self.frozen.items()}
        state = {
            "config": self._described(),
            "step": self.step,
            "timeline": self.timeline.state_dict(),
            "learners": {n: checkpoint.without_moments(r.network, r.state_dict()) for n, r in self.learners.items()},
            "sources": {n: s.state_dict() for n, s in self.context.sources.items()},
            "copies": dict(self.copies.versions),
            "annotator": self.annotator.states,
            "random": torch.get_rng_state(),
        }
        optimizers = {f"learner.{n}": r.optimizer for n, r in self.learners.items()}
        path = checkpoint.save(folder, self.step, networks, state, ranks=self.ranks, optimizers=optimizers)
        for callback in self.callbacks:
            callback.on_save(self, str(path))

    def _described(self) -> dict[str, str]:
        """What a resumed run must share with the one that was interrupted. Lengths of stages may grow."""
        more = {"frozen": self.run_spec.frozen, "schedules": self.run_spec.schedules, "gates": self.run_spec.gates}
        more |= {"args": {"seed": self.args.seed}}  # type: ignore[dict-item]
        return checkpoint.described(self.config | more)

    def load_checkpoint(self, path: Path) -> None:
        """Continue as if never stopped."""
        self.start()
        state = checkpoint.read_state(path)
        checkpoint.check_same(path, state["config"], self._described())
        self.step = state["step"]
        self.timeline.load_state_dict(state["timeline"])
        for name, runtime in self.learners.items():
            checkpoint.read_network(path, f"learner.{name}", runtime.network)
            runtime.load_state_dict(checkpoint.with_moments(path, f"learner.{name}", runtime.network, state["learners"][name]))
        for name, version in state["copies"].items():
            checkpoint.read_network(path, f"frozen.{name}", self.copies.get(name))
            self.copies.versions[name] = version
        for name, source in self.context.sources.items():
            source.load_state_dict(state["sources"][name])
        self.annotator.states |= state["annotator"]
        torch.set_rng_state(state["random"])


def _clear(folder: Path) -> None:
    """A fresh run does not continue another one's checkpoints."""
    for old in checkpoint.found(folder):
        shutil.rmtree(old)
    for name in ("log.jsonl", "speed.jsonl"):
        (folder / name).unlink(missing_ok=True)

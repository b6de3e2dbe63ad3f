"""The trainer: learners, sources, adversaries and objectives by name, and the loop over training steps (`step.py`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from os import PathLike
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers.utils import logging as hf_logging

from advalign.checked import arguments
from advalign.engine.learner import Learner, LearnerRuntime
from advalign.engine.process_group import ProcessGroup
from advalign.errors import ConfigError, located
from advalign.interfaces import Adversary, Callback, Objective, RolloutEngine, Source
from advalign.models import Network
from advalign.models.sharing import load_order
from advalign.rollout.hf import HF
from advalign.training import build, checkpoint, class_labels, distributed, evaluate, run_checks, run_loop
from advalign.training.annotate import Annotator
from advalign.training.context import RunContext
from advalign.training.critics import critics_of
from advalign.training.distributed_rollout import DistributedRolloutEngine
from advalign.training.frozen_copies import FrozenCopies
from advalign.training.output_folder import OutputFolder, export
from advalign.training.references import references_of, with_references
from advalign.training.run_card import training_facts
from advalign.training.run_description import describe
from advalign.training.run_meaning import notes_on_meaning
from advalign.training.run_spec import Frozen, RunSpec, StepPlan, TrainingArguments, learners_of, ordered
from advalign.training.run_state import RunState
from advalign.training.schedule import Follow, Gate, Ramp, Stage, Timeline
from advalign.training.step import TrainingStep
from advalign.training.throughput import Meter


class Trainer:
    """A run. `model` is short for one learner named "policy"; its other fields are then the defaults of `Learner`."""

    @arguments()
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
        rollout: RolloutEngine | None = None,
        args: TrainingArguments | None = None,
        callbacks: Sequence[Callback] = (),
        networks: Mapping[str, Network] | None = None,
    ) -> None:
        """`networks`: {learner: its network}, where it is not to be loaded. Refuses what cannot work; loads nothing."""
        self.args = args or TrainingArguments()
        self.config: dict[str, Any] = {
            "learners": learners_of(model, learners),
            "sources": dict(sources),
            "objectives": dict(objectives),
            "adversaries": dict(adversaries or {}),
        }
        self.run_spec = RunSpec(
            config=self.config,
            frozen=with_references(frozen or {}, self.config),
            schedules=dict(schedules or {}),
            stages=list(stages) or [Stage(steps=self.args.max_steps, name="train")],
            gates=dict(gates or {}),
        )
        self.timeline = Timeline(self.run_spec.stages, self.run_spec.schedules, self.run_spec.gates)
        self.evaluations, self.callbacks, self.step = dict(evaluations or {}), list(callbacks), 0
        self.evaluated: tuple[int, dict[str, float]] = (0, {})
        self.rollout_engine = rollout or HF()
        self.prebuilt_networks = dict(networks or {})
        self._started = False
        self._accelerator: Accelerator | None = None
        self._output: OutputFolder | None = None
        self._checkpoint: Path | None = None
        self._check()

    def _check(self) -> None:
        learners = self.config["learners"]
        load_order(learners, self.prebuilt_networks)
        heads = {name: self.prebuilt_networks.get(name, learner).head for name, learner in learners.items()}
        run_checks.check(self.run_spec, self.evaluations, heads, self.args, callbacks=bool(self.callbacks))
        self.critics = critics_of(self.run_spec, heads)
        evaluate.check(self.evaluations)

    # ------------------------------------------------------------------------------------------- before the run

    @property
    def total_steps(self) -> int:
        """Steps of all stages, none of which ends early."""
        return self.run_spec.total_steps

    @property
    def model(self) -> Network:
        """The first learner's network."""
        self.start()
        return next(iter(self.learners.values())).network

    @property
    def stage(self) -> Stage:
        """The current stage."""
        return self.run_spec.stages[self.timeline.place(self.step)[0]]

    @property
    def frozen(self) -> dict[str, Network]:
        """The frozen copies that exist."""
        return self.copies.networks

    def step_plan(self) -> StepPlan:
        """What the current step runs."""
        return self.run_spec.step_plan(self.stage, self.step, self.timeline.place(self.step)[1], values=self.timeline.values)

    def formula(self) -> str:
        """The losses of every stage, as text; loads nothing."""
        return self.run_spec.formula()

    def notes(self) -> list[str]:
        """What is allowed and yet probably not meant: in the configuration and, once models are loaded, in their sizes."""
        sentences = run_checks.notes(self.run_spec) + notes_on_meaning(self.run_spec)
        evaluated = {name: (evaluation.data, evaluation.split) for name, evaluation in self.evaluations.items()}
        sentences += run_checks.notes_on_shared_data(self.config["sources"], evaluated)
        if self._started and self.args.distributed == "fsdp" and self.processes.world_size == 1:
            sentences.append(
                "args.distributed: fsdp given, and there is one process, so weights are not sharded; launch more (torchrun, accelerate)."
            )
        sizes = {n: sum(p.numel() for p in r.network.parameters()) for n, r in self.learners.items()} if self._started else {}
        return sentences + build.warn_large_discriminators(self.config["sources"], sizes)

    def _launch(self) -> Accelerator:
        """The processes of the run, which are known before anything is loaded."""
        if self._accelerator is None:
            self._accelerator = distributed.accelerator(self.args.mixed_precision)
            self.processes = ProcessGroup.launched(self._accelerator)
        return self._accelerator

    def start(self) -> None:
        """Loads models and starts sources. `train` does it; call it to look at the models before."""
        if self._started:
            return
        hf_logging.disable_progress_bar()
        args, sources = self.args, self.config["sources"]
        accelerator = self._launch()
        shards = distributed.sharding(accelerator, args)
        distributed.check(self.processes.world_size, shards is not None, sources, self.config["objectives"])
        self.context = RunContext(
            args.seed, self.rollout_engine, args.token_budget, self.processes, total_steps=self.total_steps, source_configs=sources
        )
        self.learners: dict[str, LearnerRuntime] = {}
        specs = class_labels.with_num_labels(self.config["learners"], self.prebuilt_networks, sources, self.config["objectives"])
        networks = build.networks(specs, self.prebuilt_networks, args.seed, saved=bool(args.output_dir))
        for name, learner in self.config["learners"].items():
            network = networks[name].to(accelerator.device)
            distributed.check_precision(name, network, shards is not None, self.config["objectives"])
            self.learners[name] = LearnerRuntime(name, learner, network, accelerator, self.run_spec.num_updates(name), shards)
        self.context.learners = self.learners
        owners = {name: copy.learner for name, copy in self.run_spec.frozen.items()}
        self.meter = Meter(self.learners, self.processes.world_size, owners)
        self.copies = self.context.copies = FrozenCopies(self.run_spec.frozen, self.learners)
        self.annotator = Annotator(
            self.learners,
            self.frozen,
            budget=args.token_budget,
            references=references_of(self.run_spec.frozen, self.config),
            critics=self.critics,
            processes=self.processes,
        )
        self.context.objectives = self.config["objectives"]
        # Started in order of need, so that a source may use the runtime of another one.
        for name in ordered(sources):
            with located(f"sources.{name}"):
                self.context.sources[name] = sources[name].start(self.context, name)
        row_types = {name: source.row_type for name, source in sources.items()}
        class_labels.bind(self.config["objectives"], self.learners, self.context.sources, row_types)
        build.check_started(self.run_spec, self.context)
        evaluate.check_data(self.evaluations, self.context)
        self._started = True

    # ------------------------------------------------------------------------------------------------ the run

    def prepare(self, *, resume: bool | str | PathLike[str] = False, overwrite: bool = False) -> None:
        """Before anything is loaded: locks `output_dir` and refuses what cannot go on there. `train` does it, where it was not done."""
        folder = self.args.output_dir
        if resume and not folder:
            raise ConfigError("args.output_dir: none given, so there is nothing to resume from; set it to the folder of the run.")
        if folder and self._output is None:
            self._launch()
            output = OutputFolder(Path(folder), list(self.config["learners"]), self.description, self.processes)
            self._checkpoint = output.open(resume=resume, overwrite=overwrite or self.args.overwrite_output_dir)
            self._output = output

    def train(self, resume: bool | str | PathLike[str] = False, progress: bool = True, overwrite: bool = False) -> Sequence[dict[str, Any]]:
        """Runs every stage; returns the log, one dictionary per step, which is read from a file when it is asked for.

        `resume` continues from the newest checkpoint in output_dir, or starts where there is none; a path is that of the checkpoint.
        `overwrite` gives up the run in output_dir, which is removed after the first step of this one. `progress`: shows a progress bar.
        """
        try:
            self.prepare(resume=resume, overwrite=overwrite)
            self.start()
            if self._output is not None and self._checkpoint is not None:
                self.step = self._state().load(self._checkpoint)
                self._output.tidy(self.step, self.args.save_total_limit)
            return run_loop.run(self, self._output, progress)
        finally:
            if self._output is not None:
                self._output.close()
            self._output = self._checkpoint = None

    def logged_step(self, stage: Stage) -> dict[str, Any]:
        """A training step of a stage and the evaluations that are due after it; returns the line of the log."""
        logs: dict[str, Any] = {"stage": stage.name} | {f"schedules/{path}": value for path, value in self.timeline.values.items()}
        truncated = self.context.count_truncated()
        with self.meter.step():
            logs |= self.training_step()
        due = bool(self.args.eval_steps) and self.step % self.args.eval_steps == 0
        logs |= self.evaluate() if due else {}
        logs["num_truncated"] = float(self.context.count_truncated() - truncated)
        logs = self.processes.broadcast(logs)  # what follows from a number happens everywhere
        self.timeline.observe(self.step, logs, self.meter.tokens)  # a stage may end by what was just evaluated
        if self.args.eval_steps and not due and self.timeline.finished(self.step):
            logs |= self.evaluate()
        return logs

    def next_step(self) -> TrainingStep:
        """The step that `training_step` would run."""
        return TrainingStep(
            plan=self.step_plan(),
            step=self.step,
            args=self.args,
            context=self.context,
            copies=self.copies,
            annotator=self.annotator,
            meter=self.meter,
        )

    def training_step(self) -> dict[str, Any]:
        """Draws, then updates every learner; returns the logs."""
        self.context.step = self.step
        step = self.next_step()
        skipping = {name: self.timeline.is_skipping(name) for name in step.plan.active if name in self.run_spec.gates}
        for name, skips in skipping.items():
            self.timeline.count_skip(name, skips)
        logs = step.run(skipping)
        self.step += 1
        return logs

    def evaluate(self) -> dict[str, float]:
        """Every evaluation, as {"<name>/<metric>": value}."""
        self.start()
        rollout_engine, logs = DistributedRolloutEngine(self.rollout_engine, self.processes), dict[str, float]()
        for name, evaluation in self.evaluations.items():
            network = self.context.learner(evaluation.learner).network
            metrics = evaluate.run(evaluation, network, rollout_engine, self.args.token_budget, self.context)
            logs |= {f"{name}/{k}": v for k, v in metrics.items()}
        self.evaluated = (self.step, logs)
        for callback in self.callbacks:
            callback.on_evaluate(self, logs)
        return logs

    # -------------------------------------------------------------------------------------------- save and resume

    def save_pretrained(self, folder: str | Path) -> None:
        """One folder per learner, readable by `from_pretrained`, in place of the one that is there. Raises StorageError."""
        for name, runtime in self.learners.items():
            training = training_facts(self, name) if self.args.model_card else None
            self.processes.on_main(partial(export, runtime.full_network(), Path(folder) / name, training))

    def save_checkpoint(self, folder: Path) -> None:
        """Writes a checkpoint of the current step."""
        path = self._state().save(folder, self.step, self.args.save_total_limit)
        for callback in self.callbacks:
            callback.on_save(self, str(path))

    def load_checkpoint(self, path: str | Path) -> None:
        """Restores a checkpoint, of this run or of one that was the same so far: stages that it had not begun may be others."""
        self.start()
        self.processes.on_main(lambda: checkpoint.check(Path(path), self.description, future=False))
        self.step = self._state().load(Path(path))

    @cached_property
    def description(self) -> dict[str, str]:
        """What a resumed run must share with the one that was interrupted, on the main process; elsewhere empty."""
        self._launch()
        if not self.processes.is_main:
            return {}
        return describe(self.run_spec, self.args, rollout=self.rollout_engine, evaluations=self.evaluations)

    def _state(self) -> RunState:
        parts: dict[str, Any] = {"context": self.context, "copies": self.copies, "timeline": self.timeline, "annotator": self.annotator}
        return RunState(description=self.description, **parts)

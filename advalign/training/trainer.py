"""The trainer: sources, adversaries and objectives by name, one mixed step, spelled out.

One step: the sources that active objectives read are drawn (policies sample, rewards score with the discriminator of
now); every learner in turn builds its rows, annotates a draw of rollouts, and makes its updates. Policies that sample come
first and discriminators after, so a reward is never given by a discriminator that has already seen the row.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers.utils import logging as hf_logging

from advalign import data as loading
from advalign.engine.learner import Learner, LearnerRuntime
from advalign.engine.micro import split_groups
from advalign.engine.plan import Plan, formula, plan
from advalign.errors import ConfigError, unknown
from advalign.models import Network, load
from advalign.models.load import frozen as frozen_copy
from advalign.protocols import Adversary, Source, Term
from advalign.rollout.hf import HF
from advalign.training import checkpoint, evaluate
from advalign.training.annotate import annotate_pairs, annotate_rollouts
from advalign.training.context import RunContext
from advalign.training.logs import Bar, Log
from advalign.training.schedule import Ramp, Stage, replaced
from advalign.types import PairRows, RolloutRows


@dataclass(frozen=True, kw_only=True)
class TrainingArguments:
    """`token_budget`: tokens, padding included, of one micro-batch. `measure_every`: gradient norms and cosines per term.
    Names as in transformers where the meaning is the same."""

    max_steps: int = 100
    output_dir: str | None = None
    seed: int = 0
    token_budget: int = 8192
    eval_steps: int = 0
    save_steps: int = 0
    measure_every: int = 0
    mixed_precision: str = "no"


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """A copy of a learner that never trains: a snapshot from the start of the stage that first needs it, or, with `ema`, an
    average of its weights, w <- ema w + (1 - ema) w_learner after each of its steps."""

    of: str = "policy"
    ema: float | None = None


class Trainer:
    """`model` is short for one learner named "policy"; its other fields are then the defaults of `Learner`."""

    def __init__(
        self,
        *,
        model: str | Learner | None = None,
        learners: Mapping[str, Learner] | None = None,
        sources: Mapping[str, Source],
        objectives: Mapping[str, Term],
        adversaries: Mapping[str, Adversary] | None = None,
        frozen: Mapping[str, Frozen] | None = None,
        evaluations: Mapping[str, evaluate.Evaluation] | None = None,
        schedules: Mapping[str, Ramp] | None = None,
        stages: Sequence[Stage] = (),
        rollout: Any = None,
        args: TrainingArguments | None = None,
        callbacks: Sequence[Any] = (),
        networks: Mapping[str, Network] | None = None,
    ) -> None:
        self.args = args or TrainingArguments()
        self.config: dict[str, Any] = {
            "learners": _learners(model, learners),
            "sources": dict(sources),
            "objectives": dict(objectives),
            "adversaries": dict(adversaries or {}),
        }
        self.frozen_config = dict(frozen or {})
        self.evaluations, self.schedules = dict(evaluations or {}), dict(schedules or {})
        self.stages = list(stages) or [Stage(steps=self.args.max_steps, name="train")]
        self.callbacks, self.step = list(callbacks), 0
        self.metric_means: dict[str, float] = {}
        self.engine = rollout or HF()
        for path, ramp in self.schedules.items():
            replaced(self.config, path, ramp.at(0), "schedules")
        self._given = dict(networks or {})
        self._lengths: dict[int, int] = {}  # of stages that ended early
        self._started = False
        self._check()

    # ------------------------------------------------------------------------------------------- before the run

    @property
    def total_steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    @property
    def model(self) -> Network:
        """The first learner's network."""
        self.start()
        return next(iter(self.learners.values())).network

    def plans(self, stage: Stage | None = None, strongest: bool = False) -> dict[str, Plan]:
        """What every learner runs in a stage, at the current step; or with every schedule at the stronger of its ends."""
        config, terms = self._now(stage or self._stage()[0], strongest)
        found = {}
        for name in config["learners"]:
            own = {n: t for n, t in terms.items() if t.learner == name and t.coef != 0}
            found[name] = plan(name, own, config["adversaries"], self.frozen_config)
        return found

    def formula(self) -> str:
        """The losses of every stage, as text."""
        parts = []
        for stage in self.stages:
            updates = {n: learner.updates for n, learner in self._now(stage)[0]["learners"].items()}
            head = f"[{stage.name or 'stage'}: {stage.steps} steps]\n" if len(self.stages) > 1 else ""
            active = [p for p in self.plans(stage, strongest=True).values() if p.terms]
            parts.append(head + formula(active, updates))
        parts += [f"{path} goes from {r.start:.3g} to {r.end:.3g} in {r.steps} steps ({r.kind})" for path, r in self.schedules.items()]
        return "\n".join(parts)

    def _check(self) -> None:
        learners, sources = self.config["learners"], self.config["sources"]
        for name, term in self.config["objectives"].items():
            if term.learner not in learners:
                raise unknown(f"objectives.{name}.learner", "learner", term.learner, learners)
            if term.source not in sources:
                raise unknown(f"objectives.{name}.source", "source", term.source, sources)
            given = sources[term.source].yields
            if term.rows and given not in term.rows:
                wanted = " or ".join(r.__name__ for r in term.rows)
                raise ConfigError(
                    f"objectives.{name}.source: {type(term).__name__} reads {wanted}, but source '{term.source}' yields {given.__name__}."
                )
            if "ref_logprobs" in term.annotations and "reference" not in self.frozen_config:
                raise ConfigError(
                    f"objectives.{name}: {type(term).__name__} compares with the reference; "
                    f"add frozen: {{reference: {{of: {term.learner}}}}}."
                )
        for name, copy in self.frozen_config.items():
            if copy.of not in learners:
                raise unknown(f"frozen.{name}.of", "learner", copy.of, learners)
        for name, source in sources.items():
            for other in source.after:
                if other not in sources:
                    raise unknown(f"sources.{name}", "source", other, sources)
        for path in (*self.schedules, *(path for stage in self.stages for path in stage.set)):
            if path.partition(".")[0] not in ("objectives", "adversaries", "learners"):
                raise ConfigError(f"{path}: only objectives, adversaries and learners can change during a run; a source is started once.")
        for stage in self.stages:
            for name in stage.objectives or ():
                if name not in self.config["objectives"]:
                    raise unknown(f"stages.{stage.name}.objectives", "objective", name, self.config["objectives"])
            self.plans(stage, strongest=True)
        for name, source in sources.items():
            critics = [n for n, learner in learners.items() if self._given.get(n, learner).head == "value"]
            if getattr(getattr(source, "advantage", None), "needs_values", False) and not critics:
                raise ConfigError(
                    f"sources.{name}.advantage: {type(source.advantage).__name__} needs a critic; add a learner with head: value."
                )

    def _stage(self) -> tuple[Stage, int]:
        """The current stage and its first step."""
        number, start = self._place(self.step)
        return self.stages[number], start

    def _place(self, step: int) -> tuple[int, int]:
        """The number of the stage that a step belongs to, and the first step of that stage."""
        start = 0
        for number, stage in enumerate(self.stages):
            length = self._lengths.get(number, stage.steps)
            if step < start + length or number == len(self.stages) - 1:
                return number, start
            start += length
        raise AssertionError("a run without stages")

    def _now(self, stage: Stage, strongest: bool = False) -> tuple[dict[str, Any], dict[str, Term]]:
        """The configuration of this step, with stage settings and schedules applied, and the active terms."""
        config, first = self.config, self._stage()[1]
        for path, value in stage.set.items():
            config = replaced(config, path, value, f"stages.{stage.name}.set")
        for path, ramp in self.schedules.items():
            if ramp.stage is None or ramp.stage == stage.name:
                now = ramp.at(self.step - (first if ramp.stage else 0))
                config = replaced(config, path, max(ramp.start, ramp.end, key=abs) if strongest else now)
        chosen = stage.objectives if stage.objectives is not None else tuple(config["objectives"])
        return config, {n: config["objectives"][n] for n in chosen}

    def start(self) -> None:
        """Load models and start sources. `train` does it; call it to look at the models before."""
        if self._started:
            return
        hf_logging.disable_progress_bar()
        args = self.args
        self.accelerator = Accelerator(mixed_precision=args.mixed_precision)
        self.context = RunContext(args.seed, self.engine, args.token_budget)
        self.learners: dict[str, LearnerRuntime] = {}
        for name, learner in self.config["learners"].items():
            network = self._given.get(name) or _load(name, learner, args.seed)
            self.learners[name] = LearnerRuntime(name, learner, network.to(self.accelerator.device), self.accelerator, self.total_steps)
        self.context.learners = self.learners
        self.frozen: dict[str, Network] = {}
        # Started in order of need, so that a source may take hold of another one.
        for name in _ordered(self.config["sources"]):
            self.context.sources[name] = self.config["sources"][name].start(self.context, name)
        self._check_tokenizers()
        self._started = True

    def _check_tokenizers(self) -> None:
        """Sampled ids are never re-tokenised: whoever trains on a rollout must read the sampler's ids."""
        for name, term in self.config["objectives"].items():
            source = self.config["sources"][term.source]
            if source.yields is RolloutRows and term.learner != source.learner:
                mine, theirs = (self.learners[n].network.encoder.tokenizer.get_vocab() for n in (term.learner, source.learner))
                if mine != theirs:
                    raise ConfigError(
                        f"objectives.{name}: learner '{term.learner}' and the sampler '{source.learner}' have different tokenizers; "
                        "rollouts are never re-tokenised, so they must share one."
                    )

    # ------------------------------------------------------------------------------------------------ the run

    def train(self, resume: bool = False, progress: bool = True) -> list[dict[str, Any]]:
        """Run every stage. `resume` continues from the newest checkpoint in output_dir, or starts where there is none.
        Returns the log, one dictionary per step."""
        self.start()
        folder = Path(self.args.output_dir) if self.args.output_dir else None
        if resume and folder is None:
            raise ConfigError("args.output_dir: none given, so there is nothing to resume from; set it to the folder of the run.")
        newest = checkpoint.latest(folder) if folder is not None and resume else None
        if folder is not None and newest is None:
            _clear(folder)
        if newest is not None:
            self.load_checkpoint(newest)
        log = Log(folder, self.step) if folder is not None else None
        history: list[dict[str, Any]] = []
        with Bar(self.total_steps, self.step, "", enabled=progress) as bar:
            while not self._finished():
                stage, _ = self._stage()
                logs: dict[str, Any] = {"stage": stage.name} | self.training_step()
                self._maybe_end_stage(stage, logs)
                if self.args.eval_steps and (self.step % self.args.eval_steps == 0 or self._finished()):
                    logs |= self.evaluate()
                history.append({"step": self.step, **logs})
                if log is not None:
                    log.write(self.step, logs)
                bar.step(self.step, stage.name, logs)
                for callback in self.callbacks:
                    callback.on_step(self, logs)
                if folder is not None and self.args.save_steps and self.step % self.args.save_steps == 0:
                    self.save_checkpoint(folder)
        if log is not None and folder is not None:
            log.close()
            self.save_pretrained(folder)
        return history

    def training_step(self) -> dict[str, float]:
        """Draw, then update every learner; policies before the discriminators that judge them."""
        plans = {name: p for name, p in self.plans().items() if p.terms}
        config, terms = self._now(self._stage()[0])
        self._freeze(plans, terms.values())
        self.context.items = {}
        logs: dict[str, float] = {}
        for name in _ordered({s: config["sources"][s] for p in plans.values() for s in p.sources}):
            if config["sources"][name].yields is RolloutRows:
                self._items(name, 0)
                logs |= {f"{name}/{k}": v for k, v in self.context.sources[name].logs.items()}
        annotated: dict[str, Any] = {}
        for name, p in plans.items():
            for repeat in range(config["learners"][name].updates):
                rows = {s: self._rows(s, name, repeat, p, config, annotated) for s in p.sources}
                logs |= self._updates(name, p, rows, config["learners"][name], repeat)
            self._average(name)
            self.learners[name].scheduler.step()
        self.step += 1
        return logs

    def _items(self, source: str, repeat: int) -> Any:
        if source not in self.context.items or (repeat and self.config["sources"][source].yields is not RolloutRows):
            self.context.items[source] = self.context.sources[source].draw(self.step, repeat)
        return self.context.items[source]

    def _rows(self, source: str, learner: str, repeat: int, p: Plan, config: Mapping[str, Any], annotated: dict[str, Any]) -> Any:
        if source in annotated and config["sources"][source].yields is RolloutRows:
            return annotated[source]
        rows = self.context.sources[source].rows(self._items(source, repeat), self.learners[learner].network.encoder)
        readers = [t for t in self._now(self._stage()[0])[1].values() if t.source == source]
        needed = {a for t in readers for a in t.annotations}
        users = {t.learner: config["learners"][t.learner] for t in readers if "old_logprobs" in t.annotations}
        sampler = getattr(config["sources"][source], "learner", None)
        if all(name == sampler and spec.updates * spec.minibatches * spec.epochs == 1 for name, spec in users.items()):
            needed -= {"old_logprobs"}  # one update per draw, of the sampler itself: the ratio is exactly 1
        if isinstance(rows, RolloutRows):
            critics = [runtime.network for runtime in self.learners.values() if runtime.network.head == "value"]
            rows = annotated[source] = annotate_rollouts(
                rows,
                needed,
                policy=self.learners[config["sources"][source].learner].network,
                reference=self.frozen.get("reference"),
                critic=critics[0] if critics else None,
                advantage=config["sources"][source].advantage,
                all_reduce=lambda x: self.accelerator.reduce(x, reduction="sum"),
                budget=self.args.token_budget,
            )
        elif isinstance(rows, PairRows):
            rows = annotate_pairs(rows, needed, reference=self.frozen.get("reference"), budget=self.args.token_budget)
        return rows

    def _updates(self, name: str, p: Plan, rows: Mapping[str, Any], spec: Learner, repeat: int) -> dict[str, float]:
        means: dict[str, list[float]] = {}
        self.learners[name].set_learning_rate(spec.learning_rate)
        measure = bool(self.args.measure_every) and self.step % self.args.measure_every == 0
        for epoch in range(spec.epochs):
            splits = {s: split_groups(r, spec.minibatches) for s, r in rows.items()}
            for number in range(spec.minibatches):
                chosen = {s: r.index(splits[s][number]) for s, r in rows.items() if len(splits[s][number])}
                key = (self.args.seed, "update", name, self.step, repeat, epoch, number)
                logs = self.learners[name].update(p, chosen, self.frozen, budget=self.args.token_budget, key=key, measure=measure)
                for k, v in logs.items():
                    means.setdefault(k, []).append(v)
        return {k: sum(v) / len(v) for k, v in means.items()}

    # --------------------------------------------------------------------------------------------- frozen copies

    def _freeze(self, plans: Mapping[str, Plan], terms: Any) -> None:
        wanted = {v for p in plans.values() for component in p.components for v in component if v in self.frozen_config}
        if any("ref_logprobs" in t.annotations for t in terms):
            wanted.add("reference")
        wanted |= {n for n, f in self.frozen_config.items() if f.ema is not None}
        for name in sorted(wanted - set(self.frozen)):
            self.frozen[name] = frozen_copy(self.learners[self.frozen_config[name].of].network)

    @torch.no_grad()
    def _average(self, learner: str) -> None:
        for name, copy in self.frozen_config.items():
            if copy.of == learner and copy.ema is not None:
                pairs = zip(self.frozen[name].parameters(), self.learners[learner].network.parameters(), strict=True)
                for mean, now in pairs:
                    mean.lerp_(now.detach(), 1 - copy.ema)

    # --------------------------------------------------------------------------------------------------- stages

    def _finished(self) -> bool:
        return self.step >= sum(self._lengths.get(i, s.steps) for i, s in enumerate(self.stages))

    def _maybe_end_stage(self, stage: Stage, logs: Mapping[str, Any]) -> None:
        until = stage.until
        if until is None or until.metric not in logs:
            return
        number, first = self._place(self.step - 1)
        key = f"{number}/{until.metric}"
        mean = until.smoothing * self.metric_means.get(key, logs[until.metric]) + (1 - until.smoothing) * logs[until.metric]
        self.metric_means[key] = mean
        if self.step - first >= until.after and until.met(mean):
            self._lengths[number] = self.step - first

    # ------------------------------------------------------------------------------------- evaluate, save, resume

    def evaluate(self) -> dict[str, float]:
        """Every evaluation, as {"<name>/<metric>": value}."""
        self.start()
        logs: dict[str, float] = {}
        for name, evaluation in self.evaluations.items():
            network = self.context.learner(evaluation.learner).network
            logs |= {f"{name}/{k}": v for k, v in evaluate.run(evaluation, network, self.engine, self.args.token_budget).items()}
        for callback in self.callbacks:
            callback.on_evaluate(self, logs)
        return logs

    def save_pretrained(self, folder: str | Path) -> None:
        """One folder per learner, readable by `from_pretrained`."""
        for name, runtime in self.learners.items():
            runtime.network.save_pretrained(Path(folder) / name)

    def save_checkpoint(self, folder: Path) -> None:
        networks = {f"learner.{n}": r.network for n, r in self.learners.items()} | {f"frozen.{n}": f for n, f in self.frozen.items()}
        state = {
            "config": self._described(),
            "step": self.step,
            "lengths": dict(self._lengths),
            "metric_means": dict(self.metric_means),
            "learners": {n: r.state_dict() for n, r in self.learners.items()},
            "sources": {n: s.state_dict() for n, s in self.context.sources.items()},
            "random": torch.get_rng_state(),
        }
        path = checkpoint.save(folder, self.step, networks, state)
        for callback in self.callbacks:
            callback.on_save(self, str(path))

    def _described(self) -> dict[str, str]:
        """What a resumed run must share with the one that was interrupted. Lengths of stages may grow."""
        more = {"frozen": self.frozen_config, "schedules": self.schedules, "args": {"seed": self.args.seed}}
        return checkpoint.described(self.config | more)

    def load_checkpoint(self, path: Path) -> None:
        """Continue as if never stopped."""
        self.start()
        state = checkpoint.read_state(path)
        checkpoint.check_same(path, state["config"], self._described())
        self.step, self._lengths, self.metric_means = state["step"], state["lengths"], state["metric_means"]
        for name, runtime in self.learners.items():
            checkpoint.read_network(path, f"learner.{name}", runtime.network)
            runtime.load_state_dict(state["learners"][name])
        for name, copy in self.frozen_config.items():
            if (path / f"frozen.{name}.safetensors").exists():
                self.frozen[name] = frozen_copy(self.learners[copy.of].network)
                checkpoint.read_network(path, f"frozen.{name}", self.frozen[name])
        for name, source in self.context.sources.items():
            source.load_state_dict(state["sources"][name])
        torch.set_rng_state(state["random"])


def _learners(model: str | Learner | None, learners: Mapping[str, Learner] | None) -> dict[str, Learner]:
    if (model is None) == (learners is None):
        raise ConfigError("Trainer: give either model or learners.")
    if model is not None:
        return {"policy": model if isinstance(model, Learner) else Learner(model=model)}
    return dict(learners or {})


def _load(name: str, learner: Learner, seed: int) -> Network:
    texts: list[str] = []
    if isinstance(learner.tokenizer, Mapping):
        if "data" not in learner.tokenizer:
            raise ConfigError(f"learners.{name}.tokenizer: a tokenizer from scratch needs data (a task or a file) to be built from.")
        texts = loading.texts(learner.tokenizer["data"])
    options = {"seed": seed, **learner.options}
    return load(
        learner.model,
        head=learner.head,
        tokenizer=learner.tokenizer,
        texts=texts,
        max_length=learner.max_length,
        dtype=learner.dtype,
        options=options,
    )


def _ordered(sources: Mapping[str, Source]) -> list[str]:
    """Names such that every source comes after those it looks at."""
    done: list[str] = []

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise ConfigError(f"sources.{name}: it waits for itself ({' -> '.join((*path, name))}).")
        for other in sources[name].after:
            if other in sources:
                visit(other, (*path, name))
        if name not in done:
            done.append(name)

    for name in sources:
        visit(name, ())
    return done


def _clear(folder: Path) -> None:
    """A fresh run does not continue another one's checkpoints."""
    for old in checkpoint.found(folder):
        shutil.rmtree(old)
    (folder / "log.jsonl").unlink(missing_ok=True)

"""What a run is, before anything is loaded: its parts by name, what every stage activates, and what is refused at start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from advalign.engine.learner import Learner
from advalign.engine.plan import Plan, formula, plan
from advalign.errors import ConfigError, unknown
from advalign.interfaces import Objective, Source
from advalign.models.specification import HEADS
from advalign.training.schedule import Follow, Gate, Ramp, Stage, replaced

MOVING = ("objectives", "adversaries", "learners")  # what a stage or a schedule may change; a source is started once

DISTRIBUTED = ("auto", "ddp", "fsdp")

# What a forward can give, by the head that gives it.
HEAD_OF = {
    "logprobs": "policy", "entropy": "policy", "distribution": "policy", "values": "value", "class_logits": "classifier",
    "scores": "score", "token_scores": "score", "score_gradients": "score", "reader": "score",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainingArguments:
    """`token_budget`: tokens of one micro-batch, padding included where rows are not packed. `measure_every`: gradient norms and cosines
    per term.
    `distributed`: what several processes do, `ddp` (each holds all weights) or `fsdp` (each a slice of them); `auto` is what `accelerate`
    was configured for. Names as in transformers where the meaning is the same."""

    max_steps: int = 100
    output_dir: str | None = None
    seed: int = 0
    token_budget: int = 8192
    eval_steps: int = 0
    save_steps: int = 0
    measure_every: int = 0
    mixed_precision: str = "no"
    distributed: str = "auto"

    def __post_init__(self) -> None:
        if self.distributed not in DISTRIBUTED:
            raise unknown("args.distributed", "way to use several processes", self.distributed, DISTRIBUTED)


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """A copy of a learner that never trains: a snapshot from the start of the stage that first needs it, with `refresh` taken anew
    every so many steps of the run (a previous iterate), or, with `ema`, an average of its weights, w <- ema w + (1 - ema) w_learner
    after each of its steps."""

    learner: str = "policy"
    ema: float | None = None
    refresh: int | None = None

    def __post_init__(self) -> None:
        if self.ema is not None and self.refresh is not None:
            raise ConfigError("frozen: a copy is an average (ema) or a snapshot that is taken anew (refresh), not both.")
        if self.refresh is not None and self.refresh < 1:
            raise ConfigError(f"frozen: refresh is {self.refresh}; it must be at least 1 step.")


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """`config`: {"learners" | "sources" | "objectives" | "adversaries": {name: object}}."""

    config: Mapping[str, Mapping[str, Any]]
    frozen: Mapping[str, Frozen]
    schedules: Mapping[str, Ramp | Follow]
    stages: Sequence[Stage]
    gates: Mapping[str, Gate] = field(default_factory=dict)

    def active_config(
        self, stage: Stage, step: int, first: int, strongest: bool = False, values: Mapping[str, float] | None = None
    ) -> tuple[dict[str, Any], dict[str, Objective]]:
        """The configuration of a step of a stage that began at `first`, and the active terms: stage settings and schedules
        are applied; `strongest` takes every schedule at the larger of its ends; `values`: those that follow a metric."""
        config = dict(self.config)
        for path, value in stage.set.items():
            config = replaced(config, path, value, f"stages.{stage.name}.set")
        for path, ramp in self.schedules.items():
            if ramp.stage is None or ramp.stage == stage.name:
                value = (values or {}).get(path, ramp.at(step - (first if ramp.stage else 0)))
                config = replaced(config, path, max(ramp.start, ramp.end, key=abs) if strongest else value)
        chosen = stage.objectives if stage.objectives is not None else tuple(config["objectives"])
        return config, {n: config["objectives"][n] for n in chosen}

    def plans(
        self, stage: Stage, step: int = 0, first: int = 0, strongest: bool = False, values: Mapping[str, float] | None = None
    ) -> dict[str, Plan]:
        """What every learner runs. Terms of coefficient 0 are left out, and (unless `strongest`) what skips_update in this step."""
        config, terms = self.active_config(stage, step, first, strongest, values)
        found = {}
        for name, learner in config["learners"].items():
            own = {n: t for n, t in terms.items() if t.learner == name and t.coef != 0}
            if not strongest:
                own = {n: t for n, t in own.items() if (step - first) % (learner.every * t.interval) == 0}
            found[name] = plan(name, own, config["adversaries"], self.frozen)
        return found

    def formula(self) -> str:
        """The losses of every stage, as text."""
        parts = []
        for stage in self.stages:
            updates = {n: learner.updates for n, learner in self.active_config(stage, 0, 0)[0]["learners"].items()}
            head = f"[{stage.name or 'stage'}: {stage.steps} steps]\n" if len(self.stages) > 1 else ""
            active = [p for p in self.plans(stage, strongest=True).values() if p.terms]
            parts.append(head + formula(active, updates))
        parts += [f"{path} {schedule}" for path, schedule in self.schedules.items()]
        return "\n".join(parts)

    def notes(self) -> list[str]:
        """What is allowed and yet probably not meant, one sentence each."""
        found = []
        trained = {t.learner for t in self.config["objectives"].values()}
        for name, source in self.config["sources"].items():
            named = {r.scoring_learner for r in source.reward_parts if r.scoring_learner is not None}
            discriminators = {self.frozen[j].learner if j in self.frozen and self.frozen[j].ema is not None else j for j in named}
            advantage = source.advantage_estimator
            if discriminators & trained and advantage is not None and advantage.amplifies_noise:
                found.append(
                    f"sources.{name}.advantage divides by the spread of a reward that trains: near the fixed point that spread is the "
                    "discriminator's error; consider scale: none, or a floor near 1."
                )
            if source.steps_ahead:
                found += self._notes_ahead(name)
        return found

    def _notes_ahead(self, name: str) -> list[str]:
        """Of a source whose rollouts are sampled by weights of earlier steps."""
        found = [f"sources.{name}.ahead: what is sampled ahead is in no checkpoint, so a resumed run does not end with the same bits."]
        steps = self.config["sources"][name].steps_ahead
        for term, objective in self.config["objectives"].items():
            if objective.source == name and objective.assumes_current_sampler:
                found.append(
                    f"objectives.{term}.correction: its rollouts were sampled by weights of up to {steps} steps "
                    "before; use correction: {level: token, mode: truncate, high: 2.0}."
                )
        return found

    # ------------------------------------------------------------------------------------------ refused at start

    def check(self, heads: Mapping[str, str]) -> None:
        """Raises ConfigError. `heads`: {learner: what its network ends in}."""
        for name, head in heads.items():
            if head not in HEADS:
                raise unknown(f"learners.{name}.head", "head", head, HEADS)
        for path, ramp in self.schedules.items():
            replaced(self.config, path, ramp.at(0), "schedules")
        for name, term in self.config["objectives"].items():
            self._check_term(name, term)
            self._check_head(name, term, heads)
        for name, copy in self.frozen.items():
            if copy.learner not in self.config["learners"]:
                raise unknown(f"frozen.{name}.learner", "learner", copy.learner, self.config["learners"])
        for name in self.gates:
            if name not in self.config["learners"]:
                raise unknown("gates", "learner", name, self.config["learners"])
        for name, source in self.config["sources"].items():
            self._check_source(name, source, heads)
            self._check_discriminators(name, source, heads)
            self._check_players(name, source, heads)
        for path in (*self.schedules, *(path for stage in self.stages for path in stage.set)):
            if path.partition(".")[0] not in MOVING:
                raise ConfigError(f"{path}: only objectives, adversaries and learners can change during a run; a source is started once.")
        for stage in self.stages:
            for name in stage.objectives or ():
                if name not in self.config["objectives"]:
                    raise unknown(f"stages.{stage.name}.objectives", "objective", name, self.config["objectives"])
            self.plans(stage, strongest=True)

    def _check_term(self, name: str, term: Objective) -> None:
        learners, sources = self.config["learners"], self.config["sources"]
        if term.learner not in learners:
            raise unknown(f"objectives.{name}.learner", "learner", term.learner, learners)
        if term.source not in sources:
            raise unknown(f"objectives.{name}.source", "source", term.source, sources)
        given = sources[term.source].row_type
        if term.row_types and given not in term.row_types:
            wanted = " or ".join(r.__name__ for r in term.row_types)
            raise ConfigError(
                f"objectives.{name}.source: {type(term).__name__} reads {wanted}, but source '{term.source}' builds {given.__name__}."
            )
        if "ref_logprobs" in term.columns and "reference" not in self.frozen:
            raise ConfigError(
                f"objectives.{name}: {type(term).__name__} compares with the reference; add frozen: {{reference: {{learner: {term.learner}}}}}."
            )

    def _check_head(self, name: str, term: Objective, heads: Mapping[str, str]) -> None:
        for view, needs in term.reads.items():
            owner = self.frozen[view].learner if view in self.frozen else term.learner
            wanted = {HEAD_OF[need] for need in needs if need in HEAD_OF}  # hidden states: any head
            if wanted - {heads.get(owner)}:
                needed = ", ".join(sorted(wanted))
                raise ConfigError(
                    f"objectives.{name}: {type(term).__name__} reads a model with head '{needed}', but learner '{owner}' "
                    f"has head '{heads.get(owner)}'."
                )

    def _check_source(self, name: str, source: Source, heads: Mapping[str, str]) -> None:
        for other in source.depends_on:
            if other not in self.config["sources"]:
                raise unknown(f"sources.{name}", "source", other, self.config["sources"])
        if source.reward_penalty is not None and "reference" not in self.frozen:
            raise ConfigError(
                f"sources.{name}.kl: a KL penalty compares with the reference; add frozen: {{reference: {{learner: {source.samples_with}}}}}."
            )
        advantage = source.advantage_estimator
        if advantage is None:
            return
        if advantage.compares and source.request is not None and source.request.responses_per_prompt < 2:
            raise ConfigError(
                f"sources.{name}.group_size: {type(advantage).__name__} compares the responses of one prompt, and 1 response has "
                "nothing to compare with; sample at least 2."
            )
        if advantage.needs_values and "value" not in heads.values():
            raise ConfigError(f"sources.{name}.advantage: {type(advantage).__name__} needs a critic; add a learner with head: value.")

    def _check_players(self, name: str, source: Source, heads: Mapping[str, str]) -> None:
        """Who writes responses for a source is a learner, or a frozen copy of one, that can."""
        known = {**heads, **{copy: heads.get(spec.learner, "") for copy, spec in self.frozen.items()}}
        for place, player in source.players:
            if player not in known:
                raise unknown(f"sources.{name}.{place}", "learner", player, known)
            if known[player] != "policy":
                raise ConfigError(f"sources.{name}.{place}: '{player}' has head '{known[player]}', and who samples needs head: policy.")

    def _check_discriminators(self, name: str, source: Source, heads: Mapping[str, str]) -> None:
        """Rewards that a learner gives need that learner, or a frozen copy of it, with a score."""
        known = {**heads, **{copy: heads.get(spec.learner, "") for copy, spec in self.frozen.items()}}
        for number, reward in enumerate(source.reward_parts):
            scorer = reward.scoring_learner
            if scorer is None:
                continue
            if scorer not in known:
                raise unknown(f"sources.{name}.rewards.{number}.learner", "learner", scorer, known)
            if known[scorer] != "score":
                raise ConfigError(
                    f"sources.{name}.rewards.{number}.learner: '{scorer}' has head '{known[scorer]}', and a reward needs head: score."
                )


def learners_of(model: str | Learner | None, learners: Mapping[str, Learner] | None) -> dict[str, Learner]:
    if (model is None) == (learners is None):
        raise ConfigError("Trainer: give either model or learners.")
    if model is not None:
        return {"policy": model if isinstance(model, Learner) else Learner(model=model)}
    return dict(learners or {})


def ordered(sources: Mapping[str, Source]) -> list[str]:
    """Names such that every source comes after those it looks at."""
    done: list[str] = []

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise ConfigError(f"sources.{name}: it waits for itself ({' -> '.join((*path, name))}).")
        for other in sources[name].depends_on:
            if other in sources:
                visit(other, (*path, name))
        if name not in done:
            done.append(name)

    for name in sources:
        visit(name, ())
    return done

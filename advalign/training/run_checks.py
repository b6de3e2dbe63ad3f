"""What is refused before anything is loaded, and notes on what is allowed and yet probably not meant."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from advalign import data
from advalign.errors import ConfigError, unknown
from advalign.interfaces import Objective, Source
from advalign.models.specification import HEADS, OPTIONS
from advalign.run_folder import check_name
from advalign.training.metric_names import check_metrics
from advalign.training.run_meaning import check_meaning
from advalign.training.run_names import check_names
from advalign.training.run_spec import REFERENCE, RunSpec, TrainingArguments
from advalign.types import RolloutRows

FILE_NAMES = re.compile(r"checkpoint-\d+|tensorboard|run\.json|log\.jsonl|speed\.jsonl", re.IGNORECASE)
"""What a run writes to its output folder beside the folders of its learners."""

HEAD_OF = {
    "logprobs": "policy", "entropy": "policy", "distribution": "policy", "values": "value", "class_logits": "classifier",
    "scores": "score", "token_scores": "score", "score_gradients": "score", "reader": "score",
}  # fmt: skip
"""{output: the head that gives it}"""


def check(
    spec: RunSpec, evaluations: Mapping[str, Any], heads: Mapping[str, str], args: TrainingArguments, *, callbacks: bool = False
) -> None:
    """Raises ConfigError for a run that cannot work. `heads`: {learner: the head of its network}; `callbacks`: there are some."""
    for name, head in heads.items():
        if head not in HEADS:
            raise unknown(f"learners.{name}.head", "head", head, HEADS)
    if not spec.config["objectives"]:
        raise ConfigError("objectives: none given, so no learner would be trained; give at least one.")
    _check_file_names("learners", spec.config["learners"])
    _check_file_names("frozen", spec.frozen)
    for name, learner in spec.config["learners"].items():
        if unread := [option for option in learner.options if option not in OPTIONS]:
            raise unknown(f"learners.{name}.options", "option", unread[0], OPTIONS)
    check_names(spec, evaluations, heads)
    for name, objective in spec.config["objectives"].items():
        _check_objective(spec, name, objective)
        _check_head(spec, name, objective, heads)
    for name, source in spec.config["sources"].items():
        _check_source(spec, name, source, heads)
    for stage in spec.stages:
        spec.step_plan(stage, strongest=True)
    check_metrics(spec, evaluations, args, callbacks=callbacks)
    check_meaning(spec)


def _check_file_names(section: str, names: Iterable[str]) -> None:
    """Files of the output folder are named after learners and frozen copies."""
    seen: dict[str, str] = {}
    for name in names:
        check_name(name, section)
        if FILE_NAMES.fullmatch(name):
            raise ConfigError(f"{section}.{name}: the run itself writes '{name}' to its output folder; give another name.")
        if seen.setdefault(name.lower(), name) != name:
            raise ConfigError(
                f"{section}.{name}: '{seen[name.lower()]}' differs from it in capitals alone; give names that differ in more."
            )


def _check_objective(spec: RunSpec, name: str, objective: Objective) -> None:
    kind, row_type = type(objective).__name__, spec.config["sources"][objective.source].row_type
    if objective.row_types and row_type not in objective.row_types:
        readable = " or ".join(cls.__name__ for cls in objective.row_types)
        raise ConfigError(f"objectives.{name}.source: {kind} reads {readable}, but source '{objective.source}' builds {row_type.__name__}.")
    if "ref_logprobs" in objective.columns and spec.reference is None:
        raise ConfigError(
            f"objectives.{name}: {kind} compares with the reference; add frozen: {{{REFERENCE}: {{learner: {objective.learner}}}}}."
        )


def _check_head(spec: RunSpec, name: str, objective: Objective, heads: Mapping[str, str]) -> None:
    """The outputs an objective reads are those of the head of the learner it reads them from."""
    for view, needs in objective.reads.items():
        owner = spec.frozen[view].learner if view in spec.frozen else objective.learner
        needed = {HEAD_OF[need] for need in needs if need in HEAD_OF}  # hidden states: any head
        if needed - {heads.get(owner)}:
            raise ConfigError(
                f"objectives.{name}: {type(objective).__name__} reads a model with head '{', '.join(sorted(needed))}', but learner "
                f"'{owner}' has head '{heads.get(owner)}'."
            )


def _check_source(spec: RunSpec, name: str, source: Source, heads: Mapping[str, str]) -> None:
    for other in source.depends_on:
        if other not in spec.config["sources"]:  # of a source that does not declare it on a field
            raise unknown(f"sources.{name}", "source", other, spec.config["sources"])
    greedy = source.request is not None and source.request.sampling.temperature == 0
    if greedy and source.row_type is RolloutRows:
        raise ConfigError(
            f"sources.{name}.sampling.temperature: 0 given, and greedy responses to a prompt are all the same, so training on them "
            "compares nothing; give a temperature above 0 (1.0)."
        )
    if source.reward_penalty is not None and spec.reference is None:
        raise ConfigError(
            f"sources.{name}.kl: a KL penalty compares with the reference; add frozen: {{{REFERENCE}: {{learner: {source.samples_with}}}}}."
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


# ------------------------------------------------------------------------------------------------------- notes


def notes(spec: RunSpec) -> list[str]:
    """What is allowed and yet probably not meant, one sentence each."""
    sentences = []
    trained = {objective.learner for objective in spec.config["objectives"].values()}
    for name in sorted(trained & spec.config["learners"].keys()):
        if spec.config["learners"][name].dtype == "float16":
            sentences.append(
                f"learners.{name}.dtype: losses are not scaled, so gradients below 6e-8 are zero in float16; use bfloat16, or float32 with "
                "args.mixed_precision: bf16."
            )
    for name, source in spec.config["sources"].items():
        scorers = {r.scoring_learner for r in source.reward_parts if r.scoring_learner is not None}
        averages = {n for n in scorers if n in spec.frozen and spec.frozen[n].ema is not None}
        discriminators = (scorers - averages) | {spec.frozen[n].learner for n in averages}
        advantage = source.advantage_estimator
        if discriminators & trained and advantage is not None and advantage.amplifies_noise:
            sentences.append(
                f"sources.{name}.advantage divides by the spread of a reward that trains: near the fixed point that spread is the "
                "discriminator's error; consider scale: none, or a floor near 1."
            )
        if source.steps_ahead:
            sentences += _notes_ahead(spec, name, source.steps_ahead)
    return sentences


def notes_on_shared_data(sources: Mapping[str, Source], evaluations: Mapping[str, tuple[Any, str]]) -> list[str]:
    """A note for every evaluation whose data a source trains on. `evaluations`: {name: (reference, split)}."""
    sentences = []
    for name, (reference, split) in evaluations.items():
        for source_name, source in sources.items():
            if source.training_data is None:
                continue
            shared = data.same_rows(*source.training_data, reference, split)
            if shared is not None:
                sentences.append(
                    f"evaluations.{name}.data reads the rows that sources.{source_name} trains on ({shared}): its numbers are not "
                    "held out; give a path with {split}, or another file."
                )
    return sentences


def _notes_ahead(spec: RunSpec, name: str, steps: int) -> list[str]:
    """Notes on a source whose rollouts are sampled by weights of earlier steps."""
    sentences = [f"sources.{name}.ahead: what is sampled ahead is in no checkpoint, so a resumed run does not end with the same bits."]
    for objective_name, objective in spec.config["objectives"].items():
        if objective.source == name and objective.assumes_current_sampler:
            sentences.append(
                f"objectives.{objective_name}.correction: its rollouts were sampled by weights of up to {steps} steps "
                "before; use correction: {level: token, mode: truncate, high: 2.0}."
            )
    return sentences

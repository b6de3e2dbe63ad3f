"""Which frozen copy the reference log-probabilities of a learner are of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from advalign.interfaces import Objective, Source
from advalign.training.run_spec import REFERENCE, Frozen


def references_of(frozen: Mapping[str, Frozen], config: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """{learner, or sampler with a KL penalty: the frozen copy that its reference log-probabilities are of}; empty without a reference.

    The copy named `reference` is that of the learner it is a copy of. Every other learner has one of its own, `reference_<learner>`,
    which moves as `reference` does. Where `reference` is a copy of a learner that no objective trains, all learners share it.
    """
    if REFERENCE not in frozen:
        return {}
    objectives: list[Objective] = list(config["objectives"].values())
    sources: list[Source] = list(config["sources"].values())
    owner = frozen[REFERENCE].learner
    shared = owner not in {objective.learner for objective in objectives}
    names = [objective.learner for objective in objectives if reads_reference(objective)]
    names += [source.samples_with for source in sources if source.reward_penalty is not None and source.samples_with is not None]
    learners = {name: frozen[name].learner if name in frozen else name for name in names}
    return {name: REFERENCE if shared or learner == owner else f"{REFERENCE}_{learner}" for name, learner in learners.items()}


def with_references(frozen: Mapping[str, Frozen], config: Mapping[str, Mapping[str, Any]]) -> dict[str, Frozen]:
    """The frozen copies of a run, completed by those of `references_of`; one that is given under such a name stays as it is."""
    derived = {}
    for name, reference in references_of(frozen, config).items():
        if reference not in frozen:
            derived[reference] = replace(frozen[REFERENCE], learner=frozen[name].learner if name in frozen else name)
    return {**frozen, **derived}


def reads_reference(objective: Objective) -> bool:
    """Whether an objective reads a column that is computed with the reference."""
    return bool({"ref_logprobs", "anchor"} & set(objective.columns))


__all__ = ["reads_reference", "references_of", "with_references"]

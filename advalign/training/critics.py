"""Which critic the values of a source are of."""

from __future__ import annotations

from collections.abc import Mapping

from advalign.errors import ConfigError
from advalign.training.run_spec import RunSpec


def critics_of(spec: RunSpec, heads: Mapping[str, str]) -> dict[str, str]:
    """{source whose values are read: the learner with head `value` that they are of}. `heads`: {learner: the head of its network}.

    It is the critic that is trained on the source; else the one that is trained on what the same policy samples; else the only one.
    Raises ConfigError where there are several.
    """
    sources, objectives = spec.config["sources"], spec.config["objectives"].values()
    critics = [name for name, head in heads.items() if head == "value"]
    chosen: dict[str, str] = {}
    for name, source in sources.items():
        advantage = source.advantage_estimator
        reads_values = advantage is not None and advantage.needs_values
        if not critics or not (reads_values or any(o.source == name and "values" in o.columns for o in objectives)):
            continue
        trained_on = {critic: {o.source for o in objectives if o.learner == critic} for critic in critics}
        on_source = [critic for critic in critics if name in trained_on[critic]]
        siblings = {s for s, other in sources.items() if source.samples_with and other.samples_with == source.samples_with}
        candidates = on_source or [critic for critic in critics if trained_on[critic] & siblings] or critics
        if len(candidates) > 1:
            raise ConfigError(
                f"sources.{name}.advantage: its values may be those of learners {', '.join(candidates)}; train one critic on "
                f"'{name}' (an objective with source: {name}), so that it is known which."
            )
        chosen[name] = candidates[0]
    return chosen

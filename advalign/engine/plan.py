"""What a learner's sum of objectives needs, decided before the run: views, outputs, forwards. Mixes that cannot work are refused here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from advalign.errors import ConfigError, unknown
from advalign.interfaces import Adversary, Objective
from advalign.plugins import kind_of
from advalign.types import NEEDS

CLEAN = "clean"
"""The view of unperturbed rows under the learner's current weights."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one learner runs in one update."""

    learner: str
    """Its name."""
    objectives: Mapping[str, Objective]
    """{name: objective} of its loss."""
    adversaries: Mapping[str, Adversary]
    """{view: adversary} of the views that its objectives read."""
    frozen: frozenset[str]
    """Names of all frozen copies of the run."""
    components: tuple[tuple[str, ...], ...]
    """Views whose graphs must live together; each component has its own backward."""

    @property
    def sources(self) -> tuple[str, ...]:
        """Sources that its objectives read."""
        return tuple(dict.fromkeys(objective.source for objective in self.objectives.values()))

    @property
    def inner_objectives(self) -> dict[str, Objective]:
        """{"<view>.inner": the inner objective of its adversary}."""
        return {f"{view}.inner": a.inner for view, a in self.adversaries.items() if a.inner is not None}

    @property
    def needs_input_gradients(self) -> bool:
        """Whether some objective reads gradients of scores, which are computed in padded rows."""
        return any("score_gradients" in needs for o in self.objectives.values() for needs in o.reads.values())

    @property
    def unedited_sources(self) -> frozenset[str]:
        """Sources whose rows no adversary edits: what their rows have in common is run once."""
        return frozenset(self.sources) - {s for view in self.adversaries for s in self.readers(view)}

    @property
    def whole_groups(self) -> frozenset[str]:
        """Sources whose groups must not be split over micro-batches."""
        shared = {s for view, a in self.adversaries.items() if a.threat.share == "group" for s in self.readers(view)}
        return frozenset(shared | {o.source for o in self.objectives.values() if o.bundle == "group"})

    def objectives_on(self, view: str) -> dict[str, Objective]:
        """The objectives evaluated on this view."""
        return {name: objective for name, objective in self.objectives.items() if objective.view == view}

    def objectives_of(self, component: tuple[str, ...]) -> dict[str, Objective]:
        """The objectives that read views of this component."""
        return {name: objective for name, objective in self.objectives.items() if set(objective.reads) <= set(component)}

    def readers(self, view: str) -> tuple[str, ...]:
        """Sources whose rows this view must run."""
        return tuple(dict.fromkeys(objective.source for objective in self._readers(view)))

    def needs(self, view: str) -> frozenset[str]:
        """Outputs that this view must give."""
        return frozenset().union(*(objective.reads[view] for objective in self._readers(view)))

    def _readers(self, view: str) -> list[Objective]:
        """Objectives that read this view, inner objectives included: their own adversary's, or another one they compare it with."""
        return [o for o in (*self.objectives.values(), *self.inner_objectives.values()) if view in o.reads]

    def forwards(self) -> dict[str, int]:
        """Forwards per micro-batch that holds rows of every view: {"clean": 1, "inner": K, "adversarial": A, "frozen": F}."""
        views = [view for component in self.components for view in component]
        passes = [count_passes(self.adversaries[v]) for v in views if v in self.adversaries]
        return {
            "clean": views.count(CLEAN),
            "inner": sum(inner for inner, _ in passes),
            "adversarial": sum(final for _, final in passes),
            "frozen": len([v for v in views if v in self.frozen]),
        }

    def separate_forwards(self) -> int:
        """Forwards of the same objectives, each run by a trainer of its own."""
        total = 0
        for objective in self.objectives.values():
            for view in objective.reads:
                total += sum(count_passes(self.adversaries[view])) if view in self.adversaries else 1
        return total


def count_passes(adversary: Adversary) -> tuple[int, int]:
    """(forwards that only move the deltas, forwards that train) of one micro-batch."""
    return (0, adversary.passes) if adversary.trains_every_pass else (adversary.passes, 1)


def plan(learner: str, objectives: Mapping[str, Objective], adversaries: Mapping[str, Adversary], frozen: Iterable[str]) -> Plan:
    """The plan of one learner. Raises ConfigError for unknown views and mixes that cannot work."""
    frozen = frozenset(frozen)
    used = {name: adversary for name, adversary in adversaries.items() if any(name in o.reads for o in objectives.values())}
    for name, objective in objectives.items():
        _check_reads(name, objective, {CLEAN, *adversaries, *frozen})
    for name, adversary in used.items():
        _check_adversary(name, adversary, {n: o for n, o in objectives.items() if o.view == name})
    connected = [set(o.reads) for o in objectives.values()]
    connected += [set(a.inner.reads) | {name} for name, a in used.items() if a.inner is not None]
    components = _components(connected, used)
    for views in components:
        every = [v for v in views if v in used and count_passes(used[v])[1] > 1]
        if len(every) > 1:
            raise ConfigError(
                f"adversaries: {' and '.join(every)} are compared with each other or with one common view, and both train in every "
                "pass; read them clean apart, or use at most one of them."
            )
    return Plan(learner=learner, objectives=dict(objectives), adversaries=used, frozen=frozen, components=components)


def _check_reads(name: str, objective: Objective, views: set[str]) -> None:
    for view, needs in objective.reads.items():
        if view not in views:
            raise unknown(f"objectives.{name}.view", "view (clean, an adversary or a frozen copy)", view, views)
        for need in needs:
            if need.partition(":")[0] not in NEEDS:
                raise unknown(f"objectives.{name}", "output", need, NEEDS)


def _check_adversary(name: str, adversary: Adversary, on_view: Mapping[str, Objective]) -> None:
    """Refuses an adversary that cannot move. `on_view`: the objectives evaluated on its view."""
    path = f"adversaries.{name}"
    if adversary.inner is None:
        ascended = {f"objectives.{n}": objective for n, objective in on_view.items()}
    else:
        ascended = {f"{path}.inner": adversary.inner}
    for objective_path, objective in ascended.items():
        if objective.is_divergence and adversary.starts_at_zero:
            raise ConfigError(
                f"{objective_path}: the gradient of a divergence is zero at delta = 0, so adversary '{name}' would never move; "
                "set random_start: true."
            )
    if adversary.threat.share == "group" and adversary.threat.where in ("response", "all", "assistant") and on_view:
        raise ConfigError(f"{path}.where: one delta per group can only act on what the group shares; set where: prompt.")
    if adversary.steps and not ascended:
        raise ConfigError(f"{path}: no objective is evaluated on its view, so it has nothing to ascend; give it an inner objective.")
    if count_passes(adversary)[0] == 0 < adversary.steps and adversary.inner is not None:
        raise ConfigError(f"{path}.inner: every pass trains, on the objectives of its view; it cannot ascend another objective.")
    if adversary.inner is not None and name not in adversary.inner.reads:
        raise ConfigError(
            f"{path}.inner: it reads {', '.join(adversary.inner.reads)} and not the view of its adversary, so no edit could "
            f"change it; set view: {name}."
        )


def _components(connected: list[set[str]], adversaries: Mapping[str, Adversary]) -> tuple[tuple[str, ...], ...]:
    """Unions of the view sets that overlap."""
    merged: list[set[str]] = []
    for views in connected:
        touching = [m for m in merged if m & views]
        merged = [m for m in merged if not m & views] + [views.union(*touching)]

    # Clean and frozen views come first: inner loops and adversarial losses may compare with them.
    def rank(view: str) -> tuple[int, str]:
        return (2 if view in adversaries else 0 if view == CLEAN else 1, view)

    ordered = [tuple(sorted(m, key=rank)) for m in merged]
    return tuple(sorted(ordered, key=lambda views: [rank(v) for v in views]))


# ---------------------------------------------------------------------------------------------------- as text


def formula(plans: Iterable[Plan], updates: Mapping[str, int]) -> str:
    """The run as a sum, as text: one line per learner, one per adversary, and the number of forwards."""
    lines = []
    for p in plans:
        summands = [f"{o.coef:.3g} {kind_of(type(o))}({_arguments(o)})" for o in p.objectives.values()]
        times = f"    {updates[p.learner]} updates per step" if updates.get(p.learner, 1) != 1 else ""
        lines.append(f"{p.learner} loss = {' + '.join(summands) or '0'}{times}")
        for name, adversary in p.adversaries.items():
            lines.append(f"  {name}  {describe(adversary)}")
        parts = " + ".join(f"{number} {pass_kind}" for pass_kind, number in p.forwards().items() if number)
        lines.append(f"  forwards per micro-batch: {parts or '0'}      (run separately: {p.separate_forwards()})")
    return "\n".join(lines)


def describe(adversary: Adversary) -> str:
    """One line about a threat model: `L2 ball per token at embedding, radius 0.05 x mean embedding norm, ...`."""
    threat = adversary.threat
    unit = " x mean embedding norm" if threat.relative_to == "mean_embedding_norm" else ""
    ball = (f"{threat.ball} ball per {threat.scope} at {', '.join(threat.sites)}", f"radius {threat.radius:.3g}{unit}")
    parts = [
        *(adversary.describe() or ball),
        f"{threat.where} tokens",
        f"{adversary.steps} steps",
        f"dropout {adversary.dropout}",
    ]
    if adversary.inner is not None:
        parts.append(f"ascends {kind_of(type(adversary.inner))}")
    return ", ".join(parts)


def _arguments(objective: Objective) -> str:
    others = [v for v in objective.reads if v not in (objective.view, CLEAN)]
    reference = " to reference" if "ref_logprobs" in objective.columns else ""
    against = f" to {', '.join(others)}" if others else reference
    return f"{objective.source}{against}" + (f" | {objective.view}" if objective.view != CLEAN else "")

"""What a learner's sum of objectives asks for, decided before the run: views, needs, forwards; bad mixes are refused here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from advalign.errors import ConfigError, unknown
from advalign.interfaces import Adversary, Objective
from advalign.plugins import kind_of
from advalign.types import NEEDS

CLEAN = "clean"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The terms of one learner. `components`: views whose graphs must live together; each gets its own backward."""

    learner: str
    terms: Mapping[str, Objective]
    adversaries: Mapping[str, Adversary]
    frozen: frozenset[str]
    components: tuple[tuple[str, ...], ...]

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(term.source for term in self.terms.values()))

    def terms_on(self, view: str) -> dict[str, Objective]:
        """The terms evaluated on this view, by name."""
        return {name: term for name, term in self.terms.items() if term.view == view}

    def readers(self, view: str) -> tuple[str, ...]:
        """Sources whose rows this view must run."""
        inner = self.inner_of_component(view)
        return tuple(dict.fromkeys(t.source for t in (*self.terms.values(), *inner) if view in t.reads))

    def needs(self, view: str) -> frozenset[str]:
        inner = self.inner_of_component(view)
        return frozenset().union(*(t.reads.get(view, frozenset()) for t in (*self.terms.values(), *inner)))

    @property
    def needs_input_gradients(self) -> bool:
        """Whether some term reads gradients of scores: they are taken in padded rows."""
        return any("score_gradients" in needs for t in self.terms.values() for needs in t.reads.values())

    def inner_of_component(self, view: str) -> tuple[Objective, ...]:
        """Inner objectives that read this view: their own adversary's, or another one they compare it with."""
        return tuple(a.inner for a in self.adversaries.values() if a.inner is not None and view in a.inner.reads)

    def of_component(self, component: tuple[str, ...]) -> dict[str, Objective]:
        return {name: term for name, term in self.terms.items() if component_of(term) <= set(component)}

    def forwards(self) -> dict[str, int]:
        """Forwards per micro-batch that holds rows of every view: {"clean": 1, "inner": K, "adversarial": A, "frozen": F}."""
        views = [view for component in self.components for view in component]
        attacked = [view for view in views if view in self.adversaries]
        cost = [passes_of(self.adversaries[v]) for v in attacked]
        return {
            "clean": views.count(CLEAN),
            "inner": sum(inner for inner, _ in cost),
            "adversarial": sum(final for _, final in cost),
            "frozen": len([v for v in views if v in self.frozen]),
        }

    def separate_forwards(self) -> int:
        """The same terms, each run by a trainer of its own."""
        total = 0
        for term in self.terms.values():
            for view in component_of(term):
                total += sum(passes_of(self.adversaries[view])) if view in self.adversaries else 1
        return total


def passes_of(adversary: Adversary) -> tuple[int, int]:
    """(forwards that only move the deltas, forwards that train) of one micro-batch."""
    return (0, adversary.passes) if adversary.trains_every_pass else (adversary.passes, 1)


def component_of(term: Objective) -> set[str]:
    return set(term.reads)


def plan(learner: str, terms: Mapping[str, Objective], adversaries: Mapping[str, Adversary], frozen: Iterable[str]) -> Plan:
    """The plan of one learner. Raises ConfigError for views nobody provides and mixes that cannot work."""
    frozen = frozenset(frozen)
    used = {name: adversary for name, adversary in adversaries.items() if any(name in t.reads for t in terms.values())}
    for name, term in terms.items():
        _check(name, term, used, frozen, adversaries)
    for name, adversary in used.items():
        if adversary.steps and adversary.inner is None and all(t.view != name for t in terms.values()):
            raise ConfigError(
                f"adversaries.{name}: no objective is evaluated on its view, so it has nothing to ascend; give it an inner objective."
            )
        _check_adversary(name, adversary)
    groups = [set(component_of(t)) for t in terms.values()]
    groups += [set(a.inner.reads) | {name} for name, a in used.items() if a.inner is not None]
    components = _components(groups, used)
    for views in components:
        every = [v for v in views if v in used and passes_of(used[v])[1] > 1]
        if len(every) > 1:
            raise ConfigError(
                f"adversaries: {' and '.join(every)} are compared with each other or with one common view, and both train in every "
                "pass; read them clean apart, or use at most one of them."
            )
    return Plan(learner=learner, terms=dict(terms), adversaries=used, frozen=frozen, components=components)


def _check_adversary(name: str, adversary: Adversary) -> None:
    if passes_of(adversary)[0] == 0 < adversary.steps and adversary.inner is not None:
        raise ConfigError(f"adversaries.{name}.inner: every pass of it trains, on the terms of its view; it cannot ascend another one.")
    if adversary.inner is not None and name not in adversary.inner.reads:
        raise ConfigError(
            f"adversaries.{name}.inner: it reads {', '.join(adversary.inner.reads)} and not the view of its adversary, so no edit could "
            f"change it; set view: {name}."
        )
    if not 0 <= adversary.probability <= 1:
        raise ConfigError(f"adversaries.{name}.probability: {adversary.probability} given; a number between 0 and 1.")


def _components(groups: list[set[str]], adversaries: Mapping[str, Adversary]) -> tuple[tuple[str, ...], ...]:
    merged: list[set[str]] = []
    for group in groups:
        touching = [m for m in merged if m & group]
        merged = [m for m in merged if not m & group] + [group.union(*touching)]

    # Clean and frozen views come first: inner loops and adversarial losses may compare with them.
    def rank(view: str) -> tuple[int, str]:
        return (2 if view in adversaries else 0 if view == CLEAN else 1, view)

    ordered = [tuple(sorted(m, key=rank)) for m in merged]
    return tuple(sorted(ordered, key=lambda views: [rank(v) for v in views]))


def _check(name: str, term: Objective, used: Mapping[str, Adversary], frozen: frozenset[str], adversaries: Mapping[str, Adversary]) -> None:
    known = {CLEAN, *adversaries, *frozen}
    for view, needs in term.reads.items():
        if view not in known:
            raise unknown(f"objectives.{name}.view", "view (clean, an adversary or a frozen copy)", view, known)
        for need in needs:
            if need.partition(":")[0] not in NEEDS:
                raise unknown(f"objectives.{name}", "output", need, NEEDS)
    adversary = used.get(term.view)
    if adversary is None:
        return
    if (adversary.inner or term).is_divergence and adversary.starts_at_zero:
        raise ConfigError(
            f"objectives.{name}: the gradient of a divergence is zero at delta = 0, so adversary '{term.view}' would never move; "
            "set random_start: true."
        )
    if adversary.threat.share == "group" and adversary.threat.where != "prompt":
        raise ConfigError(f"adversaries.{term.view}.where: one delta per group can only act on what the group shares; set where: prompt.")


def formula(plans: Iterable[Plan], updates: Mapping[str, int]) -> str:
    """The run as a sum, for people: one line per learner, one per adversary, and what it costs."""
    lines = []
    for p in plans:
        terms = [f"{t.coef:.3g} {kind_of(type(t))}({_arguments(t)})" for t in p.terms.values()]
        times = f"    {updates[p.learner]} updates per step" if updates.get(p.learner, 1) != 1 else ""
        lines.append(f"{p.learner} loss = {' + '.join(terms) or '0'}{times}")
        for name, adversary in p.adversaries.items():
            lines.append(f"  {name}  {describe(adversary)}")
        cost = p.forwards()
        parts = " + ".join(f"{n} {what}" for what, n in cost.items() if n)
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


def _arguments(term: Objective) -> str:
    others = [v for v in term.reads if v not in (term.view, CLEAN)]
    reference = " to reference" if "ref_logprobs" in term.columns else ""
    against = f" to {', '.join(others)}" if others else reference
    return f"{term.source}{against}" + (f" | {term.view}" if term.view != CLEAN else "")

"""Running one component of views on one micro-batch: a single clean forward, then each adversary's inner loop and its one
final forward; the terms of the component are summed on what came out.

    total = sum_k coef_k * (weights_k * losses_k).sum()        weights already divided by their global count

An adversary whose passes all train (`accumulate = "every"`) has no final forward: each of its passes is handed out to be
backpropagated, and the gradient that reaches its deltas on the way moves them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from advalign.engine import micro as mb
from advalign.engine.ascent import above_prefix, ascend, by_delta, dropout_policy, leaves_of, masked, perturbation_context, sharing
from advalign.engine.checks import check_losses
from advalign.engine.plan import CLEAN, Plan
from advalign.interfaces import Adversary, Objective, PerturbationContext
from advalign.models import Network
from advalign.types import Losses, Outputs, Tokens, Weights

ViewOutputs = dict[str, dict[str, Outputs]]  # {view: {source: outputs}}


@dataclass
class MetricAccumulator:
    """What an update reports, added up over its micro-batches: plain sums, and means as (sum, weight)."""

    totals: dict[str, float] = field(default_factory=dict)
    weighted: dict[str, tuple[float, float]] = field(default_factory=dict)

    def total(self, name: str, value: float) -> None:
        self.totals[name] = self.totals.get(name, 0.0) + value

    def mean(self, name: str, value: float, weight: float) -> None:
        before, count = self.weighted.get(name, (0.0, 0.0))
        self.weighted[name] = (before + value, count + weight)

    def report(self) -> dict[str, float]:
        """A mean over nothing is left out rather than called zero."""
        return self.totals | {name: value / weight for name, (value, weight) in self.weighted.items() if weight != 0}


@dataclass(frozen=True, kw_only=True)
class UpdateContext:
    """One learner's networks and plan during one update. `key` names the update in every random stream; `memory` is what
    each adversary keeps between updates. Rows of sources that are `idle` in a micro-batch weigh nothing and are not reported: they
    are there so that every process runs the same passes."""

    network: Any
    plan: Plan
    frozen: Mapping[str, Network]
    weights: Mapping[str, Weights]
    sizes: Mapping[str, int]
    key: tuple[object, ...]
    sums: MetricAccumulator
    memory: dict[str, dict[str, Any]] = field(default_factory=dict)
    idle: frozenset[str] = frozenset()

    def passes(self, micro: mb.Micro, rows: Mapping[str, Any], component: tuple[str, ...]) -> Iterator[tuple[dict[str, Tensor], bool]]:
        """({term: its share of the learner's loss, with graph}, whether parts of the graph are needed again), to be
        backpropagated before the next is asked for: one, or as many as an accumulating adversary of the component has."""
        terms = {n: t for n, t in self.plan.of_component(component).items() if t.source in rows}
        read = {view: [s for s in self.plan.readers(view) if s in rows] for view in component}
        training = next(
            (v for v in component if read[v] and v in self.plan.adversaries and self.plan.adversaries[v].trains_every_pass), None
        )
        found: ViewOutputs = {}
        for view in component:
            if read[view] and view != training:
                found[view] = self._view(view, ViewBatch(read[view], micro, rows), found)
        if training is not None:
            yield from self._accumulated(training, ViewBatch(read[training], micro, rows), terms, found)
        elif terms:
            each = self._each(terms, micro, rows, found)
            for view in component:
                if view in found and view in self.plan.adversaries:
                    self._note_end(view, ViewBatch(read[view], micro, rows), each, found)
            yield {name: weighted.sum() for name, weighted in each.items()}, False

    def _each(
        self, terms: Mapping[str, Objective], micro: mb.Micro, rows: Mapping[str, Any], found: ViewOutputs, share: float = 1.0
    ) -> dict[str, Tensor]:
        """{term: share * coef * weights / count * losses, unreduced}; recorded for the log."""
        each = {}
        for name, term in terms.items():
            losses = self._evaluate(term, rows, found)
            each[name] = share * term.coef * self._weighted(name, term, micro, rows, losses)
            if term.source not in self.idle:
                self._record(name, term, each[name].sum(), losses, share)
        return each

    def _note_end(self, view: str, here: ViewBatch, each: Mapping[str, Tensor], found: ViewOutputs) -> None:
        """What an inner loop climbed, at its last edits: the terms of its view, or its own inner objective."""
        adversary = self.plan.adversaries[view]
        if adversary.inner is None:
            end = torch.stack([each[name].detach().sum() for name in self.plan.terms_on(view) if name in each] or [torch.zeros(())])
        else:
            with torch.no_grad():
                end = self._per_row(self._climbed({f"{view}.inner": adversary.inner}, here, found), here)
        self.sums.total(f"{view}/loss_end", float(end.sum()))

    # ------------------------------------------------------------------------------------------------ views

    def _view(self, view: str, here: ViewBatch, found: ViewOutputs) -> dict[str, Outputs]:
        tokens, temperature, needs = here.tokens, here.temperatures, self.plan.needs(view)
        if view in self.frozen:
            with torch.no_grad():
                return here.split(self.frozen[view](tokens, needs, None, temperature))
        if view == CLEAN:
            return here.split(self.network(tokens, needs, None, temperature))
        adversary = self.plan.adversaries[view]

        with dropout_policy(self.network, adversary.dropout) as same_masks:
            forward = masked(lambda edits: here.split(self.network(tokens, needs, edits, temperature)), same_masks)
            climbing = above_prefix(self.network, adversary, forward)
            edits, start = ascend(
                adversary,
                context=self._perturbation_context(view, adversary, here),
                share=sharing(adversary.threat, tokens),
                losses=lambda edits: self._ascended(view, adversary, climbing(edits), here, found),
            )
            if start is not None:
                self.sums.total(f"{view}/loss_start", float(start.sum()))
            return forward(edits)

    def _accumulated(
        self, view: str, here: ViewBatch, terms: Mapping[str, Objective], found: ViewOutputs
    ) -> Iterator[tuple[dict[str, Tensor], bool]]:
        """Every pass trains: its losses count 1 / passes, and the deltas move by the gradient of the same backward."""
        adversary = self.plan.adversaries[view]
        tokens, share = here.tokens, sharing(adversary.threat, here.tokens)
        moving = {n: t for n, t in terms.items() if view in t.reads}
        still = {n: t for n, t in terms.items() if view not in t.reads}
        where = self._perturbation_context(view, adversary, here)
        state = adversary.start(where)
        with dropout_policy(self.network, adversary.dropout) as same_masks:
            forward = masked(lambda edits: here.split(self.network(tokens, self.plan.needs(view), edits, here.temperatures)), same_masks)
            for number in range(adversary.passes):
                leaves, edits = leaves_of(adversary.ask(state), share)
                found = {**found, view: forward(edits)}
                each = self._each(moving, here.micro, here.rows, found, 1 / adversary.passes)
                losses = adversary.passes * self._per_row({n: w.detach() for n, w in each.items() if terms[n].view == view}, here)
                last = number == adversary.passes - 1
                for edge in ("start",) * (number == 0) + ("end",) * last:
                    self.sums.total(f"{view}/loss_{edge}", float(losses.sum()))
                each |= self._each(still, here.micro, here.rows, found) if last else {}
                yield {name: weighted.sum() for name, weighted in each.items()}, not last
                gradients = {site: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for site, leaf in leaves.items()}
                state = adversary.tell(state, by_delta(losses, share, where), gradients)

    def _perturbation_context(self, view: str, adversary: Adversary, here: ViewBatch) -> PerturbationContext:
        memory = self.memory.setdefault(view, {})
        sources = [(s, here.rows[s].tokens) for s in here.sources]
        return perturbation_context(self.network, adversary, view, here.tokens, sources, self.key, memory)

    def _ascended(
        self, view: str, adversary: Adversary, outputs: dict[str, Outputs], here: ViewBatch, found: ViewOutputs
    ) -> tuple[Tensor, Tensor]:
        """The sum an inner loop climbs, with graph, and its share per row "B", without."""
        named = {f"{view}.inner": adversary.inner} if adversary.inner is not None else self.plan.terms_on(view)
        views: ViewOutputs = {v: {s: o.detach() for s, o in outs.items()} for v, outs in found.items()}
        views[view] = outputs
        per_row = self._per_row(self._climbed(named, here, views), here)
        if not per_row.requires_grad:  # rows without a term on this view: nothing to climb
            per_row = per_row + torch.stack([_touch(o) for o in outputs.values()]).sum()
        return per_row.sum(), per_row.detach()

    def _climbed(self, named: Mapping[str, Objective], here: ViewBatch, views: ViewOutputs) -> dict[str, Tensor]:
        return {
            name: term.coef * self._weighted(name, term, here.micro, here.rows, self._evaluate(term, here.rows, views))
            for name, term in named.items()
            if term.source in here.sources
        }

    def _per_row(self, each: Mapping[str, Tensor], here: ViewBatch) -> Tensor:
        """Unreduced terms on one view, summed per row "B" of it; the rows of a pair share theirs equally."""
        known = {**self.plan.terms, **{f"{view}.inner": a.inner for view, a in self.plan.adversaries.items() if a.inner is not None}}
        per_source: dict[str, Tensor] = {}
        for name, weighted in each.items():
            source = known[name].source
            row_memory = _by_row(weighted, here.sizes[source])
            per_source[source] = per_source[source] + row_memory if source in per_source else row_memory
        some = next(iter(per_source.values()), torch.zeros(0, device=here.tokens.ids.device))
        return torch.cat([per_source.get(s, some.new_zeros(here.sizes[s])) for s in here.sources])

    # ------------------------------------------------------------------------------------------------ terms

    def _evaluate(self, term: Objective, rows: Mapping[str, Any], found: ViewOutputs) -> Losses:
        return term.losses(rows[term.source], {view: found[view][term.source] for view in term.reads})

    def _weighted(self, name: str, term: Objective, micro: mb.Micro, rows: Mapping[str, Any], losses: Losses) -> Tensor:
        weights = self.weights[name]
        width = rows[term.source].tokens.ids.shape[1]
        values = mb.cut_weights(weights, self.sizes[term.source], micro[term.source], width).to(losses.values.device)
        check_losses(name, losses.values, values)
        values = values / weights.count.clamp(min=1e-30).to(values.device)
        return (values * 0 if term.source in self.idle else values) * losses.values

    def _record(self, name: str, term: Objective, total: Tensor, losses: Losses, share: float) -> None:
        if term.coef:
            self.sums.total(f"{name}/loss", float(total.detach()) / term.coef)
        for metric, (values, weights) in losses.metrics.items():
            self.sums.mean(f"{name}/{metric}", share * float((values * weights).sum()), share * float(weights.sum()))


@dataclass(frozen=True)
class ViewBatch:
    """The rows of one view in one micro-batch: sources side by side."""

    sources: Sequence[str]
    micro: mb.Micro
    rows: Mapping[str, Any]

    @cached_property
    def tokens(self) -> Tokens:
        return mb.join([self.rows[s].tokens for s in self.sources])

    @cached_property
    def temperatures(self) -> Tensor | None:
        temperature = mb.temperatures([self.rows[s] for s in self.sources])
        return None if temperature is None else temperature.to(self.tokens.ids.device)

    @cached_property
    def sizes(self) -> dict[str, int]:
        return {s: self.rows[s].tokens.ids.shape[0] for s in self.sources}

    def split(self, outputs: Outputs) -> dict[str, Outputs]:
        """By source."""
        if len(self.sources) == 1:
            return {self.sources[0]: outputs}
        split, start = {}, 0
        for source in self.sources:
            split[source] = mb.part(outputs, start, start + self.sizes[source])
            start += self.sizes[source]
        return split


def _by_row(weighted: Float[Tensor, "..."], num_rows: int) -> Tensor:
    sums = weighted.flatten(1).sum(1) if weighted.ndim > 1 else weighted
    each = num_rows // sums.shape[0]
    return sums if each == 1 else sums.repeat_interleave(each) / each


def _touch(outputs: Outputs) -> Tensor:
    return mb._any(outputs).sum() * 0.0

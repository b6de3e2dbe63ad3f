"""Running one component of views on one micro-batch: a single clean forward, then each adversary's inner loop and its one
final forward; the terms of the component are summed on what came out.

    total = sum_k coef_k * (weights_k * losses_k).sum()        weights already divided by their global count
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from advalign.engine import micro as mb
from advalign.engine.keys import generator
from advalign.engine.plan import CLEAN, Plan
from advalign.errors import unknown
from advalign.models import Network, perturb
from advalign.protocols import Adversary, Ground, Term
from advalign.types import Edit, Losses, Outputs, ThreatModel, Tokens, Weights

Found = dict[str, dict[str, Outputs]]  # {view: {source: outputs}}


@dataclass
class Sums:
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
class Run:
    """One learner's networks and plan during one update. `key` names the update in every random stream."""

    network: Any
    plan: Plan
    frozen: Mapping[str, Network]
    weights: Mapping[str, Weights]
    sizes: Mapping[str, int]
    key: tuple[object, ...]
    sums: Sums

    def losses(self, micro: mb.Micro, rows: Mapping[str, Any], component: tuple[str, ...]) -> dict[str, Tensor]:
        """{term: its share of the learner's loss, with graph} for the terms of a component that have rows here."""
        terms = {n: t for n, t in self.plan.of_component(component).items() if t.source in rows}
        found: Found = {}
        for view in component:
            sources = [s for s in self.plan.readers(view) if s in rows]
            if sources:
                found[view] = self._view(view, sources, micro, rows, found)
        totals = {}
        for name, term in terms.items():
            losses = self._evaluate(term, rows, found)
            totals[name] = term.coef * self._weighted(name, term, micro, rows, losses).sum()
            self._record(name, term, totals[name], losses)
        for view in component:
            if view in self.plan.adversaries:
                end = sum(float(v.detach()) for n, v in totals.items() if terms[n].view == view)
                self.sums.total(f"{view}/loss_end", end)
        return totals

    # ------------------------------------------------------------------------------------------------ views

    def _view(self, view: str, sources: Sequence[str], micro: mb.Micro, rows: Mapping[str, Any], found: Found) -> dict[str, Outputs]:
        tokens = mb.join([rows[s].tokens for s in sources])
        heat = mb.temperatures([rows[s] for s in sources])
        heat = None if heat is None else heat.to(tokens.ids.device)
        needs = self.plan.needs(view)
        if view in self.frozen:
            with torch.no_grad():
                return _split(self.frozen[view](tokens, needs, None, heat), sources, rows)
        if view == CLEAN:
            return _split(self.network(tokens, needs, None, heat), sources, rows)
        adversary = self.plan.adversaries[view]

        def forward(edits: Mapping[str, Edit]) -> dict[str, Outputs]:
            return _split(self.network(tokens, needs, edits, heat), sources, rows)

        def ascended(outputs: dict[str, Outputs]) -> tuple[Tensor, Tensor]:
            return self._ascended(view, adversary, outputs, sources, micro, rows, found)

        with dropout_policy(self.network, adversary.dropout) as same_masks:
            edits, start = ascend(
                adversary,
                ground=ground(self.network, adversary, view, tokens, [(s, rows[s].tokens) for s in sources], self.key),
                share=sharing(adversary.threat, tokens),
                losses=lambda e: ascended(_masked(forward, same_masks)(e)),
            )
            if start is not None:
                self.sums.total(f"{view}/loss_start", float(start.sum()))
            return _masked(forward, same_masks)(edits)

    def _ascended(
        self,
        view: str,
        adversary: Adversary,
        outputs: dict[str, Outputs],
        sources: Sequence[str],
        micro: mb.Micro,
        rows: Mapping[str, Any],
        found: Found,
    ) -> tuple[Tensor, Tensor]:
        """The sum an inner loop climbs, with graph, and its share per row "B", without."""
        named = {f"{view}.inner": adversary.inner} if adversary.inner is not None else self.plan.terms_on(view)
        views: Found = {v: {s: o.detach() for s, o in outs.items()} for v, outs in found.items()}
        views[view] = outputs
        per_source: dict[str, Tensor] = {}
        total: Tensor | None = None
        for name, term in named.items():
            if term.source not in outputs:
                continue
            weighted = term.coef * self._weighted(name, term, micro, rows, self._evaluate(term, rows, views))
            total = weighted.sum() if total is None else total + weighted.sum()
            by_row = _by_row(weighted.detach(), rows[term.source].tokens.ids.shape[0])
            per_source[term.source] = per_source.get(term.source, 0) + by_row
        if total is None:
            total = torch.stack([_touch(o) for o in outputs.values()]).sum()  # rows without a term on this view: nothing to climb
        rowwise = [per_source.get(s, total.new_zeros(rows[s].tokens.ids.shape[0])) for s in sources]
        return total, torch.cat(rowwise)

    # ------------------------------------------------------------------------------------------------ terms

    def _evaluate(self, term: Term, rows: Mapping[str, Any], found: Found) -> Losses:
        return term.losses(rows[term.source], {view: found[view][term.source] for view in term.reads})

    def _weighted(self, name: str, term: Term, micro: mb.Micro, rows: Mapping[str, Any], losses: Losses) -> Tensor:
        weights = self.weights[name]
        width = rows[term.source].tokens.ids.shape[1]
        values = mb.cut_weights(weights, self.sizes[term.source], micro[term.source], width).to(losses.values.device)
        return values / weights.count.clamp(min=1e-30).to(values.device) * losses.values

    def _record(self, name: str, term: Term, total: Tensor, losses: Losses) -> None:
        if term.coef:
            self.sums.total(f"{name}/loss", float(total.detach()) / term.coef)
        for metric, (values, weights) in losses.metrics.items():
            self.sums.mean(f"{name}/{metric}", float((values * weights).sum()), float(weights.sum()))


# ---------------------------------------------------------------------------------------------- the inner loop


def ascend(
    adversary: Adversary,
    *,
    ground: Ground,
    share: Tensor,
    losses: Callable[[Mapping[str, Edit]], tuple[Tensor, Tensor]],
) -> tuple[dict[str, Edit], Tensor | None]:
    """`steps` times ask, forward, gradient with respect to the deltas alone, tell; then the last edits, per row.

    `share[b]` is the delta of row b. `losses(edits)` gives the sum to climb and its share per row. Parameters' .grad is
    untouched: a step costs two forwards, not three. Also returns the losses per row at the first edits.
    """
    state = adversary.start(ground)
    first: Tensor | None = None
    for _ in range(adversary.steps):
        leaves = {site: edit.add.detach().clone().requires_grad_() for site, edit in adversary.ask(state).items()}
        total, per_row = losses({site: Edit(leaf[share]) for site, leaf in leaves.items()})
        gradients = torch.autograd.grad(total, list(leaves.values()))
        first = per_row if first is None else first
        per_delta = per_row.new_zeros(ground.allowed.shape[0]).index_add(0, share, per_row)
        state = adversary.tell(state, per_delta, dict(zip(leaves, gradients, strict=True)))
    return {site: Edit(edit.add.detach()[share]) for site, edit in adversary.ask(state).items()}, first


def ground(
    network: Any, adversary: Adversary, view: str, tokens: Tokens, sources: Sequence[tuple[str, Tokens]], key: Sequence[object]
) -> Ground:
    """What an adversary stands on for these rows. Random streams: (update, adversary, source, row or group)."""
    threat = adversary.threat
    plain = getattr(network, "module", network)
    names = [(s, number) for s, t in sources for number in (t.group if threat.share == "group" else t.key).tolist()]
    allowed = region(threat.where, tokens)
    if threat.share == "group":
        first = [names.index(name) for name in dict.fromkeys(names)]
        names, allowed = list(dict.fromkeys(names)), allowed[first]
    scale = plain.mean_embedding_norm() if threat.relative_to == "mean_embedding_norm" else 1.0
    return Ground(
        shapes={site: (tokens.ids.shape[1], plain.width(site)) for site in threat.sites},
        allowed=allowed,
        radius=threat.radius * scale,
        dtype=torch.float64 if plain.dtype == torch.float64 else torch.float32,
        generators=[generator(*key, view, *name) for name in names],
    )


def region(where: str, tokens: Tokens) -> Bool[Tensor, "B T"]:
    """Positions a threat model allows: real tokens that are no target, targets, or both."""
    known = {"prompt": tokens.mask & ~tokens.target, "response": tokens.mask & tokens.target, "all": tokens.mask}
    if where not in known:
        raise unknown("adversary.where", "region", where, known)
    return known[where]


def sharing(threat: ThreatModel, tokens: Tokens) -> Tensor:
    """The number of each row's delta, in order of first appearance."""
    if threat.share == "row":
        return torch.arange(tokens.ids.shape[0], device=tokens.ids.device)
    order = {g: i for i, g in enumerate(dict.fromkeys(tokens.group.tolist()))}
    return torch.tensor([order[g] for g in tokens.group.tolist()], device=tokens.ids.device)


@contextmanager
def dropout_policy(network: Any, policy: str) -> Iterator[bool]:
    """ "off": none in ascent and final pass. "sync": the same masks in all of them (yields True). "fresh": new ones in every
    pass. The global random state afterwards is as if the final pass alone had run ("sync", "fresh"), or untouched ("off")."""
    if policy not in ("off", "sync", "fresh"):
        raise unknown("adversary.dropout", "dropout policy", policy, ("off", "sync", "fresh"))
    with perturb.without_dropout(network) if policy == "off" else nullcontext():
        yield policy == "sync"


def _masked(forward: Callable[[Any], Any], same: bool) -> Callable[[Any], Any]:
    """Every call starts from the random state of now, so dropout draws the same masks for the same row layout."""
    if not same:
        return forward

    def replayed(edits: Any) -> Any:
        with perturb.same_random_state():
            return forward(edits)

    return replayed


def _split(outputs: Outputs, sources: Sequence[str], rows: Mapping[str, Any]) -> dict[str, Outputs]:
    if len(sources) == 1:
        return {sources[0]: outputs}
    split, start = {}, 0
    for source in sources:
        stop = start + rows[source].tokens.ids.shape[0]
        split[source] = mb.part(outputs, start, stop)
        start = stop
    return split


def _by_row(weighted: Float[Tensor, "..."], num_rows: int) -> Tensor:
    sums = weighted.flatten(1).sum(1) if weighted.ndim > 1 else weighted
    return sums.repeat_interleave(num_rows // sums.shape[0])


def _touch(outputs: Outputs) -> Tensor:
    return mb._any(outputs).sum() * 0.0

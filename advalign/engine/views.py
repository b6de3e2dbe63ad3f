"""Running one component of views on one micro-batch: a single clean forward, then each adversary's inner loop and its one final forward;
then the objectives of the component are summed on the outputs.

    total = sum_k coef_k * (weights_k * losses_k).sum()        weights already divided by their global count

An adversary with `trains_every_pass` has no final forward: each of its passes is yielded to be backpropagated, and the gradient that
reaches its deltas in that backward moves them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from advalign.engine import micro as mb
from advalign.engine.ascent import (
    ascend,
    delta_indices,
    dropout_policy,
    perturbation_context,
    reuse_prefix,
    split_edits,
    sum_by_delta,
    with_same_masks,
)
from advalign.engine.checks import check_losses, check_metrics, evaluate
from advalign.engine.finite import finite_edits, finite_feedback
from advalign.engine.metrics import MetricAccumulator
from advalign.engine.plan import CLEAN, Plan
from advalign.engine.removals import Remaining, without_removed
from advalign.interfaces import Adversary, Objective, PerturbationContext
from advalign.interfaces.adversary import Memory
from advalign.models import Network
from advalign.types import Edit, Losses, Outputs, TokenRows, Tokens, Weights

ViewOutputs = dict[str, dict[str, Outputs]]
"""{view: {source: outputs}}"""


@dataclass(frozen=True, kw_only=True)
class UpdateContext:
    """What one update of one learner is run with."""

    network: Network
    """The learner's network."""
    plan: Plan
    """What the learner runs."""
    frozen: Mapping[str, Network]
    """{name: frozen copy}"""
    weights: Mapping[str, Weights]
    """{objective: its weights over the rows of the whole update}, inner objectives included."""
    num_rows: Mapping[str, int]
    """{source: rows of the whole update}"""
    key: tuple[object, ...]
    """The name of the update in every random stream."""
    metrics: MetricAccumulator
    """Where metrics are added."""
    remaining: Remaining = field(default_factory=dict)
    """Tokens that are left on views that remove targets."""
    memory: dict[str, Memory] = field(default_factory=dict)
    """{adversary: what it keeps between updates}"""
    idle: frozenset[str] = frozenset()
    """Sources whose rows weigh nothing in this micro-batch and are not reported: they make every process run the same passes."""

    def passes(
        self, micro: mb.Micro, rows: Mapping[str, TokenRows], component: tuple[str, ...]
    ) -> Iterator[tuple[dict[str, Tensor], bool]]:
        """({objective: its part of the learner's loss, with graph}, whether parts of the graph are needed again).

        Each is to be backpropagated before the next one is asked for. There is one, or as many as an adversary of the component has
        that trains in every pass.
        """
        objectives = {n: o for n, o in self.plan.objectives_of(component).items() if o.source in rows}
        read = {view: [s for s in self.plan.readers(view) if s in rows] for view in component}
        adversaries = self.plan.adversaries
        training = next((v for v in component if read[v] and v in adversaries and adversaries[v].trains_every_pass), None)
        outputs: ViewOutputs = {}
        for view in component:
            if read[view] and view != training:
                outputs[view] = self._run_view(view, ViewBatch(read[view], micro, rows), outputs)
        if training is not None:
            yield from self._train_every_pass(training, ViewBatch(read[training], micro, rows), objectives, outputs)
        elif objectives:
            losses = self._weighted_losses(objectives, micro, rows, outputs)
            for view in component:
                if view in outputs and view in adversaries:
                    self._note_loss_end(view, ViewBatch(read[view], micro, rows), losses, outputs)
            yield {name: weighted.sum() for name, weighted in losses.items()}, False

    # ------------------------------------------------------------------------------------------------ views

    def _run_view(self, view: str, batch: ViewBatch, outputs: ViewOutputs) -> dict[str, Outputs]:
        """The outputs of one view, by source; of an adversary after its inner loop."""
        tokens, temperature, needs = batch.tokens, batch.temperatures, self.plan.needs(view)
        if view in self.frozen:
            with torch.no_grad():
                return batch.split(self.frozen[view](tokens, needs, None, temperature))
        if view == CLEAN:
            return batch.split(self.network(tokens, needs, None, temperature))
        adversary = self.plan.adversaries[view]

        def run(edits: Mapping[str, Edit]) -> dict[str, Outputs]:
            return batch.split(self.network(tokens, needs, edits, temperature))

        with dropout_policy(self.network, adversary.dropout) as same_masks:
            forward = with_same_masks(run, same_masks)
            inner_forward = reuse_prefix(self.network, adversary, forward)
            edits, start, num_nonfinite = ascend(
                adversary,
                context=self._perturbation_context(view, adversary, batch),
                delta_index=delta_indices(adversary.threat, tokens),
                losses=lambda edits: self._ascended_loss(view, adversary, inner_forward(edits), batch, outputs),
            )
            if start is not None:
                self.metrics.add(f"{view}/loss_start", float(start.sum()))
            self._count_nonfinite(view, num_nonfinite)
            return forward(edits)

    def _train_every_pass(
        self, view: str, batch: ViewBatch, objectives: Mapping[str, Objective], outputs: ViewOutputs
    ) -> Iterator[tuple[dict[str, Tensor], bool]]:
        """Every pass trains: its losses count 1 / passes, and the deltas move by the gradient of the same backward."""
        adversary = self.plan.adversaries[view]
        delta_index = delta_indices(adversary.threat, batch.tokens)
        moving = {n: o for n, o in objectives.items() if view in o.reads}
        still = {n: o for n, o in objectives.items() if view not in o.reads}
        context = self._perturbation_context(view, adversary, batch)
        state = adversary.start(context)

        def run(edits: Mapping[str, Edit]) -> dict[str, Outputs]:
            return batch.split(self.network(batch.tokens, self.plan.needs(view), edits, batch.temperatures))

        with dropout_policy(self.network, adversary.dropout) as same_masks:
            forward = with_same_masks(run, same_masks)
            for number in range(adversary.passes):
                requested, bad_deltas = finite_edits(adversary.ask(state))
                leaves, edits = split_edits(requested, delta_index, common=adversary.threat.share == "group")
                outputs = {**outputs, view: forward(edits)}
                losses = self._weighted_losses(moving, batch.micro, batch.rows, outputs, 1 / adversary.passes)
                on_view = {n: w.detach() for n, w in losses.items() if objectives[n].view == view}
                row_losses = adversary.passes * self._sum_by_row(on_view, batch)
                last = number == adversary.passes - 1
                for edge in ("start",) * (number == 0) + ("end",) * last:
                    self.metrics.add(f"{view}/loss_{edge}", float(row_losses.sum()))
                losses |= self._weighted_losses(still, batch.micro, batch.rows, outputs) if last else {}
                yield {name: weighted.sum() for name, weighted in losses.items()}, not last
                gradients = {site: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for site, leaf in leaves.items()}
                by_delta, finite, bad = finite_feedback(sum_by_delta(row_losses, delta_index, context), gradients, context.allowed)
                self._count_nonfinite(view, {"num_nonfinite_gradients": int(bad), "num_nonfinite_deltas": int(bad_deltas)})
                state = adversary.tell(state, by_delta, finite)

    def _count_nonfinite(self, view: str, counts: Mapping[str, int]) -> None:
        for name, number in counts.items():
            if number:
                self.metrics.add(f"{view}/{name}", number)

    def _perturbation_context(self, view: str, adversary: Adversary, batch: ViewBatch) -> PerturbationContext:
        memory = self.memory.setdefault(view, {})
        sources = [(s, batch.rows[s].tokens) for s in batch.sources]
        return perturbation_context(self.network, adversary, view, batch.tokens, sources, self.key, memory)

    # --------------------------------------------------------------------------------- what an inner loop ascends

    def _ascended_loss(
        self, view: str, adversary: Adversary, view_outputs: dict[str, Outputs], batch: ViewBatch, outputs: ViewOutputs
    ) -> tuple[Tensor, Tensor]:
        """The sum that an inner loop ascends, with graph, and its part per row "B", without."""
        objectives = {f"{view}.inner": adversary.inner} if adversary.inner is not None else self.plan.objectives_on(view)
        detached: ViewOutputs = {v: {s: o.detach() for s, o in by_source.items()} for v, by_source in outputs.items()}
        detached[view] = view_outputs
        row_losses = self._sum_by_row(self._ascended_losses(objectives, batch, detached), batch)
        if not row_losses.requires_grad:  # rows without an objective on this view: nothing to ascend
            row_losses = row_losses + torch.stack([_zero_with_graph(o) for o in view_outputs.values()]).sum()
        return row_losses.sum(), row_losses.detach()

    def _ascended_losses(self, objectives: Mapping[str, Objective], batch: ViewBatch, outputs: ViewOutputs) -> dict[str, Tensor]:
        return {
            name: o.coef * self._weighted(name, o, batch.micro, batch.rows, self._losses(name, o, batch.micro, batch.rows, outputs))
            for name, o in objectives.items()
            if o.source in batch.sources
        }

    def _note_loss_end(self, view: str, batch: ViewBatch, losses: Mapping[str, Tensor], outputs: ViewOutputs) -> None:
        """What an inner loop ascended, at its last edits: the objectives on its view, or its own inner objective."""
        adversary = self.plan.adversaries[view]
        if adversary.inner is None:
            on_view = [losses[name].detach().sum() for name in self.plan.objectives_on(view) if name in losses]
            end = torch.stack(on_view or [torch.zeros(())])
        else:
            with torch.no_grad():
                end = self._sum_by_row(self._ascended_losses({f"{view}.inner": adversary.inner}, batch, outputs), batch)
        self.metrics.add(f"{view}/loss_end", float(end.sum()))

    def _sum_by_row(self, losses: Mapping[str, Tensor], batch: ViewBatch) -> Tensor:
        """Unreduced losses {objective: losses} on one view, summed per row "B" of it; the rows of a pair share theirs equally."""
        objectives = {**self.plan.objectives, **self.plan.inner_objectives}
        per_source: dict[str, Tensor] = {}
        for name, weighted in losses.items():
            source = objectives[name].source
            row_losses = _by_row(weighted, batch.num_rows[source])
            per_source[source] = per_source[source] + row_losses if source in per_source else row_losses
        like = next(iter(per_source.values()), torch.zeros(0, device=batch.tokens.ids.device))
        return torch.cat([per_source.get(s, like.new_zeros(batch.num_rows[s])) for s in batch.sources])

    # ------------------------------------------------------------------------------------------------ objectives

    def _weighted_losses(
        self,
        objectives: Mapping[str, Objective],
        micro: mb.Micro,
        rows: Mapping[str, TokenRows],
        outputs: ViewOutputs,
        pass_weight: float = 1.0,
    ) -> dict[str, Tensor]:
        """{objective: pass_weight * coef * weights / count * losses, unreduced}; recorded for the log."""
        weighted = {}
        for name, objective in objectives.items():
            losses = self._losses(name, objective, micro, rows, outputs)
            weighted[name] = pass_weight * objective.coef * self._weighted(name, objective, micro, rows, losses)
            if objective.source not in self.idle:
                self._record(name, objective, weighted[name], losses, pass_weight, micro[objective.source])
        return weighted

    def _losses(self, name: str, objective: Objective, micro: mb.Micro, rows: Mapping[str, TokenRows], outputs: ViewOutputs) -> Losses:
        views, source = {view: outputs[view][objective.source] for view in objective.reads}, objective.source
        return evaluate(name, objective, without_removed(objective, rows[source], self.remaining, micro[source]), views)

    def _weighted(self, name: str, objective: Objective, micro: mb.Micro, rows: Mapping[str, TokenRows], losses: Losses) -> Tensor:
        """weights / count * losses of a micro-batch."""
        source, weights = objective.source, self.weights[name]
        width = rows[source].tokens.ids.shape[1]
        values = mb.take_weights(weights, self.num_rows[source], micro[source], width).to(losses.values.device)
        check_losses(name, losses.values, values)
        check_metrics(name, losses)
        values = values / weights.count.clamp(min=1e-30).to(values.device)
        return (values * 0 if source in self.idle else values) * losses.values

    def _record(self, name: str, objective: Objective, weighted: Tensor, losses: Losses, pass_weight: float, rows: Tensor) -> None:
        total = float(weighted.detach().sum())
        if objective.coef:
            self.metrics.add(f"{name}/loss", total / objective.coef)
        if not math.isfinite(total):
            bad = ~_by_row(weighted.detach(), len(rows)).isfinite()
            self.metrics.bad_rows.setdefault(name, set()).update(rows[bad.cpu()].tolist())
        for metric, (values, weights) in losses.metrics.items():
            self.metrics.add_mean(f"{name}/{metric}", pass_weight * float((values * weights).sum()), pass_weight * float(weights.sum()))


@dataclass(frozen=True)
class ViewBatch:
    """The rows of one view in one micro-batch: sources side by side."""

    sources: Sequence[str]
    """Names, in the order of the joined rows."""
    micro: mb.Micro
    """{source: its row numbers in the update}"""
    rows: Mapping[str, TokenRows]
    """{source: its rows}"""

    @cached_property
    def tokens(self) -> Tokens:
        """All rows, joined."""
        return mb.join_tokens([self.rows[s].tokens for s in self.sources])

    @cached_property
    def temperatures(self) -> Tensor | None:
        """Sampling temperature per joined row; None where all are 1."""
        temperature = mb.temperatures([self.rows[s] for s in self.sources])
        return None if temperature is None else temperature.to(self.tokens.ids.device)

    @cached_property
    def num_rows(self) -> dict[str, int]:
        """{source: number of rows}"""
        return {s: self.rows[s].tokens.ids.shape[0] for s in self.sources}

    def split(self, outputs: Outputs) -> dict[str, Outputs]:
        """{source: its part of the joined outputs}"""
        if len(self.sources) == 1:
            return {self.sources[0]: outputs}
        parts, start = {}, 0
        for source in self.sources:
            parts[source] = mb.slice_outputs(outputs, start, start + self.num_rows[source])
            start += self.num_rows[source]
        return parts


def _by_row(weighted: Float[Tensor, "..."], num_rows: int) -> Tensor:
    sums = weighted.flatten(1).sum(1) if weighted.ndim > 1 else weighted
    per = num_rows // sums.shape[0]
    return sums if per == 1 else sums.repeat_interleave(per) / per


def _zero_with_graph(outputs: Outputs) -> Tensor:
    return mb.first_tensor(outputs).sum() * 0.0

"""The contract of an objective: unreduced losses in the shape of the weights, which any split of an update adds up to."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from advalign.errors import AdvalignError, ConfigError
from advalign.interfaces import Objective
from advalign.testing import _rows
from advalign.testing._rules import BrokenRule, explained, is_plugin, require, same, snapshot
from advalign.types import NEEDS, DemoRows, Losses, Outputs, PairRows, Rows, Weights


def check_objective(objective: Objective, rows: Rows | None = None) -> None:
    """Raises AssertionError for the first rule that the objective breaks.

    `rows`: eight rows of your own, for an objective that reads a container of your own. Without: rows of the first declared container
    that `weights` accepts, with the declared annotations alone.
    """
    is_plugin(objective, Objective, "objectives")
    _declarations(objective)
    case = _Case(objective, _suitable(objective) if rows is None else rows)
    _weights(case)
    _changes_nothing(case)
    _losses(case)
    _off_target(case)
    _split(case)
    _empty_rows(case)


class _DeclaredViews(dict[str, Outputs]):
    """{view: outputs}; a view that the objective did not declare is a broken rule."""

    def __missing__(self, view: str) -> Outputs:
        raise BrokenRule(f"it reads the view '{view}', which `reads` does not declare.")


@dataclass(frozen=True)
class _Case:
    """An objective, rows, and leaves for the outputs it declares."""

    objective: Objective
    rows: Any

    @cached_property
    def leaves(self) -> _rows.Leaves:
        return _rows.leaves(self.objective, tuple(self.rows.tokens.ids.shape))

    @cached_property
    def weights(self) -> Weights:
        with explained(self.objective, "weights raised; they are computed from the rows alone"):
            return self.objective.weights(self.rows)

    @property
    def size(self) -> int:
        return int(self.rows.tokens.ids.shape[0])

    @property
    def rows_per_loss(self) -> int:
        return self.size // self.weights.values.shape[0]

    def losses(self, rows: Any = None, views: dict[str, Outputs] | None = None) -> Losses:
        rows, views = self.rows if rows is None else rows, _DeclaredViews(_rows.views(self.leaves) if views is None else views)
        try:
            losses = self.objective.losses(rows, views)
        except BrokenRule as error:
            raise BrokenRule(f"{type(self.objective).__name__}: {error}") from None
        except AdvalignError:
            raise
        except Exception as error:
            rule = "; columns of the rows that `annotations` does not name are None" if "NoneType" in str(error) else ""
            raise BrokenRule(f"{type(self.objective).__name__}: losses raised {type(error).__name__}: {error}{rule}") from error
        kind = type(losses).__name__
        require(isinstance(losses, Losses), self.objective, f"losses returns a {kind}; return advalign.types.Losses(values, metrics).")
        return losses

    def total(self, rows: Any = None, views: dict[str, Outputs] | None = None, weights: Weights | None = None) -> Tensor:
        weights = weights or self.weights
        return (weights.values / weights.count * self.losses(rows, views).values).sum()

    def cut(self, numbers: Tensor) -> Tensor:
        """The weights of some rows, which may be one per pair."""
        return self.weights.values[numbers[:: self.rows_per_loss] // self.rows_per_loss]

    def gradients(self, total: Tensor, tensors: _rows.Leaves) -> dict[tuple[str, str], Tensor]:
        by_leaf = torch.autograd.grad(total, list(tensors.values()), allow_unused=True)
        return {key: torch.zeros_like(x) if g is None else g for (key, x), g in zip(tensors.items(), by_leaf, strict=True)}


def _near(first: Tensor, second: Tensor) -> bool:
    return torch.allclose(first, second, rtol=1e-9, atol=1e-11)


def _declarations(objective: Objective) -> None:
    require(bool(objective.reads), objective, "`reads` is empty; name the outputs it reads, as {self.view: frozenset({'logprobs'})}.")
    require(objective.view in objective.reads, objective, f"`reads` does not name its own view '{objective.view}', so nothing would train.")
    for view, names in objective.reads.items():
        wrong = sorted({name.partition(":")[0] for name in names} - set(NEEDS))
        require(bool(names), objective, f"`reads` names no output of view '{view}'; leave the view out, or name what it reads there.")
        require(not wrong, objective, f"`reads` names '{(wrong or [''])[0]}'; outputs are {', '.join(NEEDS)}.")
    for name in objective.columns:
        is_annotation = name in _rows.ANNOTATIONS
        require(is_annotation, objective, f"`annotations` names '{name}'; annotations are {', '.join(_rows.ANNOTATIONS)}.")
    require(objective.bundle in ("row", "group"), objective, f"bundle is '{objective.bundle}'; it is 'row' or 'group'.")


def _suitable(objective: Objective) -> Any:
    refused = ""
    for cls in objective.row_types or (DemoRows,):
        if cls not in _rows.BUILDERS:
            continue
        rows = _rows.with_annotations(_rows.BUILDERS[cls](_rows.tokens()), objective.columns)
        try:
            with explained(objective, "weights raised; they are computed from the rows alone"):
                objective.weights(rows)
            return rows
        except ConfigError as error:
            refused = f" ({error})"
    names = ", ".join(cls.__name__ for cls in objective.row_types)
    raise BrokenRule(f"{type(objective).__name__}: no rows to check it with for row_types ({names}); give `rows`{refused}.")


def _weights(case: _Case) -> None:
    weights, plugin = case.weights, case.objective
    require(
        isinstance(weights, Weights), plugin, f"weights returns a {type(weights).__name__}; return advalign.types.Weights(values, count)."
    )
    require(isinstance(weights.count, Tensor) and weights.count.ndim == 0, plugin, "Weights.count is a tensor with a single number.")
    first = weights.values.shape[0] if weights.values.ndim else 0
    halves = case.size // 2 if isinstance(case.rows, PairRows) else case.size
    require(
        first in (case.size, halves) and first > 0,
        plugin,
        f"the first axis of the weights has {first} entries for {case.size} rows; it is one per row, or one per pair of PairRows.",
    )
    require(bool((weights.values >= 0).all() & weights.values.isfinite().all()), plugin, "weights are finite and not negative.")
    require(
        bool(weights.count > 0) and bool(weights.values.sum() > 0), plugin, "weights and their count are zero although rows have targets."
    )


def _losses(case: _Case) -> None:
    losses, weights, plugin = case.losses(), case.weights, case.objective
    if losses.values.ndim == 0:
        require(False, plugin, "losses are averaged to one number; return one loss per element, the weights do the averaging.")
    shapes = tuple(losses.values.shape), tuple(weights.values.shape)
    require(shapes[0] == shapes[1], plugin, f"losses have shape {shapes[0]} and weights {shapes[1]}; both have one entry per loss.")
    require(losses.values.requires_grad, plugin, "losses carry no gradient; do not detach them or compute them under no_grad.")
    gradients = case.gradients(case.total(), case.leaves)
    for (view, name), g in gradients.items():
        require(bool(g.isfinite().all()), plugin, f"the gradient with respect to '{name}' of view '{view}' is not finite.")
    moved = any(float(g.abs().sum()) > 0 for (view, _), g in gradients.items() if view == plugin.view)
    require(moved, plugin, f"no output of its own view '{plugin.view}' gets a gradient, so nothing trains and no adversary can climb.")
    unnamed = sorted(losses.metrics.keys() - (losses.metrics.keys() if plugin.metric_names is None else plugin.metric_names))
    require(not unnamed, plugin, f"metrics {', '.join(unnamed)} are not among its metric_names, so a run that waits for them is refused.")
    for name, metric in losses.metrics.items():
        pair = isinstance(metric, tuple) and len(metric) == 2 and all(isinstance(x, Tensor) for x in metric)
        require(pair, plugin, f"metric '{name}' is not a pair (values, weights) of tensors; averages are taken over the whole update.")
        values, by = metric
        require(values.shape == by.shape, plugin, f"metric '{name}' has values {tuple(values.shape)} and weights {tuple(by.shape)}.")
        require(not values.requires_grad and not by.requires_grad, plugin, f"metric '{name}' carries a gradient; detach it.")
        require(bool((values * by).isfinite().all()), plugin, f"metric '{name}' is not finite where it counts.")


def _changes_nothing(case: _Case) -> None:
    rows, tensors = snapshot(case.rows), snapshot({key: x.detach() for key, x in case.leaves.items()})
    first, second = case.losses().values, case.losses().values
    unchanged = same(rows, case.rows) and same(tensors, {key: x.detach() for key, x in case.leaves.items()})
    require(unchanged, case.objective, "it writes into its rows or outputs; other objectives read the same tensors.")
    require(same(first.detach(), second.detach()), case.objective, "two calls on the same outputs give different losses.")


def _off_target(case: _Case) -> None:
    """Outputs and annotations off target are undefined: nan there, and three more columns of it, change nothing."""
    t, extra = case.rows.tokens, 3
    want = case.gradients(case.total(), case.leaves)
    moved: _rows.Leaves = {}
    for key, leaf in case.leaves.items():
        x = leaf.detach()
        if x.shape[:2] == t.ids.shape:
            # A block has an output at every real token, and a score an input gradient.
            where = t.mask if key[1].startswith("hidden:") or key[1] in ("score_gradients", "token_scores") else t.target
            x = torch.cat([_rows.defined_on(where, x), torch.full((len(x), extra, *x.shape[2:]), torch.nan, dtype=x.dtype)], 1)
        moved[key] = x.requires_grad_()
    rows = _rows.widened(case.rows, extra)
    weights = case.objective.weights(rows)
    total, views = case.total(), _rows.views(moved)
    got = case.total(rows, views, weights)
    sentence = (
        "{} where outputs off target (prompt, padding) change; they are undefined there, so use "
        "torch.where(target, x, 0) before any arithmetic, not x * target."
    )
    require(_near(got, total), case.objective, sentence.format("the loss changes"))
    for key, g in case.gradients(got, moved).items():
        inside = g[:, : t.ids.shape[1]] if g.ndim >= 2 and g.shape[1] == t.ids.shape[1] + extra else g
        close = _near(inside, want[key]) and bool(g.isfinite().all())
        require(close, case.objective, sentence.format("the gradient changes"))
    for name, (values, by) in case.losses(rows, views).metrics.items():
        require(bool((values * by).isfinite().all()), case.objective, f"metric '{name}' is not finite where outputs off target are nan.")


def _units(case: _Case) -> list[list[int]]:
    """Rows that stay together: pairs, or groups."""
    if case.objective.bundle == "group":
        group = case.rows.tokens.group
        return [(group == g).nonzero().squeeze(1).tolist() for g in group.unique()]
    per = 2 if isinstance(case.rows, PairRows) else case.rows_per_loss
    return [list(range(i, i + per)) for i in range(0, case.size, per)]


def _split(case: _Case) -> None:
    update, units = case.losses(), _units(case)
    want = case.gradients(case.total(), case.leaves)
    order = torch.randperm(len(units), generator=torch.Generator().manual_seed(0)).tolist()
    total, sums = torch.zeros((), dtype=torch.float64), dict.fromkeys(update.metrics, 0.0)
    views = _rows.views(case.leaves)
    for part in (order[:1], order[1:]):
        numbers = torch.tensor(sorted(i for unit in part for i in units[unit]))
        losses = case.losses(case.rows.index(numbers), {view: outputs.index(numbers) for view, outputs in views.items()})
        total = total + (case.cut(numbers) / case.weights.count * losses.values).sum()
        for name, (values, by) in losses.metrics.items():
            sums[name] = sums.get(name, 0.0) + float((values * by).sum())
    sentence = (
        "{} of an update differs from the sum over its micro-batches; a loss may depend on nothing but its own row "
        "(or its pair, or with bundle 'group' its group): no mean over the batch inside."
    )
    close = _near(total, case.total())
    require(close, case.objective, sentence.format("the loss"))
    for key, g in case.gradients(total, case.leaves).items():
        require(_near(g, want[key]), case.objective, sentence.format("the gradient"))
    for name, (values, by) in update.metrics.items():
        close = abs(sums[name] - float((values * by).sum())) < 1e-9
        require(close, case.objective, f"metric '{name}' of an update differs from the sum over its micro-batches.")


def _empty_rows(case: _Case) -> None:
    """A pair of rows without any target token: the loss is that of the other rows."""
    gone = (2, 3)
    rows = _rows.emptied(case.rows, gone)
    weights = case.objective.weights(rows)
    per = case.size // weights.values.shape[0]
    weightless = float(weights.values[torch.tensor(gone)[::per] // per].abs().sum()) == 0.0
    require(weightless, case.objective, "rows without a target token have weight; they weigh 0 and do not count.")
    remaining = torch.tensor([i for i in range(case.size) if i not in gone])
    alone = case.objective.weights(rows.index(remaining))
    sentence = "rows without a target token change the loss of the remaining; they do not count."
    require(_near(weights.count.double(), alone.count.double()), case.objective, sentence)
    got = case.total(rows, None, weights)
    views = {view: outputs.index(remaining) for view, outputs in _rows.views(case.leaves).items()}
    require(_near(got, case.total(rows.index(remaining), views, alone)), case.objective, sentence)
    for g in case.gradients(got, case.leaves).values():
        clean = bool(g.isfinite().all()) and (g.ndim < 1 or g.shape[0] != case.size or float(g[list(gone)].abs().sum()) == 0.0)
        require(clean, case.objective, "rows without a target token get a gradient.")


__all__ = ["check_objective"]

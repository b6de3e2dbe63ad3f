"""Rows of eight short sequences with everything an objective or an advantage may read, and outputs that show what is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from advalign.interfaces import Objective
from advalign.testing._rules import BrokenRule
from advalign.types import (
    NEEDS,
    DemoRows,
    Distribution,
    FeedbackRows,
    LabelRows,
    Outputs,
    PairRows,
    RolloutRows,
    Rows,
    ScoreReader,
    Tokens,
    fit,
)

B, T, V, D = 8, 7, 5, 3
ANNOTATIONS = ("old_logprobs", "current_logprobs", "old_entropy", "ref_logprobs", "values", "anchor")
Leaves = dict[tuple[str, str], Tensor]  # {(view, need): tensor}


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tokens() -> Tokens:
    """Lengths 3 to 7 in seven columns, targets from the third token on, two groups of four rows."""
    place = torch.arange(T)[None]
    mask = place < torch.tensor([7, 4, 5, 6, 3, 7, 4, 6])[:, None]
    ids = torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(0)) * mask
    return Tokens(ids=ids, mask=mask, target=mask & (place >= 2), group=torch.arange(B) // 4, key=torch.arange(B))


def _demos(t: Tokens) -> DemoRows:
    return DemoRows(tokens=t)


def _pairs(t: Tokens) -> PairRows:
    return PairRows(tokens=t, ref_logprobs=-normal(B, T, seed=1).abs(), margin=normal(B // 2, seed=10).abs().repeat_interleave(2))


def _feedback(t: Tokens) -> FeedbackRows:
    desirable = torch.tensor([1, 0, 1, 1, 0, 1, 0, 0]).bool()
    anchor = torch.full((B,), 0.3, dtype=torch.float64)
    return FeedbackRows(tokens=t, desirable=desirable, ref_logprobs=-normal(B, T, seed=1).abs(), anchor=anchor)


def _labels(t: Tokens) -> LabelRows:
    return LabelRows(tokens=t, labels=torch.tensor([1, 0, 0, 1, 0, 1, 0, 0]), kind=torch.tensor([0, 1, 2, 0, 1, 0, 2, 2]))


def _rollouts(t: Tokens) -> RolloutRows:
    return RolloutRows(
        tokens=t,
        rewards=normal(B, 2, seed=2),
        advantages=normal(B, T, seed=3) * t.target,
        sampler_logprobs=-normal(B, T, seed=4).abs(),
        finished=torch.tensor([1, 0, 1, 1, 1, 1, 0, 1]).bool(),
        old_logprobs=-normal(B, T, seed=5).abs(),
        current_logprobs=-normal(B, T, seed=11).abs(),
        ref_logprobs=-normal(B, T, seed=6).abs(),
        values=normal(B, T, seed=7),
        returns=normal(B, T, seed=8),
        old_entropy=normal(B, T, seed=9).abs(),
    )


BUILDERS: dict[type[Rows], Callable[[Tokens], Any]] = {
    DemoRows: _demos,
    PairRows: _pairs,
    FeedbackRows: _feedback,
    LabelRows: _labels,
    RolloutRows: _rollouts,
}


def with_annotations(rows: Any, declared: frozenset[str]) -> Any:
    """The rows without the annotations that are not declared."""
    names = {f.name for f in dataclasses.fields(rows)}
    return dataclasses.replace(rows, **{name: None for name in ANNOTATIONS if name in names and name not in declared})


def defined_on(where: Bool[Tensor, "B T"], x: Tensor) -> Tensor:
    """`x` where it is defined, nan elsewhere."""
    return torch.where(where.reshape(*where.shape, *[1] * (x.ndim - 2)), x, torch.nan)


def widened(rows: Any, columns: int) -> Any:
    """The same rows in a wider batch, with nan in every floating-point column off target."""
    t = rows.tokens
    wide: dict[str, Any] = {}
    for f in dataclasses.fields(rows):
        x = getattr(rows, f.name)
        if isinstance(x, Tokens):
            wide[f.name] = x.fit(x.ids.shape[1] + columns)
        elif isinstance(x, Tensor) and x.shape == t.ids.shape:
            wide[f.name] = fit(defined_on(t.target, x) if x.is_floating_point() else x, t.ids.shape[1] + columns)
    return dataclasses.replace(rows, **wide)


def emptied(rows: Any, numbers: tuple[int, ...]) -> Any:
    """The rows with nothing in the rows of these numbers."""
    stays = torch.ones(rows.tokens.ids.shape[0], 1, dtype=torch.bool)
    stays[list(numbers)] = False
    t = rows.tokens
    return dataclasses.replace(rows, tokens=dataclasses.replace(t, mask=t.mask & stays, target=t.target & stays))


class DeclaredOutputs(Outputs):
    """Outputs that say which one was read without being declared."""

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if value is None and name in NEEDS:
            raise BrokenRule(f"it reads the output '{name}', which `reads` does not declare for this view.")
        return value

    def map_tensors(self, f: Callable[[Tensor], Tensor]) -> Any:
        columns = {name: object.__getattribute__(self, name) for name in NEEDS}
        changed = Outputs(**columns).map_tensors(f)
        return DeclaredOutputs(**{name: getattr(changed, name) for name in NEEDS})


def leaves(objective: Objective, width: tuple[int, int]) -> Leaves:
    """One random leaf for every output that the objective declares, with gradient."""
    tensors: Leaves = {}
    for i, (view, names) in enumerate(sorted(objective.reads.items())):
        for j, name in enumerate(sorted(names)):
            wide = name in ("distribution", "score_gradients") or name.startswith("hidden:")
            shape = (*width, D) if wide else {"scores": width[:1], "class_logits": (width[0], V), "reader": (D,)}.get(name, width)
            x = normal(*shape, seed=30 + 10 * i + j)
            tensors[view, name] = (-x.abs() if name == "logprobs" else x).requires_grad_()
    return tensors


def views(tensors: Mapping[tuple[str, str], Tensor]) -> dict[str, Outputs]:
    """The leaves as the outputs of each view, with nothing else in them."""
    columns: dict[str, dict[str, Any]] = {}
    for (view, name), x in tensors.items():
        of_view = columns.setdefault(view, {})
        if name.startswith("hidden:"):
            of_view.setdefault("hidden", {})[name.removeprefix("hidden:")] = x
        elif name == "reader":
            of_view[name] = ScoreReader(score=partial(_mean_along, x.detach()))
        else:
            of_view[name] = Distribution(hidden=x, head=_head) if name == "distribution" else x
    return {view: DeclaredOutputs(**of_view) for view, of_view in columns.items()}


def _head(hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
    return hidden @ normal(V, D, seed=20).t().to(hidden)


def _mean_along(direction: Tensor, hidden: Tensor, mask: Tensor) -> Tensor:
    """A discriminator of hidden states that is not linear: the mean of tanh(h . direction) over real tokens."""
    per_token = torch.tanh(torch.where(mask[..., None], hidden, 0.0) @ direction)
    return torch.where(mask, per_token, 0.0).sum(1) / mask.sum(1).clamp(min=1)

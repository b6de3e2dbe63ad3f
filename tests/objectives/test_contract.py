"""What every objective must do; adding a file to the folder adds it to the table with its defaults.

Outputs are random leaves with exactly the fields an objective declared: reading more fails here. Float64.
"""

import inspect
from dataclasses import fields, is_dataclass, replace

import pytest
import torch
from helpers.objectives import TABLE, B, T, build, outputs, total, views

from advalign import plugins
from advalign.errors import ConfigError
from advalign.interfaces import Objective
from advalign.types import NEEDS, Tokens, fit


def cut(x: torch.Tensor, per: int, numbers: torch.Tensor) -> torch.Tensor:
    """Rows of a weight or loss, which may be one per pair (`per` = 2)."""
    return x[numbers[::per] // per]


def per_loss(term: Objective, rows) -> int:
    return B // term.weights(rows).values.shape[0]


def bundles(term: Objective, rows) -> list[list[int]]:
    if getattr(term, "bundle", "row") == "group":
        return [(rows.tokens.group == g).nonzero().squeeze(1).tolist() for g in rows.tokens.group.unique()]
    per = per_loss(term, rows)
    return [list(range(i, i + per)) for i in range(0, B, per)]


@pytest.fixture(params=TABLE, ids=str)
def term(request) -> Objective:
    return request.param


def test_is_a_frozen_dataclass_that_names_real_things(term):
    assert is_dataclass(term)
    assert type(term).__dataclass_params__.frozen
    options = [f for f in fields(term) if f.name not in {g.name for g in fields(Objective)}]
    assert len(options) <= 8
    assert "kind" not in {f.name for f in options}  # in a configuration that word names the file
    assert all(f.kw_only for f in fields(term))
    assert term.view in term.reads
    for names in term.reads.values():
        assert names
        assert {name.partition(":")[0] for name in names} <= set(NEEDS)
    for name in term.columns:
        assert any(name in {f.name for f in fields(cls)} for cls in term.row_types)
    assert plugins.summary(type(term))


def test_losses_have_the_shape_of_the_weights_and_a_finite_gradient(term):
    rows = build(term)
    views, leaves = outputs(term)
    losses, weights = term.losses(rows, views), term.weights(rows)
    assert losses.values.shape == weights.values.shape
    total(term, rows, views).backward()
    for key, x in leaves.items():
        assert x.grad is None or bool(x.grad.isfinite().all()), key
    on_view = [x.grad for (view, _), x in leaves.items() if view == term.view]
    assert any(g is not None and float(g.abs().sum()) > 0 for g in on_view)  # an adversary has something to climb
    for name, (values, weight) in losses.metrics.items():
        assert values.shape == weight.shape, name
        assert not values.requires_grad, name
        assert bool((values * weight).isfinite().all()), name


def test_weights_average(term):
    # A constant loss of 1 gives at most 1, and exactly 1 where weights are a mean.
    weights = term.weights(build(term))
    assert bool((weights.values >= 0).all())
    if weights.values.ndim == 3:  # several losses per token, each a mean of its own
        weights = replace(weights, values=weights.values[..., 0])
    assert 0 < float(weights.values.sum() / weights.count) <= 1 + 1e-12


def test_any_split_into_micro_batches_adds_up(term):
    rows, per = build(term), per_loss(term, build(term))
    views, leaves = outputs(term)
    whole = term.losses(rows, views)
    weights = term.weights(rows)
    want = total(term, rows, views)
    want.backward()
    gradients = {key: x.grad.clone() for key, x in leaves.items() if x.grad is not None}
    units = bundles(term, rows)
    order = torch.randperm(len(units), generator=torch.Generator().manual_seed(0)).tolist()
    got, sums = torch.zeros((), dtype=torch.float64), dict.fromkeys(whole.metrics, 0.0)
    for part in (order[:1], order[1:]):
        numbers = torch.tensor(sorted(i for u in part for i in units[u]))
        losses = term.losses(rows.index(numbers), {view: o.index(numbers) for view, o in views.items()})
        got = got + (cut(weights.values, per, numbers) / weights.count * losses.values).sum()
        for name, (values, weight) in losses.metrics.items():
            sums[name] += float((values * weight).sum())
    torch.testing.assert_close(got, want, rtol=0, atol=1e-13)
    for x in leaves.values():
        x.grad = None
    got.backward()
    for key, g in gradients.items():
        torch.testing.assert_close(leaves[key].grad, g, rtol=0, atol=1e-13)
    for name, (values, weight) in whole.metrics.items():
        assert sums[name] == pytest.approx(float((values * weight).sum()), abs=1e-12), name


def test_empty_rows_count_nowhere(term):
    # Rows 2 and 3 (a pair) have no token: the loss is that of the other rows alone, and they get no gradient.
    rows = build(term, empty=(2, 3))
    views, leaves = outputs(term)
    got = total(term, rows, views)
    got.backward()
    keep = torch.tensor([0, 1, 4, 5, 6, 7])
    alone = total(term, rows.index(keep), {view: o.index(keep) for view, o in views.items()})
    torch.testing.assert_close(got, alone, rtol=0, atol=1e-14)
    assert float(cut(term.weights(rows).values, per_loss(term, rows), torch.tensor([2, 3])).abs().sum()) == 0.0
    for x in leaves.values():
        assert x.grad is None or float(x.grad[2:4].abs().sum()) == 0.0


def test_padding_and_whatever_lies_off_target_change_nothing(term):
    # Off target outputs and annotations are undefined: nan there, and three more columns of it, move no bit of loss or gradient.
    rows = build(term)
    seen, leaves = outputs(term)
    want = total(term, rows, seen)
    want.backward()
    target = rows.tokens.target
    columns = {f.name: getattr(rows, f.name) for f in fields(rows)}
    wide = replace(
        rows,
        **{
            name: x.fit(T + 3) if isinstance(x, Tokens) else fit(torch.where(target, x, torch.nan), T + 3)
            for name, x in columns.items()
            if isinstance(x, Tokens) or (isinstance(x, torch.Tensor) and x.shape == (B, T))
        },
    )
    moved = {}
    for key, x in leaves.items():
        x = x.detach()
        if x.shape[:2] == (B, T):
            # A block has an output at every real token, and a score a slope.
            readable = rows.tokens.mask if key[1].startswith("hidden:") or key[1] == "score_gradients" else target
            x = torch.where(readable.reshape(B, T, *[1] * (x.ndim - 2)), x, torch.nan)
            x = torch.cat([x, torch.full((B, 3, *x.shape[2:]), torch.nan, dtype=x.dtype)], 1)
        moved[key] = x.requires_grad_()
    got = total(term, wide, views(moved))
    torch.testing.assert_close(got, want, rtol=1e-15, atol=1e-15)
    got.backward()
    for key, x in leaves.items():
        if x.grad is not None:
            after = moved[key].grad if x.ndim < 2 or x.shape[:2] != (B, T) else moved[key].grad[:, :T]
            torch.testing.assert_close(after, x.grad, rtol=1e-15, atol=1e-15)
            assert float(moved[key].grad.sum()) == pytest.approx(float(x.grad.sum()), abs=1e-12)
    for name, (values, weight) in term.losses(wide, views(moved)).metrics.items():
        assert bool((values * weight).isfinite().all()), name


def test_a_wrong_choice_is_refused_with_the_nearest(term):
    defaults = inspect.signature(type(term)).parameters
    for name in ("weighting", "loss", "divergence", "estimator", "of", "ratio"):
        if name in defaults:
            with pytest.raises(ConfigError, match=rf"objectives.{plugins.kind_of(type(term))}.{name}: no .*Known: .*Did you mean"):
                replace(term, **{name: getattr(term, name) + "x"})

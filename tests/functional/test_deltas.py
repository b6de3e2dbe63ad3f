"""Helpers of continuous adversaries, by hand: three positions, one of them closed, in one and two dimensions."""

import pytest
import torch

from advalign.functional import balls, deltas
from advalign.interfaces import PerturbationContext
from advalign.types import ThreatModel


def context(dtype=torch.float64, radius=0.5):
    allowed = torch.tensor([[True, True, False], [True, False, False]])
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    shapes = {"embedding": (3, 2), "layer:0": (3, 1)}
    return PerturbationContext(shapes=shapes, allowed=allowed, radius=radius, dtype=dtype, generators=generators)


def test_a_start_has_every_site_and_the_precision_of_deltas():
    where = context(dtype=torch.bfloat16)
    for delta in (deltas.zeros(where), deltas.uniform(where, ThreatModel(radius=1.0))):
        assert {site: tuple(x.shape) for site, x in delta.items()} == {"embedding": (2, 3, 2), "layer:0": (2, 3, 1)}
        assert {x.dtype for x in delta.values()} == {torch.float32}
        assert all(torch.count_nonzero(x[~where.allowed]) == 0 for x in delta.values())


@pytest.mark.parametrize("scope", ["token", "row"])
def test_a_uniform_start_is_inside_the_ball_of_the_context(scope):
    delta = deltas.uniform(context(), ThreatModel(radius=9.0, scope=scope))  # the radius that counts is the context's
    assert all(0 < balls.norm(x, ball="L2", scope=scope).max() <= 0.5 for x in delta.values())


def test_a_step_is_along_the_gradient_and_projected():
    """From 0.4 along a gradient (3, 4), of direction (0.6, 0.8), by 0.1: (0.06, 0.08). By 2 it ends on the sphere: (0.3, 0.4).
    A closed position does not move, though its gradient is nan."""
    where, threat = context(), ThreatModel(radius=1.0)
    gradient = torch.full((2, 3, 2), float("nan"), dtype=torch.float64)
    gradient[where.allowed] = torch.tensor([3.0, 4.0], dtype=torch.float64)
    start = {"embedding": torch.zeros(2, 3, 2, dtype=torch.float64)}
    for length, end in ((0.1, [0.06, 0.08]), (2.0, [0.3, 0.4])):
        moved = deltas.step(where, threat, start, {"embedding": gradient}, length)["embedding"]
        torch.testing.assert_close(moved[where.allowed], torch.tensor([end] * 3, dtype=torch.float64))
        assert torch.count_nonzero(moved[~where.allowed]) == 0


def test_select_takes_all_sites_of_a_delta_together():
    ones, zeros = ({"a": torch.full((2, 1, 1), x), "b": torch.full((2, 1, 2), x)} for x in (1.0, 0.0))
    selected = deltas.select(torch.tensor([True, False]), ones, zeros)
    assert {site: x[:, 0, 0].tolist() for site, x in selected.items()} == {"a": [1.0, 0.0], "b": [1.0, 0.0]}
    assert {site: edit.add is selected[site] for site, edit in deltas.as_edits(selected).items()} == {"a": True, "b": True}


@pytest.mark.parametrize(("ball", "power"), [("L2", 0.5), ("Linf", 0.0), ("L1", 1.0)])
def test_a_cube_of_half_side_one_over_its_size_is_inscribed_in_the_unit_ball(ball, power):
    """Rows of 2 and 1 allowed tokens of 2 numbers: M = 4 and 2 per row, 2 per token. Its corner has norm M^(1/p) / M^(1/p) = 1."""
    where = context()
    rows = deltas.cube_size(where, ThreatModel(radius=1.0, ball=ball, scope="row"), "embedding")
    assert rows.flatten().tolist() == pytest.approx([4**power, 2**power])
    corner = where.allowed[..., None].double() * torch.ones(2, 3, 2, dtype=torch.float64) / rows
    assert balls.norm(corner, ball=ball, scope="row").flatten().tolist() == pytest.approx([1.0, 1.0])
    tokens = deltas.cube_size(where, ThreatModel(radius=1.0, ball=ball, scope="token"), "embedding")
    assert tokens.flatten().tolist() == pytest.approx([2**power, 2**power])

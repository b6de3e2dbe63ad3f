"""Balls: closed forms, the dual norm, scipy as a slow projection, and independence of padding."""

import pytest
import scipy.optimize
import scipy.stats
import torch

from advalign.errors import ConfigError
from advalign.functional import balls
from advalign.types import ThreatModel

P = {"L2": 2.0, "Linf": float("inf"), "L1": 1.0}
DUAL = {"L2": 2.0, "Linf": 1.0, "L1": float("inf")}
every_ball = pytest.mark.parametrize("ball", P)
every_scope = pytest.mark.parametrize("scope", ["token", "row"])


def random_x(generator, n=3, t=4, d=5):
    return torch.randn(n, t, d, generator=generator, dtype=torch.float64)


def streams(*keys):
    return [torch.Generator().manual_seed(key) for key in keys]


def test_projection_by_hand():
    x = torch.tensor([[[3.0, -4.0]]], dtype=torch.float64)
    # L2: 5 -> 1, so times 1/5. Linf: clipped. L1 radius 3: threshold t with (3 - t) + (4 - t) = 3, t = 2.
    for ball, radius, expected in [("L2", 1.0, [0.6, -0.8]), ("Linf", 3.5, [3.0, -3.5]), ("L1", 3.0, [1.0, -2.0])]:
        got = balls.project(x, ball=ball, scope="token", radius=radius)
        torch.testing.assert_close(got[0, 0], torch.tensor(expected, dtype=torch.float64))


@every_ball
def test_projection_is_the_nearest_point_scipy(ball, generator):
    x = random_x(generator, 1, 1, 4)
    radius = 0.7
    inside = {"L2": lambda y: radius**2 - (y**2).sum(), "Linf": lambda y: radius - abs(y), "L1": lambda y: radius - abs(y).sum()}[ball]
    flat = x.flatten().numpy()
    slow = scipy.optimize.minimize(
        lambda y: ((y - flat) ** 2).sum(), flat * 0.05, constraints={"type": "ineq", "fun": inside}, method="SLSQP", tol=1e-12
    )
    got = balls.project(x, ball=ball, scope="token", radius=radius).flatten().numpy()
    assert abs(got - slow.x).max() < 1e-4  # the oracle stalls at the kinks of the L1 ball


@every_ball
@every_scope
def test_projection_keeps_what_is_inside_and_reaches_the_border(ball, scope, generator):
    x = random_x(generator)
    size = balls.norm(x, ball=ball, scope=scope)
    radius = float(size.median())
    y = balls.project(x, ball=ball, scope=scope, radius=radius)
    after = balls.norm(y, ball=ball, scope=scope)
    torch.testing.assert_close(after, size.clamp(max=radius))
    torch.testing.assert_close(balls.project(y, ball=ball, scope=scope, radius=radius), y)
    whole = (size <= radius)[..., None].expand_as(x)
    assert torch.equal(y[whole], x[whole])


@every_ball
def test_row_scope_is_token_scope_of_one_long_token(ball, generator):
    x = random_x(generator)
    long = x.reshape(3, 1, 20)
    for f in (lambda z, s: balls.project(z, ball=ball, scope=s, radius=0.5), lambda z, s: balls.steepest(z, ball=ball, scope=s)):
        torch.testing.assert_close(f(x, "row"), f(long, "token").reshape(x.shape), rtol=1e-14, atol=0)


@every_ball
@every_scope
def test_steepest_attains_the_dual_norm(ball, scope, generator):
    """max <d, g> over ||d||_p <= 1 is ||g||_q."""
    g = random_x(generator)
    d = balls.steepest(g, ball=ball, scope=scope)
    axes = (2,) if scope == "token" else (1, 2)
    parts = [(d[n] * g[n]).sum(-1) if scope == "token" else (d[n] * g[n]).sum()[None] for n in range(3)]
    torch.testing.assert_close(torch.stack(parts), torch.linalg.vector_norm(g, DUAL[ball], dim=axes).reshape(3, -1))
    torch.testing.assert_close(balls.norm(d, ball=ball, scope=scope), torch.ones(3, 4 if scope == "token" else 1, dtype=torch.float64))


@every_ball
def test_steepest_of_zero_is_zero_and_of_tiny_is_unit(ball):
    tiny = torch.tensor([[[0.0, 0.0], [3e-30, -4e-30]]])  # squares underflow in float32
    d = balls.steepest(tiny, ball=ball, scope="token")
    assert torch.equal(d[0, 0], torch.zeros(2))
    assert balls.norm(d, ball=ball, scope="token")[0, 1].item() == pytest.approx(1.0, abs=1e-6)


@every_ball
@every_scope
def test_sample_is_uniform(ball, scope):
    """Volume scales as radius^M: (||x|| / r)^M is uniform on (0, 1), and the law has every sign and coordinate symmetry."""
    n, dim, radius = 3000, 2, 0.3
    length = 1 if scope == "token" else 2
    allowed = torch.ones(n, length, dtype=torch.bool)
    shared = torch.Generator().manual_seed(5)
    x = balls.sample(allowed, dim, ball=ball, scope=scope, radius=radius, generators=[shared] * n, dtype=torch.float64)
    numbers = length * dim
    share = (balls.norm(x, ball=ball, scope=scope).flatten() / radius) ** numbers
    assert scipy.stats.kstest(share.numpy(), "uniform").pvalue > 1e-3
    flat = x.reshape(n, numbers)
    cosine = torch.corrcoef(flat.T) - torch.eye(numbers, dtype=torch.float64)
    assert cosine.abs().max() < 4 / n**0.5
    assert (flat.mean(0) / flat.std(0)).abs().max() < 4 / n**0.5
    assert scipy.stats.ks_2samp(flat[:, 0].numpy(), -flat[:, -1].numpy()).pvalue > 1e-3


@every_ball
@every_scope
def test_sample_does_not_depend_on_padding_order_or_split(ball, scope):
    allowed = torch.tensor([[0, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]], dtype=torch.bool)
    kwargs = {"ball": ball, "scope": scope, "radius": 1.0}
    x = balls.sample(allowed, 3, generators=streams(10, 11, 12), **kwargs)
    wide = balls.sample(torch.nn.functional.pad(allowed, (0, 5)), 3, generators=streams(10, 11, 12), **kwargs)
    assert torch.equal(wide[:, :4], x)
    assert torch.equal(wide[:, 4:], torch.zeros_like(wide[:, 4:]))
    swapped = balls.sample(allowed[[2, 1, 0]], 3, generators=streams(12, 11, 10), **kwargs)
    assert torch.equal(swapped[[2, 1, 0]], x)
    alone = balls.sample(allowed[:1, 1:3], 3, generators=streams(10), **kwargs)
    assert torch.equal(alone, x[:1, 1:3])
    assert torch.equal(x[~allowed], torch.zeros_like(x[~allowed]))


def test_names_that_do_not_exist_are_refused():
    x = torch.zeros(1, 1, 1)
    with pytest.raises(ConfigError, match="Did you mean 'Linf'"):
        balls.project(x, ball="linf", scope="token", radius=1.0)
    with pytest.raises(ConfigError, match="no scope 'rows'"):
        balls.norm(x, ball="L2", scope="rows")
    with pytest.raises(ConfigError, match=r"ThreatModel\.where: no region 'promt'.*'prompt'"):
        ThreatModel(radius=1.0, where="promt")
    with pytest.raises(ConfigError, match=r"ThreatModel\.sites\.0: 'embeding' given; 'embedding' or 'layer:k'"):
        ThreatModel(radius=1.0, sites=("embeding",))
    with pytest.raises(ConfigError, match=r"ThreatModel\.radius: -1 given"):
        ThreatModel(radius=-1.0)

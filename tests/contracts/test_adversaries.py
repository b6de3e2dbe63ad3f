"""Contract of every adversary, by its file: raises a closed-form inner loss, stays in its ball, ignores padding, order and split."""

import dataclasses
import math

import pytest
import torch
from torch.nn import functional as F

from advalign import adversaries, plugins
from advalign.errors import ConfigError
from advalign.functional import balls
from advalign.protocols import Adversary, Ground

DUAL = {"L2": 2.0, "Linf": 1.0, "L1": float("inf")}
SITE = "embedding"
every_adversary = pytest.mark.parametrize("cls", plugins.all("adversaries"), ids=lambda cls: cls.__name__)
every_ball = pytest.mark.parametrize("ball", DUAL)
every_scope = pytest.mark.parametrize("scope", ["token", "row"])


def ground(allowed, radius, keys, dim=3, dtype=torch.float64):
    generators = [torch.Generator().manual_seed(int(key)) for key in keys]
    return Ground(shapes={SITE: (allowed.shape[1], dim)}, allowed=allowed, radius=radius, dtype=dtype, generators=generators)


def run(adversary, where, loss_of):
    """The engine's loop: ask, losses, gradients, tell; one last ask. Returns the final delta and the first one."""
    state = adversary.start(where)
    first = adversary.ask(state)[SITE].add
    for _ in range(adversary.steps):
        delta = adversary.ask(state)[SITE].add.detach().requires_grad_()
        losses = loss_of(delta)
        (gradient,) = torch.autograd.grad(losses.sum(), delta)
        state = adversary.tell(state, losses.detach(), {SITE: gradient})
    return adversary.ask(state)[SITE].add, first


@pytest.fixture
def linear():
    """Mean-pooled linear binary classifier over 4 padded tokens: margin y (w . mean_t(x_t + d_t)); true lengths 4, 2, 3."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 4, 3, generator=generator, dtype=torch.float64)
    w = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    allowed = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]], dtype=torch.bool)
    y = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)

    def margin(delta, rows=slice(None)):
        mask = F.pad(allowed[rows], (0, delta.shape[1] - 4))[..., None]
        hidden = F.pad(x[rows], (0, 0, 0, delta.shape[1] - 4)) + delta
        return y[rows] * ((hidden * mask).sum(1) / mask.sum(1) @ w)

    return {"allowed": allowed, "w": w, "margin": margin, "loss": lambda *a: F.softplus(-margin(*a))}


@every_adversary
@every_ball
@every_scope
def test_stays_in_its_ball_and_off_what_is_not_allowed(cls, ball, scope, linear):
    adversary = cls(radius=0.4, ball=ball, scope=scope)
    assert isinstance(adversary, Adversary)
    delta, first = run(adversary, ground(linear["allowed"], 0.4, range(3)), linear["loss"])
    for each in (delta, first):
        assert balls.norm(each, ball=ball, scope=scope).max() <= 0.4 * (1 + 1e-12)
        assert torch.equal(each[~linear["allowed"]], torch.zeros_like(each[~linear["allowed"]]))
    assert delta.abs().max() > 0
    zero, _ = run(adversary, ground(linear["allowed"], 0.0, range(3)), linear["loss"])
    assert torch.equal(zero, torch.zeros_like(zero))


@every_adversary
@every_scope
def test_does_not_depend_on_padding_order_or_split(cls, scope, linear):
    adversary = cls(radius=0.4, scope=scope)
    delta, _ = run(adversary, ground(linear["allowed"], 0.4, range(3)), linear["loss"])
    wide, _ = run(adversary, ground(F.pad(linear["allowed"], (0, 3)), 0.4, range(3)), linear["loss"])
    torch.testing.assert_close(wide[:, :4], delta, rtol=0, atol=1e-14)
    order = torch.tensor([2, 0, 1])
    moved, _ = run(adversary, ground(linear["allowed"][order], 0.4, order), lambda d: linear["loss"](d, order))
    torch.testing.assert_close(moved, delta[order], rtol=0, atol=1e-14)
    alone, _ = run(adversary, ground(linear["allowed"][1:2], 0.4, [1]), lambda d: linear["loss"](d, slice(1, 2)))
    torch.testing.assert_close(alone, delta[1:2], rtol=0, atol=1e-14)


@every_adversary
def test_a_bfloat16_model_gets_float32_deltas(cls, linear):
    where = ground(linear["allowed"], 1e-5, range(3), dtype=torch.bfloat16)
    adversary = cls(radius=1e-5)
    assert adversary.ask(adversary.start(where))[SITE].add.dtype == torch.float32


@every_adversary
def test_zero_or_masked_gradients_never_make_nan(cls, linear):
    adversary = cls(radius=0.4)
    state = adversary.start(ground(linear["allowed"], 0.4, range(3)))
    before = adversary.ask(state)[SITE].add
    gradient = torch.zeros_like(before)
    gradient[~linear["allowed"]] = float("nan")
    after = adversary.ask(adversary.tell(state, torch.zeros(3, dtype=torch.float64), {SITE: gradient}))[SITE].add
    torch.testing.assert_close(after, before, rtol=0, atol=1e-15)


@every_adversary
def test_a_misspelt_threat_is_refused(cls):
    with pytest.raises(ConfigError, match="Did you mean 'token'"):
        cls(radius=0.1, scope="tokens")


@every_ball
@every_scope
def test_pgd_attains_the_worst_case_of_a_linear_model(ball, scope, linear):
    """Margin lowered by at most r ||w||_q per token ball; one ball per row over n tokens: ||(w/n, ..., w/n)||_q r."""
    radius = 0.4
    adversary = adversaries.PGD(radius=radius, ball=ball, scope=scope, steps=60, step_size=0.2)
    delta, _ = run(adversary, ground(linear["allowed"], radius, range(3)), linear["loss"])
    clean = linear["margin"](torch.zeros_like(delta))
    for row, n in enumerate([4, 2, 3]):
        share = linear["w"].repeat(n) / n
        drop = radius * torch.linalg.vector_norm(share, DUAL[ball]) if scope == "row" else radius * linear["w"].norm(p=DUAL[ball])
        # L1 moves one coordinate a step, so after 60 steps it is near, not at, its vertex.
        assert linear["margin"](delta)[row].item() == pytest.approx((clean[row] - drop).item(), abs=2e-3 if ball == "L1" else 1e-9)


def test_pgd_solves_the_trust_region_problem():
    """max over ||d|| <= r of d'Ad/2 + g'd: the multiplier solves ||(l I - A)^-1 g|| = r with l above the largest eigenvalue."""
    generator = torch.Generator().manual_seed(3)
    a = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    a, g, radius = (a + a.T) / 2, torch.randn(3, generator=generator, dtype=torch.float64), 0.7
    low = torch.linalg.eigvalsh(a)[-1].item() + 1e-9
    high = low + 1e3
    for _ in range(200):
        middle = (low + high) / 2
        longer = torch.linalg.solve(middle * torch.eye(3, dtype=torch.float64) - a, g).norm() > radius
        low, high = (middle, high) if longer else (low, middle)
    d = torch.linalg.solve(high * torch.eye(3, dtype=torch.float64) - a, g)
    best = (d @ a @ d / 2 + g @ d).item()

    def loss(delta):
        flat = delta[:, 0]
        return (flat @ a * flat).sum(1) / 2 + flat @ g

    adversary = adversaries.PGD(radius=radius, steps=400, step_size=0.3)
    delta, _ = run(adversary, ground(torch.ones(8, 1, dtype=torch.bool), radius, range(8)), loss)  # eight restarts
    assert loss(delta).max().item() == pytest.approx(best, abs=1e-9)


def test_pgd_keep_best_is_per_delta():
    """Two deltas, losses told: first (1, 5), then (3, 2): the first keeps its second iterate, the second its first."""
    adversary = adversaries.PGD(radius=1.0, steps=2, keep="best")
    state = adversary.start(ground(torch.ones(2, 1, dtype=torch.bool), 1.0, range(2)))
    asked = []
    for losses in ([1.0, 5.0], [3.0, 2.0]):
        asked.append(adversary.ask(state)[SITE].add)
        gradient = torch.ones_like(asked[-1])
        state = adversary.tell(state, torch.tensor(losses, dtype=torch.float64), {SITE: gradient})
    final = adversary.ask(state)[SITE].add
    assert torch.equal(final[0], asked[1][0])
    assert torch.equal(final[1], asked[0][1])
    assert not torch.equal(asked[0], asked[1])


def test_pgd_from_zero_says_so_and_does_not_move_a_divergence():
    """VAT by hand: KL near zero is d'Hd/2, whose gradient vanishes at 0; from a random start it climbs to r² λ_max / 2."""
    hessian = torch.diag(torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64))
    loss = lambda delta: ((delta[:, 0] @ hessian) * delta[:, 0]).sum(1) / 2  # noqa: E731
    where = ground(torch.ones(1, 1, dtype=torch.bool), 0.1, [0])
    still, moving = (adversaries.PGD(radius=0.1, steps=100, step_size=0.5, random_start=start) for start in (False, True))
    assert (still.starts_at_zero, moving.starts_at_zero) == (True, False)
    assert torch.equal(run(still, where, loss)[0], torch.zeros(1, 1, 3, dtype=torch.float64))
    assert loss(run(moving, where, loss)[0]).item() == pytest.approx(0.1**2 * 5.0 / 2, rel=1e-9)


def test_noise_cube_is_neftune():
    """U(-1, 1) α / sqrt(n d): E ||δ||² = α² / 3 per row whatever n, and no number leaves the cube."""
    rows, n, dim, alpha = 400, 6, 8, 5.0
    allowed = torch.zeros(rows, 9, dtype=torch.bool)
    allowed[:, :n] = True
    adversary = adversaries.Noise(radius=alpha, distribution="uniform_cube", scope="row", relative_to="absolute")
    delta = adversary.ask(adversary.start(ground(allowed, alpha, range(rows), dim=dim)))[SITE].add
    half = alpha / math.sqrt(n * dim)
    assert 0.99 * half < delta.abs().max().item() <= half
    # Var of a squared uniform is 4/45: the mean over 400 rows of 48 numbers has relative error sqrt(4/45 * 9 / 19200) = 0.65 %.
    assert delta.pow(2).sum((1, 2)).mean().item() == pytest.approx(alpha**2 / 3, rel=0.03)


@pytest.mark.parametrize("distribution", ["uniform_ball", "uniform_cube", "gaussian"])
@every_ball
@every_scope
def test_every_noise_stays_in_its_ball(distribution, ball, scope):
    adversary = adversaries.Noise(radius=0.3, ball=ball, scope=scope, distribution=distribution)
    delta = adversary.ask(adversary.start(ground(torch.ones(50, 4, dtype=torch.bool), 0.3, range(50))))[SITE].add
    size = balls.norm(delta, ball=ball, scope=scope)
    assert size.max() <= 0.3 * (1 + 1e-12)
    assert size.min() > 0


@pytest.mark.parametrize("bad", [{"steps": 0}, {"step_size": -0.1}, {"keep": "first"}, {"radius": -1.0}])
def test_pgd_refuses_nonsense(bad):
    with pytest.raises(ConfigError, match=f"pgd.{next(iter(bad))}"):
        adversaries.PGD(**bad)


def test_plugins_are_frozen_and_keyword_only():
    adversary = adversaries.PGD(radius=0.1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        adversary.radius = 0.2
    with pytest.raises(TypeError):
        adversaries.PGD(0.1)

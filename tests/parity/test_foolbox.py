"""Projections, unit steps, uniform starts, PGD and VAT as foolbox 3.3 computes them, on a small classifier over embeddings.

foolbox attacks whole inputs, so its ball is that of scope "row"; bounds are so wide that they never clip.
"""

import math

import pytest
import scipy.stats
import torch
from helpers.perturbations import SITE, climb, perturbation_context, run
from torch import nn
from torch.nn import functional as F

from advalign import adversaries
from advalign.functional import balls

foolbox = pytest.importorskip("foolbox", reason="foolbox is not installed: nothing to compare with")
import eagerpy as ep  # noqa: E402
from foolbox.attacks import gradient_descent_base as theirs  # noqa: E402

ROWS, LENGTH, DIM, RADIUS = 6, 3, 4, 0.8
ALL = torch.ones(ROWS, LENGTH, dtype=torch.bool)
pytestmark = pytest.mark.usefixtures("double")


class Pooled(nn.Module):
    """tanh of each token's embedding, mean over tokens, three classes."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.head = nn.Linear(DIM, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.inside(x)).mean(1))


@pytest.fixture
def model():
    torch.manual_seed(3)
    net = Pooled().eval().requires_grad_(False)
    return net, torch.randn(ROWS, LENGTH, DIM), torch.tensor([0, 1, 2, 0, 1, 2])


def attacked(model, attack):
    net, x, y = model
    wrapped = foolbox.PyTorchModel(net, bounds=(-1e3, 1e3), device="cpu")
    return attack.run(wrapped, x, foolbox.criteria.Misclassification(y), epsilon=RADIUS) - x


def ours(model, adversary):
    net, x, y = model
    context = perturbation_context(ALL, RADIUS, range(ROWS), dim=DIM)
    return run(adversary, context, lambda d: F.cross_entropy(net(x + d), y, reduction="none"))[0]


def test_projections_and_unit_steps():
    x = torch.randn(ROWS, LENGTH, DIM)
    e = ep.astensor(x)
    l2 = theirs.clip_lp_norms(e, norm=RADIUS, p=2).raw
    torch.testing.assert_close(balls.project(x, ball="L2", scope="row", radius=RADIUS), l2, rtol=0, atol=1e-14)
    linf = ep.clip(e, -RADIUS, RADIUS).raw
    torch.testing.assert_close(balls.project(x, ball="Linf", scope="row", radius=RADIUS), linf, rtol=0, atol=0)
    unit = theirs.normalize_lp_norms(e, p=2).raw
    torch.testing.assert_close(balls.steepest(x, ball="L2", scope="row"), unit, rtol=0, atol=1e-14)


def test_neither_of_their_l1_projections_is_one():
    """Ours differs on purpose. L1PGD shrinks the whole vector: in the ball, not the nearest point there. Sparse L1 descent counts the first
    dropped coordinate among the kept: of (3, -4, 0.1) in radius 3 it makes t = (7.1 - 3) / 3 and leaves 2 (3.5 - t) = 4.27 in a ball of 3;
    the threshold is t = (7 - 3) / 2, and the projection (1, -2, 0)."""
    x = torch.randn(ROWS, LENGTH, DIM)
    shrunk = theirs.clip_lp_norms(ep.astensor(x), norm=RADIUS, p=1).raw
    nearest = balls.project(x, ball="L1", scope="row", radius=RADIUS)
    assert ((nearest - x).flatten(1).norm(dim=1) < (shrunk - x).flatten(1).norm(dim=1)).all()
    point = torch.tensor([[3.0, -4.0, 0.1]])
    left = foolbox.attacks.SparseL1DescentAttack().project(ep.astensor(point), ep.astensor(torch.zeros(1, 3)), 3.0).raw
    assert left.abs().sum().item() == pytest.approx(2 * (3.5 - 4.1 / 3), abs=1e-12)
    assert torch.equal(balls.project(point[None], ball="L1", scope="row", radius=3.0)[0], torch.tensor([[1.0, -2.0, 0.0]]))


class Sparse(foolbox.attacks.SparseL1DescentAttack):
    """Their loop with the projection by bisection on the threshold."""

    def project(self, x, x0, epsilon):
        out = []
        for row in (x - x0).raw.flatten(1):
            low, high = 0.0, row.abs().max().item()
            for _ in range(100):
                middle = (low + high) / 2
                low, high = (middle, high) if (row.abs() - middle).clamp(min=0).sum() > epsilon else (low, middle)
            out.append(row if row.abs().sum() <= epsilon else row.sign() * (row.abs() - high).clamp(min=0))
        return x0 + ep.astensor(torch.stack(out)).reshape(x.shape)


@pytest.mark.parametrize("ball", ["L2", "L1", "Linf"])
def test_uniform_starts_have_the_same_law(ball):
    """Two samples of 4000, Kolmogorov-Smirnov on the norm and on a coordinate: p above 0.001, where another law is far below."""
    number, size = 4000, LENGTH * DIM
    torch.manual_seed(11)
    dummy = ep.astensor(torch.zeros(1))
    if ball == "Linf":
        other = ep.uniform(dummy, (number, size), -1, 1).raw
    else:
        other = {"L2": theirs.uniform_l2_n_balls, "L1": theirs.uniform_l1_n_balls}[ball](dummy, number, size).raw
    streams = [torch.Generator().manual_seed(k) for k in range(number)]
    mine = balls.sample(torch.ones(number, LENGTH, dtype=torch.bool), DIM, ball=ball, scope="row", radius=1.0, generators=streams)
    order = {"L2": 2.0, "L1": 1.0, "Linf": math.inf}[ball]
    norms = [torch.linalg.vector_norm(x.reshape(number, size).double(), order, dim=1) for x in (mine, other)]
    assert scipy.stats.ks_2samp(*norms).pvalue > 1e-3
    assert scipy.stats.ks_2samp(*(x.reshape(number, size)[:, 5].double() for x in (mine, other))).pvalue > 1e-3
    assert scipy.stats.ks_2samp(norms[0], norms[1] * 0.97).pvalue < 1e-3  # the test can tell


@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("ball", ["L2", "Linf", "L1"])
def test_pgd(model, ball, steps):
    """From zero, a quarter of the radius a step. L1: sparse descent, which at quantile 1 moves the one largest coordinate."""
    common = {"rel_stepsize": 0.25, "steps": steps, "random_start": False}
    attack = {
        "L2": foolbox.attacks.L2ProjectedGradientDescentAttack(**common),
        "Linf": foolbox.attacks.LinfProjectedGradientDescentAttack(**common),
        "L1": Sparse(quantile=1.0, **common),
    }[ball]
    adversary = adversaries.PGD(radius=RADIUS, ball=ball, scope="row", steps=steps, step_size=0.25, random_start=False)
    torch.testing.assert_close(ours(model, adversary), attacked(model, attack), rtol=0, atol=1e-12)


def test_fast_gradient_is_one_step(model):
    for ball, attack in (("L2", foolbox.attacks.L2FastGradientAttack()), ("Linf", foolbox.attacks.LinfFastGradientAttack())):
        adversary = adversaries.PGD(radius=RADIUS, ball=ball, scope="row", steps=1, step_size=1.0, random_start=False)
        torch.testing.assert_close(ours(model, adversary), attacked(model, attack), rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 3])
def test_vat(model, steps, monkeypatch):
    """The same normal start, xi = 1e-6 in both (ours is a fraction of the radius): the same direction."""
    net, x, _ = model
    adversary = adversaries.VAT(radius=RADIUS, scope="row", steps=steps, xi=1e-6 / RADIUS)
    context = perturbation_context(ALL, RADIUS, range(ROWS), dim=DIM)
    log_p = net(x).log_softmax(1)
    state, deltas = climb(adversary, context, lambda d: (log_p.exp() * (log_p - net(x + d).log_softmax(1))).sum(1))
    monkeypatch.setattr(ep, "normal", lambda like, shape, mean, stddev: ep.astensor(deltas[0]))
    moved = attacked(model, foolbox.attacks.VirtualAdversarialAttack(steps=steps, xi=1e-6))
    # A gradient at 1e-6 is itself exact to about 1e-9 in float64, and is normalised.
    torch.testing.assert_close(adversary.ask(state)[SITE].add, moved, rtol=0, atol=1e-6)

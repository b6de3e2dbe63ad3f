"""Inner maximisers against what can be computed by hand: linear, quadratic and softmax models, slow loops, finite differences."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from helpers.networks import demos, gradients, labels, learner, network, update
from helpers.perturbations import SITE, climb, end_update, perturbation_context, run
from torch.nn import functional as F

from advalign import adversaries
from advalign.adversaries.apgd import _periods
from advalign.engine import ascent
from advalign.engine.plan import plan
from advalign.errors import ConfigError
from advalign.functional import balls
from advalign.objectives.classify import Classify
from advalign.objectives.consistency import Consistency
from advalign.objectives.sft import SFT
from advalign.types import Edit

DUAL = {"L2": 2.0, "Linf": 1.0, "L1": float("inf")}
EXACT = 1e-12
KEY = (0, "update", "policy", 0, 0, 0, 0)
every_ball = pytest.mark.parametrize("ball", DUAL)


def rows_of(number, dim=4):
    """`number` rows of one token each."""
    return perturbation_context(torch.ones(number, 1, dtype=torch.bool), 0.3, range(number), dim=dim)


# ------------------------------------------------------------------------------------- linear and quadratic models


@every_ball
@pytest.mark.parametrize("kind", ["fgm", "apgd", "free"])
def test_worst_cross_entropy_of_a_linear_classifier(kind, ball):
    """max over ||d||_p <= r of softplus(-y (w.(x + d) + b)) = softplus(-(f - r ||w||_q)), f = y (w.x + b); one step gets there."""
    generator = torch.Generator().manual_seed(2)
    x, w = torch.randn(5, 4, generator=generator, dtype=torch.float64), torch.tensor([0.5, -2.0, 1.0, 0.1], dtype=torch.float64)
    y, b, radius = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0], dtype=torch.float64), 0.2, 0.3
    loss = lambda d: F.softplus(-y * ((x + d[:, 0]) @ w + b))  # noqa: E731
    adversary = {
        "fgm": adversaries.PGD(radius=radius, ball=ball, steps=1, step_size=1.0, random_start=False),
        "apgd": adversaries.APGD(radius=radius, ball=ball, steps=40),
        "free": adversaries.Free(radius=radius, ball=ball),
    }[kind]
    worst = F.softplus(-(y * (x @ w + b) - radius * torch.linalg.vector_norm(w, DUAL[ball])))
    delta, _ = run(adversary, rows_of(5), loss)
    # APGD starts anywhere; its first step is 2 radii, so L2 and L1 reach the border, and the momentum stays on it.
    torch.testing.assert_close(loss(delta), worst, rtol=0, atol=1e-6 if kind == "apgd" else EXACT)


def quadratic():
    generator = torch.Generator().manual_seed(3)
    a = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    return (a + a.T) / 2, torch.randn(3, generator=generator, dtype=torch.float64)


def test_apgd_solves_the_trust_region_problem():
    """max over ||d|| <= r of d'Ad/2 + g'd: the multiplier solves ||(l I - A)^-1 g|| = r with l above the largest eigenvalue."""
    (a, g), radius = quadratic(), 0.7
    low = torch.linalg.eigvalsh(a)[-1].item() + 1e-9
    high = low + 1e3
    for _ in range(200):
        middle = (low + high) / 2
        longer = torch.linalg.solve(middle * torch.eye(3, dtype=torch.float64) - a, g).norm() > radius
        low, high = (middle, high) if longer else (low, middle)
    d = torch.linalg.solve(high * torch.eye(3, dtype=torch.float64) - a, g)
    loss = lambda delta: (delta[:, 0] @ a * delta[:, 0]).sum(1) / 2 + delta[:, 0] @ g  # noqa: E731
    context = replace(rows_of(4, dim=3), radius=radius)
    delta, _ = run(adversaries.APGD(radius=radius, steps=100), context, loss)
    # A hundred forwards halve the step a few times only, so the best iterate is near: a gap of (angle)^2.
    best = (d @ a @ d / 2 + g @ d).item()
    assert best - 1e-4 < loss(delta).max().item() <= best + EXACT


# --------------------------------------------------------------------------------------------------- step control


def test_apgd_checks_where_the_paper_does():
    """p = 0, 0.22, then p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06): for 100 moves 22, 41, 57, 70, 80, 87, 93, 99."""
    periods = _periods(100)
    assert list(periods) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert list(periods.values()) == [22, 19, 16, 13, 10, 7, 6, 6]
    assert list(_periods(9)) == [2, 4, 6, 7, 8, 9]  # ceil(9 p) = 1.98, 3.69, 5.13, 6.3, 7.2, 7.83, 8.37, 8.91, without repetition


def test_apgd_is_algorithm_1_one_point_at_a_time():
    """A slow loop over single points with a wavy loss, in the plane: the same iterates, and some steps halved, some not."""
    steps, radius = 41, 1.0
    f = lambda p: torch.sin(5 * p[..., 0]) * torch.cos(3 * p[..., 1]) + 0.5 * p[..., 0]  # noqa: E731
    adversary = adversaries.APGD(radius=radius, steps=steps)
    context = replace(rows_of(6, dim=2), radius=radius)
    state, deltas = climb(adversary, context, lambda d: f(d[:, 0]))
    sizes = []
    for row in range(6):
        path, best, size = slow_apgd(f, deltas[0][row, 0], steps - 1, radius)
        torch.testing.assert_close(torch.stack([a[row, 0] for a in deltas]), torch.stack(path), rtol=0, atol=1e-9)
        torch.testing.assert_close(adversary.ask(state)[SITE].add[row, 0], best, rtol=0, atol=1e-9)
        sizes.append(size)
    assert len(set(sizes)) > 1


def slow_apgd(f, x0, moves, radius):
    """arXiv:2003.01690, algorithm 1; of the released code: `at most` in condition 1, condition 2 from the second checkpoint on."""

    def project(p):
        return p * min(1.0, radius / max(float(p.norm()), 1e-300))

    def slope(p):
        leaf = p.clone().requires_grad_()
        (g,) = torch.autograd.grad(f(leaf), leaf)
        return g

    checkpoints = {math.ceil(round(p * moves, 9)) for p in (0.22, 0.41, 0.57, 0.70, 0.80, 0.87, 0.93, 0.99)}
    size, before, x = 2 * radius, x0, x0
    best, top, values, path = x0, float(f(x0)), [float(f(x0))], [x0]
    last_check, halved, peak = 0, True, -math.inf
    for k in range(moves):
        g = slope(x)
        z = project(x + size * g / g.norm())
        new = project(x + 0.75 * (z - x) + 0.25 * (x - before)) if k else z
        before, x = x, new
        path.append(x)
        values.append(float(f(x)))
        if values[-1] > top:
            best, top = x, values[-1]
        if k + 1 in checkpoints:
            rises = sum(values[i + 1] > values[i] for i in range(last_check, k + 1))
            stuck = rises <= 0.75 * (k + 1 - last_check) or (not halved and peak >= top)
            if stuck:
                size, x, values[-1] = size / 2, best, top
            last_check, halved, peak = k + 1, stuck, top
    return path, best, size


# ------------------------------------------------------------------------------------------- divergences: VAT, R3F


def softmax_model():
    generator = torch.Generator().manual_seed(4)
    w = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    p = (w @ torch.randn(4, generator=generator, dtype=torch.float64)).softmax(0)
    fisher = w.T @ (torch.diag(p) - torch.outer(p, p)) @ w

    def divergence(delta, symmetric=False):
        log_q = (p.log() + delta[:, 0] @ w.T).log_softmax(1)  # logits are known up to a constant
        forward = (p * (p.log() - log_q)).sum(1)
        return forward + (log_q.exp() * (log_q - p.log())).sum(1) if symmetric else forward

    return fisher, divergence


def test_vat_finds_the_top_eigenvector_of_the_fisher_matrix():
    """KL(p || p_d) = d'Hd/2 + O(d^3), H = W'(diag p - pp')W: power iteration ends at its top eigenvector, and KL at r^2 l_max / 2."""
    fisher, divergence = softmax_model()
    values, vectors = torch.linalg.eigh(fisher)
    radius = 0.01
    context = replace(rows_of(5), radius=radius)
    delta, _ = run(adversaries.VAT(radius=radius, steps=60, xi=1e-4), context, divergence)
    cosine = (delta[:, 0] @ vectors[:, -1]).abs() / radius
    torch.testing.assert_close(cosine, torch.ones(5, dtype=torch.float64), rtol=0, atol=1e-6)
    torch.testing.assert_close(divergence(delta), torch.full((5,), radius**2 * values[-1].item() / 2).double(), rtol=0.01, atol=0)


def test_one_vat_step_multiplies_by_the_fisher_matrix():
    fisher, divergence = softmax_model()
    adversary = adversaries.VAT(radius=0.3, xi=1e-6)
    state, deltas = climb(adversary, rows_of(5), divergence)
    expected = F.normalize(deltas[0][:, 0] @ fisher, dim=1) * 0.3
    torch.testing.assert_close(adversary.ask(state)[SITE].add[:, 0], expected, rtol=0, atol=1e-6)
    assert (deltas[0][:, 0].norm(dim=1) / 0.3e-6 - 1).abs().max() <= EXACT


@pytest.mark.parametrize("distribution", ["uniform_cube", "gaussian"])
def test_the_expected_divergence_under_noise(distribution):
    """R3F: E[symmetric KL] = E[d'Hd] = v tr H with v = r^2/3 for U(-r, r). A normal of standard deviation r, clipped to the Linf ball, has
    v = r^2 E[min(z^2, 1)] = r^2 (1 - 2 phi(1)) = 0.51606 r^2."""
    fisher, divergence = softmax_model()
    radius, number = 1e-3, 20_000
    adversary = adversaries.Noise(radius=radius, ball="Linf", distribution=distribution)
    delta = adversary.ask(adversary.start(replace(rows_of(number), radius=radius)))[SITE].add
    phi = math.exp(-0.5) / math.sqrt(2 * math.pi)
    variance = radius**2 * {"uniform_cube": 1 / 3, "gaussian": 1 - 2 * phi}[distribution]
    assert divergence(delta, symmetric=True).mean().item() == pytest.approx(variance * fisher.trace().item(), rel=0.03)


def context_of(net, adversary, rows):
    """The context the engine hands to adversary "adv" in update KEY."""
    return ascent.perturbation_context(net, adversary, "adv", rows.tokens, [("s", rows.tokens)], KEY)


def start_of(net, adversary, rows):
    return adversary.ask(adversary.start(context_of(net, adversary, rows)))[SITE].add


def test_r3f_is_its_slow_loop():
    """L + lambda symKL(f(x + z) || f(x)), both branches with gradient, mean over rows (arXiv:2008.03156); through the engine."""
    net = network("classifier")
    rows = labels(net)
    noise = adversaries.Noise(radius=1e-2, ball="Linf", distribution="uniform_cube", relative_to="absolute")
    terms = {"task": Classify(source="s"), "smooth": Consistency(source="s", view="adv", divergence="symmetric_kl", coef=0.7)}
    gradient, _ = update(learner(net), terms, {"s": rows}, {"adv": noise}, key=KEY)
    z = start_of(net, noise, rows)
    net.zero_grad(set_to_none=True)
    clean = net(rows.tokens, {"class_logits"}).class_logits.log_softmax(1)
    noised = net(rows.tokens, {"class_logits"}, {SITE: Edit(z)}).class_logits.log_softmax(1)
    total = 0
    for b in range(5):
        p, q = clean[b], noised[b]
        total = total + (-p[rows.labels[b]] + 0.7 * ((p.exp() - q.exp()) * (p - q)).sum()) / 5
    total.backward()
    torch.testing.assert_close(gradient, gradients(net), rtol=0, atol=EXACT)


# ----------------------------------------------------------------------------------------------------------- FreeLB


@pytest.mark.parametrize(("count", "number"), [("K", 3), ("K+1", 4)])
def test_freelb_on_a_linear_logistic_model(count, number):
    """Without a bound d_k = d_0 - k a y w/||w||, so the mean gradient of w is 1/P sum_k -s(-m_k) y (x + d_k), m_k = y w.(x + d_k)."""
    x, w = torch.tensor([0.3, -1.0, 0.7, 0.2], dtype=torch.float64), torch.tensor([1.0, 2.0, -0.5, 0.1], dtype=torch.float64)
    y, length = -1.0, 0.25
    adversary = adversaries.FreeLB(radius=math.inf, steps=3, step_length=length, init_magnitude=0.6, count=count)
    assert adversary.passes == number
    context = replace(rows_of(1), radius=math.inf)
    weight = w.clone().requires_grad_()
    input_gradients = []

    def loss(d):
        value = F.softplus(-y * ((x + d[:, 0]) @ weight))
        input_gradients.append(torch.autograd.grad(value.sum() / number, weight, retain_graph=True)[0])
        return value

    _, deltas = climb(adversary, context, loss)
    expected = 0
    for k in range(number):
        d = deltas[0][0, 0] - k * length * y * w / w.norm()
        torch.testing.assert_close(deltas[k][0, 0], d, rtol=0, atol=EXACT)
        margin = y * w @ (x + d)
        expected = expected - torch.sigmoid(-margin) * y * (x + d) / number
    torch.testing.assert_close(sum(input_gradients), expected, rtol=0, atol=EXACT)


def test_freelb_starts_in_its_cube():
    """U(-1, 1) m / sqrt(n d): no number leaves the cube, and E ||d_0|| is near m / sqrt(3), so m is no L2 radius."""
    allowed = torch.zeros(300, 8, dtype=torch.bool)
    allowed[:, :5] = True
    adversary = adversaries.FreeLB(radius=math.inf, init_magnitude=0.9)
    first = adversary.ask(adversary.start(perturbation_context(allowed, math.inf, range(300), dim=6)))[SITE].add
    half = 0.9 / math.sqrt(5 * 6)
    assert 0.99 * half < first.abs().max() <= half
    # Standard error of a mean square over 300 x 30 numbers: 0.9^2/3 x sqrt(4/5 / 9000) = 0.9 %.
    assert first.square().sum((1, 2)).mean().item() == pytest.approx(0.9**2 / 3, rel=0.03)


def test_freelb_with_one_pass_from_zero_is_an_sft_step_to_the_bit():
    for options in (None, {"dropout": 0.5}):
        net = network(options=options)
        rows = {"s": demos(net)}
        once = adversaries.FreeLB(steps=1, init_magnitude=0.0)
        plain, _ = update(learner(net), {"a": SFT(source="s")}, rows, key=KEY)
        attacked, _ = update(learner(net), {"a": SFT(source="s", view="adv")}, rows, {"adv": once}, key=KEY)
        assert torch.equal(plain, attacked)
        assert plain.abs().max() > 0


def test_freelb_is_its_slow_loop():
    """The released loop with its own random start: K passes, loss / K each, one step after every pass but the last."""
    net = network()
    rows = demos(net)
    tokens = rows.tokens
    adversary = adversaries.FreeLB(steps=3, step_length=0.4, init_magnitude=0.5, radius=0.6)
    before = net.num_forwards
    gradient, logs = update(learner(net), {"a": SFT(source="s", view="adv")}, {"s": rows}, {"adv": adversary}, key=KEY)
    assert net.num_forwards - before == 3
    delta = start_of(net, adversary, rows)
    net.zero_grad(set_to_none=True)
    records = []
    for k in range(3):
        leaf = delta.clone().requires_grad_()
        logprobs = net(tokens, {"logprobs"}, {SITE: Edit(leaf)}).logprobs
        loss = -(logprobs * tokens.target).sum() / tokens.target.sum()
        records.append(loss.item())
        (loss / 3).backward()
        if k == 2:
            break
        for b in range(5):
            delta[b] += 0.4 * leaf.grad[b] / leaf.grad[b].norm()
            delta[b] *= min(1.0, 0.6 / delta[b].norm().item())
    torch.testing.assert_close(gradient, gradients(net), rtol=0, atol=EXACT)
    assert logs["a/loss"] == pytest.approx(sum(records) / 3, abs=EXACT)
    assert logs["adv/gain"] == pytest.approx(records[2] - records[0], abs=EXACT)


def test_freelb_does_not_depend_on_the_split():
    net = network()
    rows = {"s": demos(net)}
    terms = {"a": SFT(source="s", view="adv")}
    adversary = {"adv": adversaries.FreeLB(steps=3, step_length=0.4, init_magnitude=0.5, radius=0.6)}
    unsplit, _ = update(learner(net), terms, rows, adversary, key=KEY)
    split, _ = update(learner(net), terms, rows, adversary, key=KEY, budget=24)
    torch.testing.assert_close(split, unsplit, rtol=0, atol=EXACT)


def test_relative_lengths_are_those_of_the_radius():
    """Twice the mean embedding norm: radius, step and start of FreeLB and LAT all grow with it."""
    net = network()
    rows = demos(net)
    norm = net.mean_embedding_norm()
    for absolute in (adversaries.FreeLB(init_magnitude=0.2), adversaries.LATAdversary(where="all", random_start=True)):
        relative = replace(absolute, relative_to="mean_embedding_norm")
        deltas = []
        for adversary, scale in ((absolute, 1.0), (relative, norm)):
            state, _ = climb(adversary, context_of(net, adversary, rows), lambda d, scale=scale: torch.sin(3 * d / scale).sum((1, 2)))
            deltas.append(adversary.ask(state)[SITE].add / scale)
        torch.testing.assert_close(deltas[0], deltas[1], rtol=0, atol=EXACT)


# ------------------------------------------------------------------------------------------------------------- free


def test_free_replays_are_algorithm_1():
    """m = 3 replays of one minibatch, an SGD-like update each: parameters and delta of the same backward, delta from 0, kept between."""
    net, copy = network(), network()
    copy.load_state_dict(net.state_dict())
    rows = demos(net)
    tokens, radius = rows.tokens, 0.2
    adversary = adversaries.Free(radius=radius, relative_to="absolute", ball="Linf")
    runtime = learner(net, learning_rate=1e-2)
    p = plan("policy", {"a": SFT(source="s", view="adv")}, {"adv": adversary}, [])
    for epoch in range(3):
        runtime.update(p, {"s": rows}, {}, budget=10_000, key=(0, "update", "policy", 0, 0, epoch, 0))
    optimizer = torch.optim.AdamW([q for q in copy.parameters() if q.requires_grad], lr=1e-2, weight_decay=0.0)
    delta = torch.zeros(*tokens.ids.shape, 32, dtype=torch.float64)
    for _ in range(3):
        optimizer.zero_grad()
        leaf = delta.clone().requires_grad_()
        (-(copy(tokens, {"logprobs"}, {SITE: Edit(leaf)}).logprobs * tokens.target).sum() / tokens.target.sum()).backward()
        delta = ((delta + radius * leaf.grad.sign()) * tokens.mask[..., None]).clamp(-radius, radius)
        optimizer.step()
    for (name, a), b in zip(net.named_parameters(), copy.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10, msg=name)
    carried = runtime.memory["adv"]["carried"]["s/0"][SITE]
    torch.testing.assert_close(carried, delta[0, : carried.shape[0]], rtol=0, atol=1e-10)


@pytest.mark.parametrize("carry", [True, False])
def test_free_carries_to_the_next_minibatch_by_place_or_not(carry):
    """A delta of width 4; then a row of width 2 and one of width 6 in its place: cropped, filled with zeros, or new."""
    adversary = adversaries.Free(radius=0.4, scope="row", carry=carry)
    memory, allowed = {}, torch.ones(2, 4, dtype=torch.bool)
    state, _ = climb(adversary, perturbation_context(allowed, 0.4, [0, 1], memory=memory), lambda d: d.sum((1, 2)))
    left = adversary.ask(state)[SITE].add
    replay = adversary.ask(adversary.start(perturbation_context(allowed, 0.4, [0, 1], memory=memory, epoch=1)))[SITE].add
    assert torch.equal(replay, left)
    others = [perturbation_context(torch.ones(2, width, dtype=torch.bool), 0.4, [0, 1], memory=dict(memory), step=1) for width in (2, 6)]
    cropped, filled = (adversary.ask(adversary.start(context))[SITE].add for context in others)
    torch.testing.assert_close(cropped, left[:, :2] * carry, rtol=0, atol=1e-16)
    torch.testing.assert_close(filled, F.pad(left, (0, 0, 0, 2)) * carry, rtol=0, atol=1e-16)


# -------------------------------------------------------------------------------------------------------- universal


def test_universal_moves_once_per_update_by_the_summed_gradient():
    """Two rows of opposite input gradients, 3 and 2 tokens long: v moves along -(3 - 2) w / ||w||, in every split; then to the border."""
    w = torch.tensor([3.0, -4.0, 0.0], dtype=torch.float64)
    sign = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    allowed = torch.tensor([[1, 1, 1], [1, 1, 0]], dtype=torch.bool)
    adversary = adversaries.Universal(radius=0.5, step_size=0.4)
    for parts in ([[0, 1]], [[1], [0]]):
        memory = {}
        for update_ in range(4):
            for part in parts:
                context = perturbation_context(allowed[part], 0.5, part, memory=memory)
                state, deltas = climb(adversary, context, lambda d, part=part: (d @ w).sum(1) * sign[part])
                # 0.4 x 0.5 per update along -w/5, at most 0.5
                expected = -w / 5 * min(0.2 * update_, 0.5)
                assert (deltas[0] - expected * allowed[part][..., None]).abs().max() <= EXACT
            end_update(adversary, memory)


def test_universal_lives_from_update_to_update_and_through_a_checkpoint():
    net = network()
    rows = {"s": demos(net)}
    terms, attack = {"a": SFT(source="s", view="adv")}, {"adv": adversaries.Universal(radius=0.3, sites=("embedding", "layer:0"))}
    unsplit, split = learner(net), learner(net)
    losses = [update(unsplit, terms, rows, attack, key=KEY)[1]["a/loss"] for _ in range(4)]
    assert losses == sorted(losses)
    assert losses[0] < losses[-1]  # the learning rate is zero: only the vector moved
    for _ in range(2):
        update(split, terms, rows, attack, key=KEY, budget=24)
    resumed = learner(net)
    resumed.load_state_dict(split.state_dict())
    for _ in range(2):
        update(resumed, terms, rows, attack, key=KEY)
    for site, vector in unsplit.memory["adv"]["vectors"].items():
        torch.testing.assert_close(resumed.memory["adv"]["vectors"][site], vector, rtol=0, atol=EXACT)
        assert vector.norm() > 0


def test_a_random_universal_start_is_the_same_for_every_micro_batch_and_learner_restart():
    adversary = adversaries.Universal(radius=0.5, random_start=True)
    starts = [adversary.ask(adversary.start(perturbation_context(torch.ones(1, 1, dtype=torch.bool), 0.5, [k])))[SITE].add for k in (3, 8)]
    assert torch.equal(*starts)
    assert 0 < starts[0].norm() <= 0.5


# -------------------------------------------------------------------------------------------------------------- LAT


def test_lat_is_torch_adamw_and_a_projection_after_every_step():
    """The released loop: AdamW ascends, then every token goes back into its ball; Adam is not told."""
    rate, radius, steps = 0.05, 0.2, 16
    allowed = torch.tensor([[1, 1, 1], [1, 1, 0]], dtype=torch.bool)
    loss = lambda d: (torch.sin(3 * d + 1) * allowed[..., None]).sum((1, 2))  # noqa: E731
    adversary = adversaries.LATAdversary(radius=radius, learning_rate=rate, steps=steps)
    delta, first = run(adversary, perturbation_context(allowed, radius, range(2)), loss)
    leaf = torch.zeros(2, 3, 3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.AdamW([leaf], lr=rate, eps=1e-16)
    for _ in range(steps):
        optimizer.zero_grad()
        (-loss(leaf).sum()).backward()
        optimizer.step()
        with torch.no_grad():
            leaf *= (radius / leaf.norm(dim=2, keepdim=True).clamp(min=1e-12)).clamp(max=1)
    torch.testing.assert_close(delta, leaf.detach(), rtol=0, atol=1e-10)
    assert torch.equal(first, torch.zeros_like(first))
    assert (delta.norm(dim=2)[allowed] > 0.99 * radius).all()  # it was projected


def test_lat_moves_several_sites_at_once_and_each_in_its_own_ball():
    net = network(model="scratch:tiny-gpt2?n_embd=32&n_layer=3")
    rows = {"s": demos(net)}
    deltas_of = {}

    class Watch(adversaries.LATAdversary):
        def ask(self, state):
            deltas_of.update({site: edit.add for site, edit in super().ask(state).items()})
            return super().ask(state)

    attack = Watch(radius=0.5, learning_rate=0.1, steps=8, sites=("embedding", "layer:0", "layer:-1"))
    _, logs = update(learner(net), {"a": SFT(source="s", view="adv")}, rows, {"adv": attack}, key=KEY)
    prompt = rows["s"].tokens.mask & ~rows["s"].tokens.target
    assert logs["adv/gain"] > 0
    for delta in deltas_of.values():
        assert delta.norm(dim=2).max() <= 0.5 * (1 + EXACT)
        assert torch.equal(delta[~prompt], torch.zeros_like(delta[~prompt]))
        assert delta[prompt].abs().max() > 0
    assert len(deltas_of) == 3


# -------------------------------------------------------------------------------------- what the engine hands over


class Recording(adversaries.PGD):
    """Records the deltas it returned, and the losses and gradients that came back."""

    calls: list = []  # noqa: RUF012

    def tell(self, state, losses, gradients):
        self.calls.append((state.delta[SITE], losses, gradients[SITE]))
        return super().tell(state, losses, gradients)


def test_the_gradient_an_adversary_is_told_is_a_central_difference():
    net = network("classifier")
    rows = labels(net)
    terms = {"c": Classify(source="s", view="adv", coef=1.7)}
    Recording.calls.clear()
    update(learner(net), terms, {"s": rows}, {"adv": Recording(radius=0.5, steps=2)}, key=KEY)
    for delta, losses, gradient in Recording.calls:
        value = lambda d: 1.7 * F.cross_entropy(net(rows.tokens, {"class_logits"}, {SITE: Edit(d)}).class_logits, rows.labels)  # noqa: E731
        with torch.no_grad():
            assert losses.sum().item() == pytest.approx(value(delta).item(), abs=EXACT)
            for b, t, i in ((0, 1, 3), (2, 3, 30), (4, 0, 7)):
                step = torch.zeros_like(delta)
                step[b, t, i] = 1e-6
                slope = (value(delta + step) - value(delta - step)) / 2e-6
                assert gradient[b, t, i].item() == pytest.approx(slope.item(), rel=1e-5, abs=1e-10)


def losses_of(net, rows, adversary):
    """(attacked, clean) loss per row: its own loop over the network, from the engine's context."""

    def loss(d):
        return F.cross_entropy(net(rows.tokens, {"class_logits"}, {SITE: Edit(d)}).class_logits, rows.labels, reduction="none")

    state, deltas = climb(adversary, context_of(net, adversary, rows), loss)
    with torch.no_grad():
        return loss(adversary.ask(state)[SITE].add), loss(torch.zeros_like(deltas[0]))


@pytest.mark.parametrize("what", ["radius", "steps", "restarts", "apgd"])
def test_the_best_iterate_never_gets_worse(what):
    """Per row: more steps or restarts only add iterates; a larger ball holds the smaller one; from zero, no row is below its clean loss."""
    net = network("classifier")
    rows = labels(net)
    best = {"keep": "best", "relative_to": "absolute"}
    grown = {
        "steps": [adversaries.PGD(radius=0.5, steps=k, step_size=0.5, **best) for k in (1, 2, 4, 8)],
        "restarts": [adversaries.PGD(radius=0.5, steps=3, restarts=k, **best) for k in (1, 2, 4)],
        "radius": [adversaries.PGD(radius=r, steps=8, step_size=0.25, random_start=False, **best) for r in (0.001, 0.01, 0.05)],
        "apgd": [adversaries.APGD(radius=r, steps=15, random_start=False, relative_to="absolute") for r in (0.001, 0.01, 0.05)],
    }[what]
    losses = [losses_of(net, rows, adversary) for adversary in grown]
    for (smaller, _), (larger, _) in pairwise(losses):
        assert (larger >= smaller - EXACT).all()
    assert (losses[-1][0] > losses[0][0]).any()
    if what in ("radius", "apgd"):
        assert all((attacked >= clean).all() for attacked, clean in losses)


def test_a_divergence_needs_an_adversary_that_is_not_at_zero():
    terms = {"c": Consistency(source="s", view="adv")}
    still = [adversaries.FreeLB(init_magnitude=0.0), adversaries.Free(), adversaries.Universal(), adversaries.LATAdversary()]
    moving = [adversaries.FreeLB(), adversaries.Free(random_start=True), adversaries.LATAdversary(random_start=True), adversaries.VAT()]
    for adversary in still:
        with pytest.raises(ConfigError, match="the gradient of a divergence is zero at delta = 0"):
            plan("policy", terms, {"adv": adversary}, [])
    for adversary in moving:
        plan("policy", terms, {"adv": adversary}, [])


def test_vat_through_the_engine_climbs_the_divergence_of_its_view():
    """One power iteration from the engine's own start, by hand; and the final divergence exceeds that of the start's direction."""
    net = network("classifier")
    rows = labels(net)
    vat = adversaries.VAT(radius=0.5, relative_to="absolute", xi=1e-3)
    terms = {"c": Consistency(source="s", view="adv", divergence="kl", stop=True)}
    gradient, logs = update(learner(net), terms, {"s": rows}, {"adv": vat}, key=KEY)
    start = start_of(net, vat, rows)
    clean = net(rows.tokens, {"class_logits"}).class_logits.log_softmax(1).detach()

    def divergence(d):
        attacked = net(rows.tokens, {"class_logits"}, {SITE: Edit(d)}).class_logits.log_softmax(1)
        return (clean.exp() * (clean - attacked)).sum(1).mean()

    leaf = start.clone().requires_grad_()
    (g,) = torch.autograd.grad(divergence(leaf), leaf)
    delta = 0.5 * g / g.norm(dim=2, keepdim=True).clamp(min=1e-300)
    net.zero_grad(set_to_none=True)
    loss = divergence(delta)
    loss.backward()
    assert logs["c/loss"] == pytest.approx(loss.item(), rel=1e-9)
    torch.testing.assert_close(gradient, gradients(net), rtol=0, atol=1e-9)
    assert loss > divergence(start / 1e-3)


def test_warm_rows_climb_on_through_the_engine():
    """Two updates over the same rows in other micro-batches: the second begins about where the first ended."""
    net = network()
    rows = {"s": demos(net)}
    terms = {"a": SFT(source="s", view="adv")}
    warm = {"adv": adversaries.PGD(radius=0.3, steps=2, warm=True)}
    runtime, other = learner(net), learner(net)
    first = update(runtime, terms, rows, warm, key=KEY)[1]
    second = update(runtime, terms, rows, warm, key=(*KEY[:5], 1, 0))[1]
    assert second["adv/loss_start"] == pytest.approx(first["adv/loss_end"], rel=1e-12)
    split = [update(other, terms, rows, warm, key=(*KEY[:5], k, 0), budget=24)[1] for k in (0, 1)]
    assert split[1]["adv/loss_end"] == pytest.approx(second["adv/loss_end"], rel=1e-9)
    assert len(runtime.memory["adv"]["warm"]) == 5


def test_restarts_through_the_engine_cost_what_they_say():
    net = network("classifier")
    rows = {"s": labels(net)}
    attack = {"adv": adversaries.PGD(radius=0.3, steps=2, restarts=3, keep="best")}
    terms = {"c": Classify(source="s", view="adv")}
    before = net.num_forwards
    update(learner(net), terms, rows, attack, key=KEY)
    assert net.num_forwards - before == 2 * 3 + 1
    assert plan("policy", terms, attack, []).forwards()["inner"] == 6


def test_projections_of_a_ball_without_a_bound_change_nothing():
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    for ball in DUAL:
        assert torch.equal(balls.project(x, ball=ball, scope="row", radius=math.inf), x)

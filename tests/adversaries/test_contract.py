"""Contract of every continuous adversary, by its file: raises a closed-form inner loss, stays in its ball, ignores padding, order
and split, keeps only what a checkpoint can hold. A class whose `family` is another ("discrete") has a table of its own."""

import dataclasses
import io
import math
import re
from pathlib import Path

import pytest
import torch
import yaml
from helpers.perturbations import ONE_VECTOR, SITE, climb, end_update, perturbation_context, run
from torch.nn import functional as F

from advalign import adversaries, config, plugins
from advalign.errors import ConfigError
from advalign.functional import balls
from advalign.interfaces import Adversary

PAGES = Path(plugins.__file__).parents[1] / "docs" / "algorithms"
DUAL = {"L2": 2.0, "Linf": 1.0, "L1": float("inf")}
CONTINUOUS = [cls for cls in plugins.all("adversaries") if cls.family == "continuous"]
FEW = {adversaries.APGD: {"steps": 25}}  # checkpoints at 6, 10, 14, 17, 20, 21, 23 and 24 moves are enough
SCOPED = [(cls, scope) for cls in CONTINUOUS for scope in ("token", "row") if scope == "token" or cls not in ONE_VECTOR]
every_adversary = pytest.mark.parametrize("cls", CONTINUOUS, ids=lambda cls: cls.__name__)
every_own_delta = pytest.mark.parametrize(("cls", "scope"), [x for x in SCOPED if x[0] not in ONE_VECTOR])
every_allowed_scope = pytest.mark.parametrize(("cls", "scope"), SCOPED)
every_ball = pytest.mark.parametrize("ball", DUAL)
every_scope = pytest.mark.parametrize("scope", ["token", "row"])


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


@every_allowed_scope
@every_ball
def test_stays_in_its_ball_and_off_what_is_not_allowed(cls, ball, scope, linear):
    adversary = cls(radius=0.4, ball=ball, scope=scope, **FEW.get(cls, {}))
    assert isinstance(adversary, Adversary)
    state, iterates = climb(adversary, perturbation_context(linear["allowed"], 0.4, range(3)), linear["loss"])
    delta, _ = run(adversary, perturbation_context(linear["allowed"], 0.4, range(3)), linear["loss"])
    for iterate in (*iterates, adversary.ask(state)[SITE].add, delta):
        assert balls.norm(iterate, ball=ball, scope=scope).max() <= 0.4 * (1 + 1e-12)
        assert torch.equal(iterate[~linear["allowed"]], torch.zeros_like(iterate[~linear["allowed"]]))
    assert delta.abs().max() > 0
    zero, _ = run(adversary, perturbation_context(linear["allowed"], 0.0, range(3)), linear["loss"])
    assert torch.equal(zero, torch.zeros_like(zero))


@pytest.mark.parametrize(("cls", "scope"), [x for x in SCOPED if x[0] is not adversaries.Noise])
@every_ball
def test_raises_the_loss_of_every_row(cls, ball, scope, linear):
    adversary = cls(radius=0.4, ball=ball, scope=scope, **FEW.get(cls, {}))
    if cls in ONE_VECTOR:  # which rows of one label have in common what they fear
        linear = linear | {"loss": lambda delta: F.softplus((delta * linear["allowed"][..., None]).sum(1) @ linear["w"])}
    delta, first = run(adversary, perturbation_context(linear["allowed"], 0.4, range(3)), linear["loss"])
    assert (linear["loss"](delta) > linear["loss"](first)).all()


@every_own_delta
def test_does_not_depend_on_padding_order_or_split(cls, scope, linear):
    adversary = cls(radius=0.4, scope=scope, **FEW.get(cls, {}))
    delta, _ = run(adversary, perturbation_context(linear["allowed"], 0.4, range(3)), linear["loss"])
    wide, _ = run(adversary, perturbation_context(F.pad(linear["allowed"], (0, 3)), 0.4, range(3)), linear["loss"])
    torch.testing.assert_close(wide[:, :4], delta, rtol=0, atol=1e-14)
    order = torch.tensor([2, 0, 1])
    moved, _ = run(adversary, perturbation_context(linear["allowed"][order], 0.4, order), lambda d: linear["loss"](d, order))
    torch.testing.assert_close(moved, delta[order], rtol=0, atol=1e-14)
    alone, _ = run(adversary, perturbation_context(linear["allowed"][1:2], 0.4, [1]), lambda d: linear["loss"](d, slice(1, 2)))
    torch.testing.assert_close(alone, delta[1:2], rtol=0, atol=1e-14)


@every_own_delta
def test_does_not_depend_on_the_scale_of_the_loss(cls, scope, linear):
    """A mean over 4096 rows has gradients 4096 times smaller than a sum: the deltas are those of the same rows."""
    adversary = cls(radius=0.4, scope=scope, **FEW.get(cls, {}))
    delta, _ = run(adversary, perturbation_context(linear["allowed"], 0.4, range(3)), linear["loss"])
    small, _ = run(adversary, perturbation_context(linear["allowed"], 0.4, range(3)), lambda d: linear["loss"](d) / 4096)
    torch.testing.assert_close(small, delta, rtol=0, atol=1e-12)


@every_adversary
def test_two_updates_do_not_depend_on_the_split_and_keep_what_a_checkpoint_holds(cls, linear):
    """Two updates over three rows, whole and in two micro-batches; memory goes through a file in between."""
    adversary = cls(radius=0.4, **FEW.get(cls, {}), **({"warm": True} if cls is adversaries.PGD else {}))
    ends = []
    for parts in ([slice(0, 3)], [slice(2, 3), slice(0, 2)]):
        memory, last = {}, torch.zeros(3, 4, 3, dtype=torch.float64)
        for epoch in range(2):
            for rows in parts:
                context = perturbation_context(linear["allowed"][rows], 0.4, range(3)[rows], memory=memory, epoch=epoch)
                state, _ = climb(adversary, context, lambda d, rows=rows: linear["loss"](d, rows))
                last[rows] = adversary.ask(state)[SITE].add
            end_update(adversary, memory)
            file = io.BytesIO()
            torch.save(memory, file)
            memory = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
        ends.append(last)
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-14)


@every_adversary
def test_a_bfloat16_model_gets_float32_deltas(cls, linear):
    context = perturbation_context(linear["allowed"], 1e-5, range(3), dtype=torch.bfloat16)
    adversary = cls(radius=1e-5)
    assert adversary.ask(adversary.start(context))[SITE].add.dtype == torch.float32


@every_adversary
def test_zero_or_masked_gradients_never_make_nan(cls, linear):
    adversary = cls(radius=0.4)
    context = perturbation_context(linear["allowed"], 0.4, range(3))
    state = adversary.start(context)
    before = adversary.ask(state)[SITE].add
    gradient = torch.zeros_like(before)
    gradient[~linear["allowed"]] = float("nan")
    state = adversary.tell(state, torch.zeros(3, dtype=torch.float64), {SITE: gradient})
    end_update(adversary, context.memory)
    after = adversary.ask(state)[SITE].add
    grown = 1 / adversary.xi if cls is adversaries.VAT else 1.0  # which is at a small part of its radius until its last ask
    torch.testing.assert_close(after, before * grown, rtol=0, atol=1e-15)


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
    delta, _ = run(adversary, perturbation_context(linear["allowed"], radius, range(3)), linear["loss"])
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
    delta, _ = run(adversary, perturbation_context(torch.ones(8, 1, dtype=torch.bool), radius, range(8)), loss)  # eight restarts
    assert loss(delta).max().item() == pytest.approx(best, abs=1e-9)


def test_pgd_keep_best_is_per_delta():
    """Two deltas, losses told: first (1, 5), then (3, 2): the first keeps its second iterate, the second its first."""
    adversary = adversaries.PGD(radius=1.0, steps=2, keep="best")
    state = adversary.start(perturbation_context(torch.ones(2, 1, dtype=torch.bool), 1.0, range(2)))
    iterates = []
    for losses in ([1.0, 5.0], [3.0, 2.0]):
        iterates.append(adversary.ask(state)[SITE].add)
        gradient = torch.ones_like(iterates[-1])
        state = adversary.tell(state, torch.tensor(losses, dtype=torch.float64), {SITE: gradient})
    final = adversary.ask(state)[SITE].add
    assert torch.equal(final[0], iterates[1][0])
    assert torch.equal(final[1], iterates[0][1])
    assert not torch.equal(iterates[0], iterates[1])


def test_pgd_from_zero_says_so_and_does_not_move_a_divergence():
    """VAT by hand: KL near zero is d'Hd/2, whose gradient vanishes at 0; from a random start it climbs to r² λ_max / 2."""
    hessian = torch.diag(torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64))
    loss = lambda delta: ((delta[:, 0] @ hessian) * delta[:, 0]).sum(1) / 2  # noqa: E731
    context = perturbation_context(torch.ones(1, 1, dtype=torch.bool), 0.1, [0])
    still, moving = (adversaries.PGD(radius=0.1, steps=100, step_size=0.5, random_start=start) for start in (False, True))
    assert (still.starts_at_zero, moving.starts_at_zero) == (True, False)
    assert torch.equal(run(still, context, loss)[0], torch.zeros(1, 1, 3, dtype=torch.float64))
    assert loss(run(moving, context, loss)[0]).item() == pytest.approx(0.1**2 * 5.0 / 2, rel=1e-9)


def test_noise_cube_is_neftune():
    """U(-1, 1) α / sqrt(n d): E ||δ||² = α² / 3 per row whatever n, and no number leaves the cube."""
    rows, n, dim, alpha = 400, 6, 8, 5.0
    allowed = torch.zeros(rows, 9, dtype=torch.bool)
    allowed[:, :n] = True
    adversary = adversaries.Noise(radius=alpha, distribution="uniform_cube", scope="row", relative_to="absolute")
    delta = adversary.ask(adversary.start(perturbation_context(allowed, alpha, range(rows), dim=dim)))[SITE].add
    half = alpha / math.sqrt(n * dim)
    assert 0.99 * half < delta.abs().max().item() <= half
    # Var of a squared uniform is 4/45: the mean over 400 rows of 48 numbers has relative error sqrt(4/45 * 9 / 19200) = 0.65 %.
    assert delta.pow(2).sum((1, 2)).mean().item() == pytest.approx(alpha**2 / 3, rel=0.03)


@pytest.mark.parametrize("distribution", ["uniform_ball", "uniform_cube", "gaussian"])
@every_ball
@every_scope
def test_every_noise_stays_in_its_ball(distribution, ball, scope):
    adversary = adversaries.Noise(radius=0.3, ball=ball, scope=scope, distribution=distribution)
    delta = adversary.ask(adversary.start(perturbation_context(torch.ones(50, 4, dtype=torch.bool), 0.3, range(50))))[SITE].add
    size = balls.norm(delta, ball=ball, scope=scope)
    assert size.max() <= 0.3 * (1 + 1e-12)
    assert size.min() > 0


def test_pgd_restarts_keep_the_best_of_all(linear):
    """Asked 2 x 3 times; the second run starts anew; what is returned is the asked iterate of the highest loss, per row."""
    adversary = adversaries.PGD(radius=0.4, steps=3, restarts=2, keep="best")
    context = perturbation_context(linear["allowed"], 0.4, range(3))
    wavy = lambda d: torch.sin(8 * d).sum((1, 2))  # noqa: E731
    state, iterates = climb(adversary, context, wavy)
    assert len(iterates) == 6
    losses = torch.stack([wavy(d) for d in iterates])
    assert (losses.argmax(0) >= 3).any()  # else the second run was of no use to anybody
    assert (losses.argmax(0) < 3).any()
    expected = torch.stack([iterates[k][row] for row, k in enumerate(losses.argmax(0).tolist())])
    assert torch.equal(adversary.ask(state)[SITE].add, expected)
    alone, _ = climb(adversaries.PGD(radius=0.4, steps=3, keep="best"), perturbation_context(linear["allowed"], 0.4, range(3)), wavy)
    assert torch.equal(iterates[0], adversaries.PGD(radius=0.4).start(perturbation_context(linear["allowed"], 0.4, range(3))).delta[SITE])
    assert torch.equal(alone.best[SITE][losses.argmax(0) < 3], expected[losses.argmax(0) < 3])


def test_a_warm_row_starts_where_it_was_left_and_a_new_one_anywhere(linear):
    """Rows 0, 1; then rows 2, 1 in other places of a wider batch: row 1 has its delta back, by its tokens, and row 2 a new one."""
    adversary = adversaries.PGD(radius=0.4, steps=2, warm=True)
    memory = {}
    state, _ = climb(
        adversary, perturbation_context(linear["allowed"][:2], 0.4, [0, 1], memory=memory), lambda d: linear["loss"](d, slice(0, 2))
    )
    left = adversary.ask(state)[SITE].add
    wide = F.pad(linear["allowed"][[2, 1]], (0, 2))
    early = adversary.start(perturbation_context(wide, 0.4, [2, 1], memory=memory)).delta[SITE]
    assert not torch.allclose(early[1, :4], left[1])  # not before the update has ended: another micro-batch might hold row 1, too
    end_update(adversary, memory)
    again = adversary.start(perturbation_context(wide, 0.4, [2, 1], memory=memory)).delta[SITE]
    assert torch.equal(again[1, :4], left[1])
    assert torch.equal(again[0, :4], adversaries.PGD(radius=0.4).start(perturbation_context(wide, 0.4, [2, 1])).delta[SITE][0, :4])
    smaller = adversary.start(perturbation_context(wide, 0.1, [2, 1], memory=memory)).delta[SITE]  # a radius that has shrunk meanwhile
    torch.testing.assert_close(smaller[1, :4], balls.project(left[1:2], ball="L2", scope="token", radius=0.1)[0])


def test_the_longest_unseen_row_leaves_first():
    adversary = adversaries.PGD(radius=0.4, steps=1, warm=True, capacity=2)
    memory, allowed = {}, torch.ones(1, 2, dtype=torch.bool)
    for key in (1, 2, 1, 3):
        climb(adversary, perturbation_context(allowed, 0.4, [key], memory=memory), lambda d: d.sum((1, 2)))
        end_update(adversary, memory)
    fresh = {key: adversary.start(perturbation_context(allowed, 0.4, [key])).delta[SITE] for key in (1, 2, 3)}
    starts = {key: adversary.start(perturbation_context(allowed, 0.4, [key], memory=memory)).delta[SITE] for key in (1, 2, 3)}
    assert [torch.equal(starts[key], fresh[key]) for key in (1, 2, 3)] == [False, True, False]
    assert len(memory["warm"]) == 2


def test_a_group_is_known_by_what_its_rows_share():
    """share: group, where: prompt. Another response to the same prompt brings the delta of that prompt back."""
    adversary = adversaries.PGD(radius=0.4, steps=1, warm=True, share="group", where="prompt")
    allowed = torch.tensor([[True, True, False, False]])
    memory = {}
    context = perturbation_context(allowed, 0.4, [5], memory=memory)
    full = torch.ones_like(allowed)
    first = dataclasses.replace(context, tokens=dataclasses.replace(context.tokens, mask=full))
    state, _ = climb(adversary, first, lambda d: d.sum((1, 2)))
    end_update(adversary, memory)
    other = dataclasses.replace(first, tokens=dataclasses.replace(first.tokens, ids=torch.tensor([[6, 7, 90, 91]])))
    assert torch.equal(adversary.start(other).delta[SITE], adversary.ask(state)[SITE].add)


@pytest.mark.parametrize(
    ("cls", "bad"),
    [
        ("PGD", {"steps": 0}),
        ("PGD", {"step_size": -0.1}),
        ("PGD", {"keep": "first"}),
        ("PGD", {"radius": -1.0}),
        ("PGD", {"capacity": 0}),
        ("PGD", {"restarts": 2}),  # with keep: last
        ("PGD", {"restarts": 2, "keep": "best", "random_start": False}),
        ("PGD", {"restarts": 0}),
        ("APGD", {"steps": 1}),
        ("FreeLB", {"steps": 0}),
        ("FreeLB", {"count": "k"}),
        ("FreeLB", {"step_length": -1.0}),
        ("FreeLB", {"init_magnitude": math.inf}),
        ("Free", {"steps": 2}),
        ("Free", {"step_size": 0.0}),
        ("VAT", {"steps": 0}),
        ("VAT", {"xi": 0.0}),
        ("Universal", {"scope": "row"}),
        ("Universal", {"step_size": 0.0}),
        ("LATAdversary", {"steps": 0}),
        ("LATAdversary", {"learning_rate": 0.0}),
    ],
)
def test_nonsense_is_refused_by_name(cls, bad):
    with pytest.raises(ConfigError, match=f"{plugins.kind_of(getattr(adversaries, cls))}.{next(iter(bad))}"):
        getattr(adversaries, cls)(**bad)


@pytest.mark.parametrize("kind", ["freelb", "free", "universal"])
def test_a_pass_that_trains_has_no_inner_objective(kind):
    inner = config.sections({"objectives": {"o": {"kind": "sft", "source": "s"}}})["objectives"]["o"]
    with pytest.raises(ConfigError, match=f"{kind}.inner"):
        plugins.resolve("adversaries", kind)(inner=inner)


@every_adversary
def test_its_page_names_its_source_and_shows_a_configuration_that_builds(cls):
    page = PAGES / f"{plugins.kind_of(cls)}_adversary.md"  # where an objective has the same name
    text = (page if page.is_file() else PAGES / f"{plugins.kind_of(cls)}.md").read_text(encoding="utf-8")
    assert "**Source.**" in text
    assert "**Deviations.**" in text
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    built = [x for block in blocks for x in config.sections(yaml.safe_load(block)).get("adversaries", {}).values()]
    assert any(isinstance(x, cls) for x in built)
    # Every field of its own, and every default that is not that of the common base, is in its table.
    fields = [f.name for f in dataclasses.fields(cls) if f.name in cls.__annotations__ and f.init]
    assert [name for name in fields if f"`{name}`" not in text] == []


def test_plugins_are_frozen_and_keyword_only():
    adversary = adversaries.PGD(radius=0.1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        adversary.radius = 0.2
    with pytest.raises(TypeError):
        adversaries.PGD(0.1)

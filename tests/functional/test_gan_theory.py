"""The theorems of docs/gan_theory.md on 12 symbols, in float64: exact games, solved to rounding, and a sampled one.

The discriminator of a step is the minimiser of the library's own expected loss; rewards, baselines and advantages are the library's.
"""

import json
import math
from collections import deque
from itertools import pairwise

import pytest
import torch

from advalign import Callback, Learner, Sampling, Stage, Trainer
from advalign.advantages.group import Group
from advalign.functional import advantages, gan, policy
from advalign.objectives.discriminate import Discriminate
from advalign.objectives.grpo import GRPO
from advalign.objectives.sft import SFT
from advalign.rewards.discriminator import Discriminator as DiscriminatorReward
from advalign.sources.contrast import Contrast
from advalign.sources.demos import Demos
from advalign.sources.prompts import Prompts

K = 12
ONE = torch.zeros(K, dtype=torch.long)  # all symbols answer one prompt


def draw(seed, low=0.3):
    """A distribution on K symbols, none of them rare."""
    x = torch.rand(K, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + low
    return x / x.sum()


P, PI0, H, BAD = (draw(seed) for seed in range(4))
UNIFORM = torch.full((K,), 1 / K, dtype=torch.float64)


def tv(p, q):
    return float((p - q).abs().sum() / 2)


def kl(p, q):
    return float((p * (p / q).log()).sum())


def discriminator(real, other, start=None, **options):
    """The scores that minimise E_real[bce(s, 1)] + E_other[bce(s, 0)], by Newton's method on the library's loss."""
    s = torch.zeros(K, dtype=torch.float64) if start is None else start
    labels = torch.tensor([1, 0]).repeat_interleave(K)
    for _ in range(100):
        s = s.detach().requires_grad_()
        loss = (torch.cat([real, other]) * gan.bce(torch.cat([s, s]), labels, **options)).sum()
        (slope,) = torch.autograd.grad(loss, s, create_graph=True)
        (curve,) = torch.autograd.grad(slope.sum(), s)
        step = (slope / curve.clamp(min=1e-300)).detach().clamp(-1, 1)
        s = s.detach() - step
        if float(step.abs().max()) < 1e-7:  # the next one would be its square
            break
    return s


def ascend(q, reward, rate):
    """One step of mirror ascent on E_q[reward]: q' ∝ q exp(rate A), A = reward - E_q[reward]."""
    advantage = reward - advantages.weighted_mean(reward, q, ONE)
    q = q * (rate * advantage).exp()
    return q / q.sum()


def play(q, other, *, form="logit", steps=120, rate=1.0, extra=None, **options):
    """The game: every step the best discriminator of P against `other(q)`, then one step of the policy. Yields q."""
    s = None
    for _ in range(steps):
        s = discriminator(P, other(q), s, **options)
        q = ascend(q, gan.reward(s, form=form) + (0.0 if extra is None else extra(q)), rate)
        yield q


def last(games):
    return deque(games, maxlen=1)[0]


def identity(q):
    return q


# ------------------------------------------------------------------------------------------------ the fixed point


@pytest.mark.parametrize("form", gan.FORMS)
def test_every_reward_form_ends_at_the_real_distribution(form):
    # Near q = p a reward is r(0) + r'(0) log p/q with r'(0) = 1, 1/2, 1/2, 1/4, so log p/q shrinks by 1 - rate r'(0) per step:
    # at most (3/4)^120 = 1e-15 of it is left.
    q = last(play(UNIFORM, identity, form=form))
    assert tv(UNIFORM, P) > 0.1
    assert tv(q, P) < 1e-12
    assert float(discriminator(P, q).abs().max()) < 1e-12  # D = 1/2 everywhere


@pytest.mark.parametrize("form", gan.FORMS)
def test_so_does_the_policy_gradient_of_a_softmax(form):
    z = torch.zeros(K, dtype=torch.float64, requires_grad=True)
    s = None
    for _ in range(3000):
        q = z.softmax(0)
        s = discriminator(P, q.detach(), s)
        reward = gan.reward(s, form=form)
        advantage = reward - advantages.weighted_mean(reward, q.detach(), ONE)
        # E_q of the surrogate of one update per draw: the ratio is 1 and its gradient that of log q.
        losses = policy.clipped_surrogate(q / q.detach(), advantage, low=0.2, high=0.2)
        (slope,) = torch.autograd.grad((q.detach() * losses).sum(), z)
        with torch.no_grad():
            z -= 3.0 * slope
        if float(slope.abs().max()) < 1e-9:
            break
    assert tv(z.softmax(0).detach(), P) < 1e-6


DIVERGENCES = {
    "logit": lambda q, m: kl(q, P),
    "-log(1-D)": lambda q, m: kl(P, m) + kl(q, m),
    "log D": lambda q, m: 2 * kl(m, P),
    "D": lambda q, m: kl(P, m),
}


@pytest.mark.parametrize("form", gan.FORMS)
def test_a_form_descends_its_own_divergence(form):
    # The policy gradient with r frozen is minus the gradient of the divergence: measured by a central difference in every logit.
    assert set(DIVERGENCES) == set(gan.FORMS)
    divergence, z = DIVERGENCES[form], torch.randn(K, dtype=torch.float64)
    q, h = z.softmax(0), 1e-5
    reward = gan.reward(discriminator(P, q), form=form)
    gradient = q * (reward - (q * reward).sum())  # of E_q[r] in the logits

    def at(i, shift):
        moved = (z + shift * torch.eye(K, dtype=torch.float64)[i]).softmax(0)
        return divergence(moved, (P + moved) / 2)

    slope = torch.tensor([(at(i, h) - at(i, -h)) / (2 * h) for i in range(K)], dtype=torch.float64)
    torch.testing.assert_close(-gradient, slope, rtol=0, atol=1e-9)
    # And no step of the game raises it.
    values = [divergence(q, (P + q) / 2) for q in play(H, identity, form=form, rate=0.5, steps=25)]
    assert all(after < before for before, after in pairwise(values))


def test_forms_punish_differently_what_is_never_real():
    # A symbol that is generated but (almost) never real: log p/q and log D are unbounded below, -log(1-D) and D stop at 0.
    # So their gradients hardly tell a symbol that is 1e-3 too likely from one that is 1e-9.
    s = torch.tensor([-7.0, -20.0], dtype=torch.float64)
    gaps = {form: float(gan.reward(s, form=form).diff().abs()) for form in gan.FORMS}
    assert gaps["logit"] == 13
    assert gaps["log D"] == pytest.approx(13, abs=1e-2)
    assert gaps["-log(1-D)"] < 1e-3
    assert gaps["D"] < 1e-3


# ------------------------------------------------------------------------------------- pairs, smoothing, two rewards


def test_bradley_terry_and_bce_give_the_same_advantages():
    # All K x K pairs (a real, b generated), each a group of its own, weighed by p(a) q(b); minimised from a random start.
    q = H
    a, b = torch.cartesian_prod(torch.arange(K), torch.arange(K)).unbind(1)
    labels, group = torch.tensor([1, 0]).repeat(K * K), torch.arange(K * K).repeat_interleave(2)
    counted = torch.ones(2 * K * K, dtype=torch.bool)

    def expected(s):
        losses, _ = gan.bradley_terry(torch.stack([s[a], s[b]], 1).flatten(), labels, group, counted)
        return (P[a] * q[b] * losses[0::2]).sum()

    pairs, ratio = 0.3 * torch.randn(K, dtype=torch.float64) + 1.0, discriminator(P, q)
    for _ in range(8):  # Newton; the pseudo-inverse leaves the direction that the loss does not see
        slope = torch.autograd.functional.jacobian(expected, pairs)
        pairs = pairs - torch.linalg.pinv(torch.autograd.functional.hessian(expected, pairs), rtol=1e-9) @ slope
    shift = pairs - ratio
    assert float(shift.std()) < 1e-12  # the log ratio plus one constant, which the pairs cannot see
    assert abs(float(shift.mean())) > 0.1
    mine, theirs = (advantages.centred(x, ONE)[0] for x in (pairs, ratio))
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)
    torch.testing.assert_close(ratio, (P / q).log(), rtol=0, atol=1e-12)


def test_a_constant_per_prompt_is_removed_by_the_group_and_by_nothing_else():
    # Two prompts; a Bradley-Terry score is log p/q + c(prompt), here c = 3 and -5.
    ratio = torch.cat([(P / H).log(), (P / BAD).log()])
    group = torch.tensor([0, 1]).repeat_interleave(K)
    shifted = ratio + torch.tensor([3.0, -5.0], dtype=torch.float64)[group]
    torch.testing.assert_close(advantages.centred(shifted, group)[0], advantages.centred(ratio, group)[0], rtol=0, atol=1e-14)
    one_group = torch.zeros_like(group)
    assert float((advantages.centred(shifted, one_group)[0] - advantages.centred(ratio, one_group)[0]).abs().max()) == pytest.approx(4)


@pytest.mark.parametrize("form", gan.FORMS)
def test_one_sided_smoothing_keeps_the_fixed_point_and_bounds_the_score(form):
    # D = (1 - e) p / (p + q), so s = log (1 - e) p / (q + e p): never above log (1 - e) / e, constant exactly where q = p.
    e = 0.1
    never = torch.full((K,), 1e-9, dtype=torch.float64)
    assert float(discriminator(P, never, label_smoothing=e).max()) == pytest.approx(math.log((1 - e) / e), abs=1e-6)
    assert float(discriminator(P, never).min()) > 15
    q = last(play(UNIFORM, identity, form=form, label_smoothing=e))
    assert tv(q, P) < 1e-12
    # D = 0.45: of the logits 0.45 / 0.55.
    assert float((discriminator(P, q, label_smoothing=e) - math.log(0.45 / 0.55)).abs().max()) < 1e-12


@pytest.mark.parametrize(("beta", "alpha"), [(0.1, 0.0), (1.0, 0.0), (0.5, 1.0)])
def test_a_penalty_and_a_second_reward_move_the_optimum_to_their_geometric_mean(beta, alpha):
    # Stationary where log p/q + alpha R - beta log q/pi0 is constant: q ∝ p^{1/(1+b)} pi0^{b/(1+b)} exp(alpha R / (1 + b)).
    other = (torch.arange(K) % 3 == 0).double()  # a verifiable reward
    wanted = (P.log() + beta * PI0.log() + alpha * other).div(1 + beta).softmax(0)
    everywhere = torch.ones(K, 1, dtype=torch.bool)

    def extra(q):
        penalty = advantages.kl_rewards(q.log()[:, None], PI0.log()[:, None], everywhere, coef=beta, estimator="k1")
        return alpha * other + penalty[:, 0]

    q = last(play(UNIFORM, identity, extra=extra, rate=0.5))
    assert tv(q, wanted) < 1e-12
    assert tv(q, P) > 0.01  # the anchor and the second reward are paid for


# ------------------------------------------------------------------------------- what else stands among the negatives


def filled(negative, share):
    """q = (p / c - share n)+ / (1 - share), c such that it sums to one, by bisection."""
    low, high = 1e-6, 1e6
    for _ in range(300):
        c = math.sqrt(low * high)
        total = float((P / c - share * negative).clamp(min=0).sum())
        low, high = (c, high) if total > 1 - share else (low, c)
    return (P / c - share * negative).clamp(min=0) / (1 - share)


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_perturbed_prompts_push_mass_away_from_what_they_mark(share):
    # k(text | prompt): how often a text stands under this prompt because it was made to violate it.
    q = last(play(UNIFORM, lambda q: share * BAD + (1 - share) * q, rate=1.0, steps=400))
    assert tv(q, filled(BAD, share)) < 1e-6
    # The more a text is marked, for how real it is, the more it loses.
    unmarked, marked = q / P, BAD / P
    assert unmarked[marked.argsort()].diff().max() < 1e-9
    assert tv(q, P) > 0.05


def test_with_perturbed_negatives_alone_the_policy_collapses():
    # The reward log p/k then does not depend on q: all mass goes to its maximum, however little of that is real.
    q = last(play(UNIFORM, lambda q: BAD, steps=200))
    assert float(q[(P / BAD).argmax()]) > 1 - 1e-6


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_a_frozen_pool_biases_the_game_and_a_recent_one_does_not(share):
    frozen = last(play(UNIFORM, lambda q: share * H + (1 - share) * q, rate=1.0, steps=400))
    assert tv(frozen, filled(H, share)) < 1e-6
    assert tv(frozen, P) > 0.05

    pool = deque([UNIFORM], maxlen=20)  # policies of the last 20 steps

    def recent(q):
        old = torch.stack(list(pool)).mean(0)
        pool.append(q)
        return share * old + (1 - share) * q

    assert tv(last(play(UNIFORM, recent, steps=250)), P) < 1e-6


# -------------------------------------------------------------------------------------------- noise at the fixed point


def test_dividing_by_the_std_of_a_group_makes_any_error_of_the_discriminator_as_large_as_any_other():
    # At q = p the true reward is constant; what is left is the error e x of the scores.
    x, group = torch.randn(16 * 8, dtype=torch.float64), torch.arange(16).repeat_interleave(8)
    for e in (1.0, 1e-2, 1e-3):
        scaled = advantages.group_relative(e * x, group, floor=1e-4)
        unscaled, _ = advantages.centred(e * x, group)
        floored = advantages.group_relative(e * x, group, floor=10.0)
        assert float(scaled.pow(2).mean()) == pytest.approx(7 / 8, rel=1e-10)  # (n - 1) / n, whatever e is
        assert float(unscaled.abs().max()) < 4 * e
        torch.testing.assert_close(floored * 10.0, unscaled, rtol=1e-12, atol=0)  # below the floor the scale is fixed


def wander(scale, seed, steps=160, rate=0.1, error=0.05):
    """Mean TV to P of a policy that starts at P and samples 16 groups of 8 per step, its scores off by `error`, drawn anew per step."""
    generator = torch.Generator().manual_seed(seed)
    z, distances = P.log().clone(), []
    group = torch.arange(16).repeat_interleave(8)
    for _ in range(steps):
        q = z.softmax(0)
        s = (P / q).log() + error * torch.randn(K, dtype=torch.float64, generator=generator)
        y = torch.multinomial(q, 128, replacement=True, generator=generator)
        a = advantages.group_relative(s[y], group, floor=1e-4) if scale == "group" else advantages.centred(s[y], group)[0]
        # The gradient of the mean of A log q(y) in the logits.
        gradient = torch.zeros(K, dtype=torch.float64).index_add(0, y, a / 128) - q * a.mean()
        z = z + rate * K * gradient
        distances.append(tv(z.softmax(0), P))
    return sum(distances[steps // 2 :]) / (steps - steps // 2)


def test_and_the_policy_then_leaves_the_fixed_point():
    pairs = [(wander("none", seed), wander("group", seed)) for seed in range(3)]
    assert all(3 * unscaled < scaled for unscaled, scaled in pairs), pairs


# ------------------------------------------------------------------------------------------------- the trainer itself

WORDS = "a b c d e f".split()
SHARES = torch.tensor([0.40, 0.25, 0.15, 0.10, 0.06, 0.04], dtype=torch.float64)


def table(path, counts):
    """Demonstrations of one prompt: every word as often as it counts."""
    rows = [{"prompt": ":", "response": word} for word, count in zip(WORDS, counts, strict=True) for _ in range(count)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


class Watch(Callback):
    """The policy's distribution over one-word responses, after every step."""

    def __init__(self):
        self.seen = []

    @torch.no_grad()
    def on_step(self, trainer, logs):
        network = trainer.model
        outputs = network(network.encoder.demos([":"] * len(WORDS), WORDS), {"logprobs"})
        self.seen.append(outputs.logprobs.sum(1).double().exp())


@pytest.mark.slow
def test_a_sampled_game_between_two_transformers_ends_near_the_real_distribution(tmp_path):
    real = table(tmp_path / "real.jsonl", [40, 25, 15, 10, 6, 4])
    model = {"tokenizer": {"kind": "words", "data": real}, "max_length": 8}
    wide = "scratch:encoder-tiny?hidden_size=32&num_hidden_layers=1&num_attention_heads=2&intermediate_size=64&initializer_range=0.2"
    watch = Watch()
    trainer = Trainer(
        learners={
            "policy": Learner(model="scratch:tiny-gpt2?n_embd=16&n_layer=1&n_head=2&initializer_range=0.15", learning_rate=3e-3, **model),
            "discriminator": Learner(model=wide, head="score", learning_rate=3e-3, updates=3, options={"dropout": 0.0}, **model),
        },
        sources={
            "flat": Demos(data=table(tmp_path / "flat.jsonl", [10] * 6), batch_size=32),
            "real": Demos(data=real, batch_size=64),
            "write": Prompts(
                data=real,
                limit=1,
                batch_size=1,
                group_size=64,
                sampling=Sampling(max_new_tokens=2),
                rewards=[DiscriminatorReward(learner="discriminator")],
                advantage=Group(scale="none"),
            ),
            "contrast": Contrast(real="real", sampled="write", batch_size=64),
        },
        objectives={
            "warm": SFT(source="flat"),
            "policy": GRPO(source="write"),
            "discriminator": Discriminate(source="contrast", label_smoothing=0.0),
        },
        stages=[
            Stage(name="warm", steps=40, objectives=("warm",)),
            Stage(name="game", steps=130, objectives=("policy", "discriminator"), set={"learners.policy.learning_rate": 1e-3}),
        ],
        callbacks=[watch],
    )
    trainer.train(progress=False)
    before, after = watch.seen[39], torch.stack(watch.seen[-50:])
    assert tv(before, SHARES) > 0.25  # imitation of flat demonstrations: nothing but the discriminator has seen the real shares
    assert tv(after.mean(0), SHARES) < 0.06
    assert sum(tv(q, SHARES) for q in after) / 50 < 0.1

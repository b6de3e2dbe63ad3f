"""One step is one step: the mixed gradient, the split, the counts, zero radius, checkpointing, what an inner loop leaves."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from helpers.networks import Recorder, demos, gradients, labels, learner, network, pairs, rollouts, update

from advalign.adversaries.noise import Noise
from advalign.adversaries.pgd import PGD
from advalign.engine.plan import Plan, plan
from advalign.errors import BudgetError, ConfigError
from advalign.functional import weights
from advalign.interfaces import Objective
from advalign.objectives.classify import Classify
from advalign.objectives.consistency import Consistency
from advalign.objectives.dapo import DAPO
from advalign.objectives.dpo import DPO
from advalign.objectives.entropy import Entropy
from advalign.objectives.grpo import GRPO
from advalign.objectives.kl import KL
from advalign.objectives.sft import SFT
from advalign.types import Losses

EXACT = 1e-12
MIX = {
    "policy": DAPO(source="math"),
    "near": KL(source="math", coef=0.1),
    "spread": Entropy(source="math", coef=0.01),
    "robust_policy": GRPO(source="math", view="noise", coef=0.7),
    "imitate": SFT(source="chat"),
    "robust": SFT(source="chat", view="pgd", coef=0.5),
    "prefer": DPO(source="taste", view="noise", coef=0.2),
    "agree": Consistency(source="chat", view="noise", output="tokens", coef=0.3),
}
ADVERSARIES = {"pgd": PGD(radius=0.3, steps=3), "noise": Noise(radius=0.5)}


def mixed_rows(net):
    return {"math": rollouts(net), "chat": demos(net), "taste": pairs(net)}


def close(a, b, tolerance=EXACT):
    """Largest difference relative to the largest entry."""
    return float((a - b).abs().max() / b.abs().max()) <= tolerance


def test_the_mixed_gradient_is_the_sum_of_separate_gradients_at_fixed_delta():
    # The noise depends on (update, view, source, row) alone and PGD serves one term, so every delta is the same in both runs.
    net = network()
    rows = mixed_rows(net)
    together, _ = update(learner(net), MIX, rows, ADVERSARIES)
    apart = torch.zeros_like(together)
    for name, objective in MIX.items():
        apart += update(learner(net), {name: objective}, {objective.source: rows[objective.source]}, ADVERSARIES)[0]
    assert close(together, apart)
    assert not close(together, apart - update(learner(net), {"policy": MIX["policy"]}, rows, {})[0])  # each term matters


@pytest.mark.parametrize("budget", [24, 33, 60, 500])
def test_every_split_gives_the_same_gradient_and_the_same_deltas(budget):
    net = network()
    rows = mixed_rows(net)
    unsplit, split = Recorder(ADVERSARIES["pgd"]), Recorder(ADVERSARIES["pgd"])
    one, logs = update(learner(net), MIX, rows, ADVERSARIES | {"pgd": unsplit})
    two, split_logs = update(learner(net), MIX, rows, ADVERSARIES | {"pgd": split}, budget=budget)
    assert close(two, one)
    assert unsplit.deltas.keys() == split.deltas.keys()
    assert max(float((unsplit.deltas[k] - split.deltas[k]).abs().max()) for k in unsplit.deltas) <= EXACT
    for name, value in logs.items():  # metrics are sums over the update, too
        assert math.isclose(split_logs[name], value, rel_tol=1e-9, abs_tol=1e-12), name


def test_forwards_are_what_the_plan_predicts():
    net = network()
    objectives = {k: MIX[k] for k in ("policy", "imitate", "robust")}
    predicted = plan("policy", objectives, ADVERSARIES, [])
    rows = mixed_rows(net)
    before = net.num_forwards
    update(learner(net), objectives, rows, ADVERSARIES)
    assert net.num_forwards - before == sum(predicted.forwards().values()) == 1 + 3 + 1
    assert predicted.separate_forwards() == 1 + 1 + (3 + 1)


def test_zero_radius_is_clean():
    net = network()
    rows = {"chat": demos(net)}
    still = {"pgd": PGD(radius=0.0, steps=2)}
    clean, _ = update(learner(net), {"a": SFT(source="chat")}, rows)
    attacked, _ = update(learner(net), {"a": SFT(source="chat", view="pgd")}, rows, still)
    assert torch.equal(attacked, clean)  # the layout is the same, so bit for bit
    split, _ = update(learner(net), {"a": SFT(source="chat", view="pgd")}, rows, still, budget=24)
    assert close(split, clean)


@pytest.mark.parametrize("site", ["embedding", "layer:0", "layer:1", "layer:-1"])
def test_non_reentrant_checkpointing_changes_nothing(site):
    # Trap 1: an edit removed before the recomputation gives wrong gradients with no error.
    adversaries = {"pgd": PGD(radius=0.3, steps=2, sites=(site,), relative_to="absolute")}
    both_gradients = []
    for checkpointing in (False, True):
        net = network(options={"gradient_checkpointing": checkpointing})
        assert net.model.is_gradient_checkpointing is checkpointing
        both_gradients.append(update(learner(net), {"a": SFT(source="chat", view="pgd")}, {"chat": demos(net)}, adversaries)[0])
    assert close(both_gradients[1], both_gradients[0])
    clean, _ = update(learner(net), {"a": SFT(source="chat")}, {"chat": demos(net)})
    assert not close(both_gradients[0], clean, 1e-3)  # and the attack did something


def test_the_inner_loop_leaves_grad_mode_and_random_state_alone():
    net = network()
    runtime = learner(net)
    runtime.optimizer.zero_grad = lambda set_to_none=True: None  # so that what stands in .grad before is still there
    marks = {name: torch.full_like(p, 7.0) for name, p in net.named_parameters()}
    for name, p in net.named_parameters():
        p.grad = marks[name].clone()
    # A term of coefficient 0: the inner loop runs on the inner objective, the final backward adds zeros.
    adversaries = {"pgd": PGD(radius=0.3, steps=3, inner=SFT(source="chat", view="pgd"))}
    torch.manual_seed(5)
    modes = [m.training for m in net.train().modules()]
    update(runtime, {"a": SFT(source="chat", view="pgd", coef=0.0)}, {"chat": demos(net)}, adversaries)
    assert all(torch.equal(p.grad, marks[name]) for name, p in net.named_parameters())
    assert [m.training for m in net.modules()] == modes
    assert all(p.requires_grad for p in net.parameters())


def test_ratios_are_one_with_one_update_and_move_with_several():
    net = network()
    _, once = update(learner(net), {"p": DAPO(source="m")}, {"m": rollouts(net, old=False)})
    assert once["p/ratio"] == 1.0
    assert once["p/clip_fraction"] == 0.0
    _, drifted = update(learner(net), {"p": DAPO(source="m")}, {"m": rollouts(net, old=True)})
    assert drifted["p/ratio"] != 1.0
    assert drifted["p/clip_fraction"] > 0.1


def test_grpo_dapo_and_plain_policy_gradient_agree_at_ratio_one_and_differ_after():
    # At ratio 1 nothing is clipped: the gradient of min(rA, clip(r)A) is A grad log pi for every clip range.
    net = network()
    fresh, old = {"m": rollouts(net, old=False)}, {"m": rollouts(net, old=True)}
    same = [update(learner(net), {"p": cls(source="m", weighting="token")}, fresh)[0] for cls in (GRPO, DAPO)]
    assert torch.equal(same[0], same[1])
    narrow, wide = (update(learner(net), {"p": GRPO(source="m", clip_high=high, clip_low=0.05)}, old)[0] for high in (0.01, 0.5))
    assert not close(narrow, wide, 1e-3)


def test_one_delta_per_group_is_shared_by_its_rollouts():
    net = network()
    recorder = Recorder(PGD(radius=0.3, steps=2, where="prompt", share="group"))
    objectives = {"p": GRPO(source="m", view="pgd")}
    unsplit, _ = update(learner(net), objectives, {"m": rollouts(net)}, {"pgd": recorder})
    assert len(recorder.deltas) == 2  # two prompts, six rollouts
    split, _ = update(
        learner(net), objectives, {"m": rollouts(net)}, {"pgd": PGD(radius=0.3, steps=2, where="prompt", share="group")}, budget=30
    )
    assert close(split, unsplit)
    net._packs = False  # beginnings that run once, perturbed, against rows of their own
    padded, _ = update(learner(net), objectives, {"m": rollouts(net)}, {"pgd": PGD(radius=0.3, steps=2, where="prompt", share="group")})
    assert close(padded, unsplit)


def test_dropout_policies():
    # "sync": ascent and final pass draw the same masks, so the gain is never negative for tiny steps; "off": no masks at all.
    net = network("classifier", options={"dropout": 0.5})
    rows = {"s": labels(net)}
    objectives = {"c": Classify(source="s", view="pgd")}

    def gains(policy, steps=1):
        adversary = PGD(radius=1e-4, steps=1, step_size=1.0, random_start=False, dropout=policy)
        return [update(learner(net), objectives, rows, {"pgd": adversary}, key=("k", i))[1]["pgd/gain"] for i in range(8)]

    assert all(gain > 0 for gain in gains("off"))
    assert all(gain > 0 for gain in gains("sync"))
    assert max(gains("sync")) < 1e-2 < max(map(abs, gains("fresh")))  # fresh masks move the loss far more than the attack
    off, again = (update(learner(net), objectives, rows, {"pgd": PGD(dropout="off")}, key=("same",))[0] for _ in range(2))
    assert torch.equal(off, again)


def test_a_consistency_term_is_zero_and_flat_at_zero_radius_for_a_classifier():
    net = network("classifier")
    objectives = {"c": Consistency(source="s", view="pgd")}
    gradient, logs = update(learner(net), objectives, {"s": labels(net)}, {"pgd": PGD(radius=0.0)})
    assert logs["c/loss"] == pytest.approx(0, abs=EXACT)
    assert gradient.abs().max() <= EXACT
    moved, logs = update(learner(net), objectives, {"s": labels(net)}, {"pgd": PGD(radius=0.5)})
    assert logs["c/loss"] > 1e-6
    assert moved.abs().max() > 1e-6


def test_a_bundle_over_the_budget_is_refused_in_a_sentence():
    net = network()
    with pytest.raises(BudgetError, match=r"args.token_budget: 2 row\(s\) of .* of source 'taste' must stay together"):
        update(learner(net), {"p": DPO(source="taste")}, {"taste": pairs(net)}, budget=8)


def test_gradient_norms_per_term_are_those_of_the_terms_alone():
    net = network()
    rows = mixed_rows(net)
    runtime = learner(net)
    logs = runtime.update(plan("policy", MIX, ADVERSARIES, []), rows, {}, budget=10_000, key=("update",), measure=True)
    for name in ("policy", "robust"):
        alone, _ = update(learner(net), {name: MIX[name]}, rows, ADVERSARIES)
        assert logs[f"{name}/gradient_norm"] == pytest.approx(float(alone.norm()), rel=1e-9)
    assert -1 <= logs["cosine/imitate~robust"] <= 1
    assert gradients(net).norm() > 0


def test_an_adversary_with_nothing_to_ascend_is_refused():
    objectives = {"c": Consistency(source="s", view="noise", against="pgd")}
    with pytest.raises(ConfigError, match=r"adversaries\.pgd: no objective is evaluated on its view"):
        plan("policy", objectives, ADVERSARIES, [])
    zero = {"pgd": PGD(random_start=False)}
    with pytest.raises(ConfigError, match="the gradient of a divergence is zero at delta = 0"):
        plan("policy", {"c": Consistency(source="s", view="pgd")}, zero, [])


@dataclass(frozen=True, kw_only=True)
class Drift(Objective):
    """A divergence of one's own: (log p - log p_clean)^2 of every target token, which is flat at delta = 0."""

    is_divergence: ClassVar[bool] = True

    @property
    def reads(self):
        return {view: frozenset({"logprobs"}) for view in {"clean", self.view}}

    def weights(self, rows):
        return weights.token(rows.tokens.target)

    def losses(self, rows, views):
        return Losses((views[self.view].logprobs - views["clean"].logprobs) ** 2)


def test_a_divergence_of_ones_own_needs_a_random_start_too():
    net, rows = network(), {"s": demos(network())}
    zero, random = PGD(radius=0.3, steps=2, random_start=False), PGD(radius=0.3, steps=2, random_start=True)
    objectives = {"own": Drift(source="s", view="pgd")}
    # The reason: at delta = 0 the loss is 0 and flat, so two steps later it is still 0 but for rounding; from a random start it grows.
    still = Plan(learner="policy", objectives=objectives, adversaries={"pgd": zero}, frozen=frozenset(), components=(("clean", "pgd"),))
    logs = learner(net).update(still, rows, {}, budget=10_000, key=("update",))
    assert logs["pgd/loss_end"] == pytest.approx(0, abs=EXACT)
    assert update(learner(net), objectives, rows, {"pgd": random})[1]["pgd/gain"] > 1e-6
    with pytest.raises(ConfigError, match=r"^objectives\.own: the gradient of a divergence is zero at delta = 0, so adversary 'pgd'"):
        plan("policy", objectives, {"pgd": zero}, [])


def test_a_divergence_that_an_adversary_ascends_itself_needs_a_random_start_too():
    """Also where another objective only compares its view with that of the adversary."""
    zero = PGD(radius=0.3, steps=2, random_start=False, inner=Drift(source="s", view="pgd"))
    for objective in (SFT(source="s", view="pgd"), Consistency(source="s", view="clean", against="pgd", output="tokens")):
        with pytest.raises(ConfigError, match=r"^adversaries\.pgd\.inner: the gradient of a divergence is zero at delta = 0"):
            plan("policy", {"a": objective}, {"pgd": zero}, [])
    # What it ascends decides, and not what it is trained on.
    plan("policy", {"a": Drift(source="s", view="pgd")}, {"pgd": replace(zero, inner=SFT(source="s", view="pgd"))}, [])


def test_a_gradient_norm_of_zero_means_no_clipping():
    net, rows = network(), {"m": rollouts(network(), old=False)}
    objectives = {"p": GRPO(source="m", coef=50.0)}
    whole, logs = update(learner(net, max_grad_norm=1e9), objectives, rows)
    unclipped, same = update(learner(net, max_grad_norm=0), objectives, rows)
    clipped, _ = update(learner(net, max_grad_norm=0.5), objectives, rows)
    assert torch.equal(unclipped, whole)
    assert same == logs
    assert logs["policy/grad_norm"] == pytest.approx(float(whole.norm()))
    assert float(whole.norm()) > 0.5
    assert float(clipped.norm()) == pytest.approx(0.5, rel=1e-5)
    with pytest.raises(ConfigError, match=r"max_grad_norm: -1 given; a number of at least 0, or \.inf for no limit"):
        learner(net, max_grad_norm=-1.0)

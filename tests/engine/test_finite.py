"""A number that is not finite never reaches a weight, a moment or a delta that is kept."""

import math

import pytest
import torch
from accelerate import Accelerator
from helpers.equal import assert_equal
from helpers.networks import demos, network

from advalign.adversaries.apgd import APGD
from advalign.adversaries.free import Free
from advalign.adversaries.freelb import FreeLB
from advalign.adversaries.pgd import PGD
from advalign.adversaries.universal import Universal
from advalign.engine.finite import FiniteGuard, finite_feedback
from advalign.engine.learner import Learner, LearnerRuntime
from advalign.engine.plan import plan
from advalign.errors import NonFiniteError
from advalign.objectives.sft import SFT
from advalign.types import Losses


class Spoiled(SFT):
    """SFT whose losses or gradients are not finite while `bad` says so."""

    bad = "nothing"

    def losses(self, rows, views):
        result = super().losses(rows, views)
        if self.bad == "loss":  # of one token of one micro-batch
            return Losses(torch.where(rows.tokens.key[:, None] == 1, math.inf, result.values), result.metrics)
        if self.bad == "gradient":  # sqrt has slope inf at 0, and inf * 0 is nan: a finite loss with a gradient of nan
            return Losses(result.values + (result.values.detach() - result.values).clamp(min=0).sqrt() * 0, result.metrics)
        return result


def start(net, **fields):
    return LearnerRuntime("policy", Learner(model="given", **{"learning_rate": 1e-2, **fields}), net, Accelerator(), 10)


def state(runtime):
    optimizer = runtime.optimizer.state_dict()["state"]
    return [*(p.detach().clone() for p in runtime.network.parameters()), *(x.clone() for s in optimizer.values() for x in s.values())]


def update(runtime, monkeypatch, bad="nothing", adversaries=None, view="clean", **options):
    monkeypatch.setattr(Spoiled, "bad", bad)
    frozen_plan = plan("policy", {"imitate": Spoiled(source="chat", view=view)}, adversaries or {}, [])
    rows = {"chat": demos(runtime.network)}
    return runtime.update(frozen_plan, rows, {}, **{"budget": 10_000, "key": ("update", runtime.version), **options})


@pytest.mark.parametrize("bad", ["loss", "gradient"])
@pytest.mark.parametrize("budget", [16, 10_000])
def test_an_update_that_is_not_finite_is_skipped_counted_and_named(bad, budget, monkeypatch):
    runtime, other = start(network()), start(network())
    update(runtime, monkeypatch)
    before = state(runtime)
    logs = update(runtime, monkeypatch, bad, budget=budget)
    assert math.isfinite(logs["imitate/loss"]) == (bad == "gradient")
    assert math.isfinite(logs["policy/grad_norm"]) == (bad == "loss")  # either is enough
    assert_equal(before, state(runtime))
    assert runtime.version == 1
    counts = runtime.guard.take_counts()
    assert counts == {"policy/num_nonfinite_updates": 1.0} | ({"imitate/num_nonfinite_losses": 1.0} if bad == "loss" else {})
    assert ("objectives.imitate has loss nan" in runtime.guard.reason) == (bad == "loss")
    assert runtime.guard.take_counts() == {}
    # What follows is what would have been without it.
    update(runtime, monkeypatch)
    for _ in range(2):
        update(other, monkeypatch)
    assert_equal(state(runtime), state(other))
    assert runtime.guard.skipped_in_a_row == 0


def test_a_run_stops_after_some_in_a_row(monkeypatch):
    runtime = start(network())
    for _ in range(2):
        update(runtime, monkeypatch, "loss")
        runtime.guard.stop_after(3)
    update(runtime, monkeypatch)  # one that is made: counting begins anew
    for _ in range(2):
        update(runtime, monkeypatch, "loss")
    runtime.guard.stop_after(3)
    resumed = start(network())
    resumed.load_state_dict(runtime.state_dict())
    update(resumed, monkeypatch, "loss")
    with pytest.raises(NonFiniteError, match=r"^learners\.policy: 3 updates in a row were skipped, .* objectives\.imitate has loss nan"):
        resumed.guard.stop_after(3)


@pytest.mark.parametrize("where", ["loss", "gradient", "both"])
def test_which_updates_pass(where):
    guard = FiniteGuard("policy")
    losses = {"a": 1.0, "b": math.nan if where in ("loss", "both") else -math.inf if where == "loss" else 2.0}
    assert not guard.passes(losses, math.nan if where != "loss" else 1.0, {})
    assert guard.passes({"a": 1.0, "b": -3.0}, 0.0, {})
    assert "policy/num_nonfinite_updates" in guard.take_counts()


def test_rows_that_are_not_finite_are_named(monkeypatch):
    from helpers.networks import rollouts

    from advalign.objectives.grpo import GRPO

    net = network()
    rows = rollouts(net)
    rows.advantages[2, int(rows.tokens.target[2].nonzero()[0])] = math.nan
    rows.ref_logprobs[4, 0] = math.nan  # off target: not looked at
    runtime = start(net)
    runtime.update(plan("policy", {"learn": GRPO(source="write")}, {}, []), {"write": rows}, {}, budget=10_000, key=("update",))
    counts = {"policy/num_nonfinite_updates": 1.0, "learn/num_nonfinite_losses": 1.0, "write/num_nonfinite_rows": 1.0}
    assert runtime.guard.take_counts() == counts
    assert "1 rows of sources.write have advantages that are not finite" in runtime.guard.reason


def test_a_model_without_finite_numbers_stops_at_once(monkeypatch):
    net = network()
    with torch.no_grad():
        next(p for name, p in net.named_parameters() if "wpe" in name)[1, 0] = math.nan
    with pytest.raises(NonFiniteError, match=r"^learners\.policy\.model: .* gives no finite numbers: 1 of \d+ numbers in .*wpe"):
        update(start(net), monkeypatch)


# ---------------------------------------------------------------------------------------------- inside an adversary


def test_a_delta_neither_moves_by_nan_nor_is_kept_for_it():
    allowed = torch.tensor([[True, True], [True, True], [True, False]])
    gradients = torch.ones(3, 2, 4)
    gradients[1, 0, 2] = math.nan
    gradients[2, 1, 0] = math.inf  # where a delta is not allowed: undefined, and not looked at
    losses, finite, number = finite_feedback(torch.tensor([1.0, 2.0, math.nan]), {"embedding": gradients}, allowed)
    assert losses.tolist() == [1.0, 2.0, -math.inf]
    assert (finite["embedding"][1] == 0).all()
    assert torch.equal(finite["embedding"][[0, 2]], gradients[[0, 2]])
    assert int(number) == 2


@pytest.mark.parametrize(
    "adversary",
    [
        PGD(radius=0.5, steps=2),
        PGD(radius=0.5, steps=3, keep="best"),
        PGD(radius=0.5, steps=1, warm=True),
        APGD(radius=0.5, steps=3),
        FreeLB(radius=0.5, steps=2),
        Free(radius=0.5),
        Universal(radius=0.5),
    ],
    ids=lambda a: type(a).__name__,
)
def test_what_an_adversary_keeps_stays_finite(adversary, monkeypatch):
    """One row of the draw has a loss of inf in one update; the next update is made, from finite deltas."""
    runtime = start(network())
    options = {"adversaries": {"attack": adversary}, "view": "attack"}
    update(runtime, monkeypatch, **options)
    logs = update(runtime, monkeypatch, "loss", **options)
    assert logs["attack/num_nonfinite_gradients"] >= 1
    assert runtime.version == 1
    assert all(x.isfinite().all() for x in tensors(runtime.memory))
    clean = update(runtime, monkeypatch, **options)
    assert "attack/num_nonfinite_gradients" not in clean
    assert runtime.version == 2
    assert all(p.isfinite().all() for p in runtime.network.parameters())


def tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    return [x for entry in (value.values() if isinstance(value, dict) else ()) for x in tensors(entry)]

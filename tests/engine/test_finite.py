"""A number that is not finite never reaches a weight, a moment or a delta that is kept."""

import math
from dataclasses import replace
from typing import ClassVar

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
from advalign.engine.finite import FiniteGuard, finite_edits, finite_feedback
from advalign.engine.learner import Learner, LearnerRuntime
from advalign.engine.metrics import MetricAccumulator
from advalign.engine.plan import plan
from advalign.errors import NonFiniteError
from advalign.objectives.sft import SFT
from advalign.types import Edit, Losses


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


def numbers(logs):
    return {name: value for name, value in logs.items() if not isinstance(value, str)}


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
    counts = numbers(runtime.guard.take_logs())
    assert counts == {"policy/num_nonfinite_updates": 1.0} | ({"imitate/num_nonfinite_losses": 1.0} if bad == "loss" else {})
    assert ("objectives.imitate has loss nan" in runtime.guard.reason) == (bad == "loss")
    assert runtime.guard.take_logs() == {}
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
    guard, net = FiniteGuard("policy"), network()
    frozen_plan, rows = plan("policy", {"a": SFT(source="chat"), "b": SFT(source="chat")}, {}, []), {"chat": demos(net)}

    def passes(b, norm):
        return guard.passes(frozen_plan, MetricAccumulator({"a/loss": 1.0, "b/loss": b}), norm, rows)

    for bad in (math.nan, math.inf, -math.inf):
        assert not passes(bad if where != "gradient" else 2.0, bad if where != "loss" else 1.0)
    assert guard.skipped_in_a_row == 3
    assert passes(-3.0, 0.0)
    assert guard.skipped_in_a_row == 0
    logs = guard.take_logs()
    assert logs["policy/num_nonfinite_updates"] == 3
    assert ("objectives.b has loss nan" in logs["policy/nonfinite"]) == (where != "gradient")  # the first of the step


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
    assert numbers(runtime.guard.take_logs()) == counts
    assert "objectives.learn has loss nan (sources.write: row 2)" in runtime.guard.reason
    assert "1 rows of sources.write have advantages that are not finite (sources.write: row 2)" in runtime.guard.reason


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


class Wild(PGD):
    """PGD whose delta of the first row is not finite, in the first pass or in the last."""

    bad = math.nan
    when = "last"

    def ask(self, state):
        edits = dict(super().ask(state))
        self.times.append(len(self.times))
        if (len(self.times) == 1) if self.when == "first" else (len(self.times) > self.steps):
            edits = {site: replace(edit, add=edit.add.index_fill(0, torch.tensor([0]), self.bad)) for site, edit in edits.items()}
        return edits

    times: ClassVar[list] = []


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("when", ["first", "last"])
def test_a_delta_that_is_not_finite_is_zero_and_counted(when, bad, monkeypatch):
    """The others stay: the loss of the view is finite, and the update is made."""
    monkeypatch.setattr(Wild, "bad", bad)
    monkeypatch.setattr(Wild, "when", when)
    monkeypatch.setattr(Wild, "times", [])
    runtime = start(network())
    logs = update(runtime, monkeypatch, adversaries={"attack": Wild(radius=0.5, steps=2)}, view="attack")
    assert logs["attack/num_nonfinite_deltas"] == 1
    assert runtime.version == 1
    assert math.isfinite(logs["imitate/loss"])
    assert all(p.isfinite().all() for p in runtime.network.parameters())


def test_edits_that_are_finite_stay_as_they_are():
    edits = {"embedding": Edit(add=torch.randn(3, 2, 4)), "layer:0": Edit(add=torch.full((3, 2, 4), torch.finfo(torch.float32).max))}
    finite, number = finite_edits(edits)
    assert int(number) == 0
    assert all(torch.equal(finite[site].add, edits[site].add) for site in edits)


def test_metrics_of_a_loss_that_is_not_finite_are_nan(monkeypatch):
    """An accuracy is a number even where scores are nan: it would move a gate."""
    runtime = start(network())
    logs = update(runtime, monkeypatch, "loss")
    own = {name: value for name, value in logs.items() if name.startswith("imitate/")}
    assert len(own) > 1
    assert all(map(math.isnan, own.values()))
    logs = update(runtime, monkeypatch, "loss", train=False)  # while a gate rests the learner
    assert all(math.isnan(value) for name, value in logs.items() if name.startswith("imitate/"))
    assert runtime.guard.skipped_in_a_row == 1


def test_weights_beyond_the_range_of_their_precision_stop_the_run(monkeypatch):
    """A step of AdamW is about the learning rate, here 1e5; the largest float16 is 65,504."""
    runtime = start(network().half(), learning_rate=1e5)
    with pytest.raises(NonFiniteError, match=r"^learners\.policy: its last update made weights that are not finite \(.*wte.*none is saved"):
        update(runtime, monkeypatch)


def test_the_row_and_the_view_are_named(monkeypatch):
    runtime = start(network())
    update(runtime, monkeypatch, "loss", adversaries={"attack": PGD(radius=0.5, steps=1)}, view="attack", budget=16)
    assert "objectives.imitate (view attack) has loss" in runtime.guard.reason
    assert "(sources.chat: row 1)" in runtime.guard.reason
    update(runtime, monkeypatch, "loss", row_name=lambda source, number: f"{source} no. {number}")
    assert "(sources.chat: chat no. 1)" in runtime.guard.reason

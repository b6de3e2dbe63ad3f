"""What the engine does for adversaries beyond the plain inner loop: passes that all train, memory, replaced rows, removed
directions, prefixes, chances, dropout under checkpointing."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from helpers.networks import demos, gradients, labels, learner, network, update

from advalign.adversaries.noise import Noise
from advalign.adversaries.pgd import PGD
from advalign.engine.plan import plan
from advalign.errors import ConfigError
from advalign.models import perturb
from advalign.objectives.classify import Classify
from advalign.objectives.consistency import Consistency
from advalign.objectives.sft import SFT
from advalign.types import Edit

EXACT = 1e-12
ROBUST = {"a": SFT(source="chat", view="adv")}


@dataclass(frozen=True, kw_only=True)
class Climb(PGD):  # a test may subclass what is concrete
    """Passes that all train, from zero: the deltas it was at are kept for the slow loop."""

    trains_every_pass: ClassVar[bool] = True
    passes: int = 3
    random_start: bool = False


def gradient_at(net, rows, adds):
    """The plain gradient of the token-mean NLL with a given addition at the embedding."""
    net.zero_grad(set_to_none=True)
    tokens = rows.tokens
    logprobs = net(tokens, {"logprobs"}, {"embedding": Edit(adds)}).logprobs
    (-(logprobs * tokens.target).sum() / tokens.target.sum()).backward()
    return gradients(net)


def test_every_pass_trains_and_moves_the_delta_by_the_gradient_of_the_same_backward():
    net = network()
    rows = demos(net)
    radius = 0.3 * net.mean_embedding_norm()
    # The slow loop: d_0 = 0; at each of three passes the parameter gradient is averaged, then d moves along its own.
    add, total = torch.zeros(*rows.tokens.ids.shape, 32, dtype=torch.float64), 0
    for _ in range(3):
        total = total + gradient_at(net, rows, add) / 3
        leaf = add.clone().requires_grad_()
        out = net(rows.tokens, {"logprobs"}, {"embedding": Edit(leaf)}).logprobs
        (g,) = torch.autograd.grad(-(out * rows.tokens.target).sum(), leaf)
        norm = g.norm(dim=-1, keepdim=True)
        add = add + torch.where(norm > 0, 2.5 / 3 * radius * g / norm.clamp(min=1e-300), 0)
        add = add * (radius / add.norm(dim=-1, keepdim=True).clamp(min=radius))
        add = add * rows.tokens.mask[..., None]
    net.zero_grad(set_to_none=True)
    before = net.num_forwards
    gradient, logs = update(learner(net), ROBUST, {"chat": rows}, {"adv": Climb(radius=0.3, steps=3)})
    assert net.num_forwards - before == 3  # no clean pass, no final one
    torch.testing.assert_close(gradient, total, rtol=0, atol=EXACT)
    assert logs["adv/gain"] > 0
    assert logs["a/loss"] == pytest.approx((logs["adv/loss_start"] + logs["adv/loss_end"]) / 2, rel=0.2)


@pytest.mark.parametrize("budget", [24, 60])
def test_passes_that_all_train_do_not_depend_on_the_split_and_leave_other_terms_alone(budget):
    net = network()
    rows = {"chat": demos(net)}
    terms = ROBUST | {"clean": SFT(source="chat", coef=0.7), "agree": Consistency(source="chat", view="adv", output="tokens", coef=0.3)}
    adversaries = {"adv": Climb(radius=0.3, steps=3, random_start=True)}
    whole, logs = update(learner(net), terms, rows, adversaries)
    parts, split = update(learner(net), terms, rows, adversaries, budget=budget)
    torch.testing.assert_close(parts, whole, rtol=0, atol=EXACT)
    assert split["clean/loss"] == pytest.approx(logs["clean/loss"], rel=1e-9)
    # The clean term counts once, however many passes there are.
    alone, _ = update(learner(net), {"clean": terms["clean"]}, rows)
    without, _ = update(learner(net), {k: v for k, v in terms.items() if k != "clean"}, rows, adversaries)
    torch.testing.assert_close(whole, alone + without, rtol=0, atol=EXACT)


def test_two_adversaries_that_train_in_every_pass_cannot_be_compared():
    terms = {view: SFT(source="chat", view=view) for view in ("one", "two")}
    terms["c"] = Consistency(source="chat", view="one", against="two", output="tokens")
    with pytest.raises(ConfigError, match="one and two are compared with each other"):
        plan("policy", terms, dict.fromkeys(("one", "two"), Climb(radius=0.1, random_start=True)), [])
    with pytest.raises(ConfigError, match="cannot ascend another objective"):
        plan("policy", ROBUST, {"adv": Climb(radius=0.1, inner=SFT(source="chat", view="adv"))}, [])


@dataclass(frozen=True, kw_only=True)
class Counts(Noise):
    """Remembers what it saw, and counts the updates that ended."""

    def start(self, context):
        context.memory["rows"] = context.memory.get("rows", 0) + len(context.names)
        context.memory["names"] = {**context.memory.get("names", {}), **dict.fromkeys(context.names, 1)}
        assert context.tokens is not None
        assert context.key[0] == "update"
        return super().start(context)

    def end_update(self, memory, all_reduce):
        memory["updates"] = memory.get("updates", 0) + 1


def test_memory_lives_from_update_to_update_and_is_saved():
    net = network()
    runtime = learner(net)
    adversaries = {"adv": Counts(radius=0.1)}
    for _ in range(2):
        update(runtime, ROBUST, {"chat": demos(net)}, adversaries, budget=24)
    memory = runtime.state_dict()["memory"]["adv"]
    assert (memory["rows"], memory["updates"]) == (10, 2)  # five rows, two updates, however many micro-batches
    assert set(memory["names"]) == {f"chat/{i}" for i in range(5)}
    fresh = learner(net)
    fresh.load_state_dict(runtime.state_dict())
    assert fresh.memory == runtime.memory


@dataclass(frozen=True, kw_only=True)
class Swap(Noise):
    """Puts a token in front of every row and replaces its first one: a discrete edit that makes rows longer."""

    def start(self, context):
        return context

    def ask(self, context):
        t = context.tokens
        one = torch.full_like(t.ids[:, :1], 3)
        ids = torch.cat([one, one, t.ids[:, 1:]], 1)
        mask, target = (torch.cat([x[:, :1], x], 1) for x in (t.mask, t.target))
        origin = torch.arange(1, t.ids.shape[1] + 1).expand_as(t.ids)
        source = torch.arange(-1, t.ids.shape[1]).expand_as(ids)
        add = torch.zeros(*ids.shape, 32, dtype=context.dtype)
        return {"embedding": Edit(add, tokens=t.moved(source, ids=ids, mask=mask, target=target), origin=origin)}


def test_replaced_rows_run_instead_and_outputs_come_back_to_their_positions():
    net = network()
    rows = demos(net)
    outputs, logs = update(learner(net), ROBUST, {"chat": rows}, {"adv": Swap(radius=0.1)})
    changed = Swap(radius=0.1).ask(type("G", (), {"tokens": rows.tokens, "dtype": torch.float64}))["embedding"].tokens
    by_hand, plain = update(learner(net), {"a": SFT(source="chat")}, {"chat": replace(rows, tokens=changed)})
    torch.testing.assert_close(outputs, by_hand, rtol=0, atol=EXACT)
    assert logs["a/loss"] == pytest.approx(plain["a/loss"], rel=1e-12)


def test_gone_positions_are_zero_after_gathering():
    net = network()
    tokens = net.encoder.demos(["a"], ["b c"])
    outputs = net(tokens, {"logprobs", "distribution", "hidden:layer:0"})
    origin = torch.tensor([[0, -1, *range(2, tokens.ids.shape[1])]])
    back = outputs.gather(origin)
    assert back.logprobs[0, 1] == 0
    assert torch.equal(back.logprobs[0, 2:], outputs.logprobs[0, 2:])
    assert torch.equal(back.hidden["layer:0"][0, 1], torch.zeros(32, dtype=torch.float64))
    assert torch.equal(back.distribution.hidden[0, 2:], outputs.distribution.hidden[0, 2:])


@pytest.mark.parametrize("model", ["scratch:tiny?hidden_size=32", "scratch:tiny-gpt2?n_embd=32"])
def test_hidden_states_are_those_the_next_block_reads(model):
    net = network(model=model)
    net._packs = False  # what a block reads is then laid out as what comes out
    tokens = net.encoder.demos(["a b", "c"], ["d e f", "g"])
    inputs = {}
    block = perturb.layer("layer:1", net.backbone)
    handle = block.register_forward_pre_hook(lambda m, args, kw: inputs.update(x=args[0]), with_kwargs=True)
    outputs = net(tokens, {"hidden:layer:0", "hidden:embedding", "logprobs"})
    handle.remove()
    assert torch.equal(outputs.hidden["layer:0"], inputs["x"])
    assert torch.equal(outputs.hidden["embedding"], net.model.get_input_embeddings()(tokens.ids))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_removed_direction_is_gone_there_and_its_gradient_is_right(checkpointing):
    net = network(options={"gradient_checkpointing": checkpointing}).train()
    rows = demos(net)
    r = torch.nn.functional.normalize(torch.randn(32, dtype=torch.float64), dim=0)
    mask = rows.tokens.mask & ~rows.tokens.target
    edits = {"layer:0": Edit(ablate=r, where=mask)}

    def loss():
        out = net(rows.tokens, {"logprobs", "hidden:layer:0"}, edits)
        return -(out.logprobs * rows.tokens.target).sum(), out.hidden["layer:0"]

    total, hidden = loss()
    assert (hidden[mask] @ r).abs().max() <= EXACT
    assert (hidden[~mask] @ r).abs().max() > 1e-3
    net.zero_grad()
    total.backward()
    weight = net.model.transformer.h[0].mlp.c_proj.weight
    with torch.no_grad():  # a central difference of one weight below the edit
        values = []
        for step in (1e-6, -1e-6):
            weight[0, 0] += step
            values.append(float(loss()[0]))
            weight[0, 0] -= step
    assert weight.grad[0, 0].item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5)


class Counter:
    """How often a block ran as itself."""

    number = 0

    def __call__(self, block, inputs, output):
        self.number += "forward" not in block.__dict__


@pytest.mark.parametrize("head", ["policy", "classifier"])
def test_a_reused_prefix_changes_no_delta(head, monkeypatch):
    model = "scratch:encoder-tiny?hidden_size=32" if head == "classifier" else "scratch:tiny-gpt2?n_embd=32&n_layer=4"
    adversaries = {"adv": PGD(radius=0.3, steps=3, sites=("layer:1",), relative_to="absolute")}
    net = network(head, model=model)
    rows = {"s": labels(net) if head == "classifier" else demos(net)}
    terms = {"a": Classify(source="s", view="adv") if head == "classifier" else SFT(source="s", view="adv")}
    runs = {}
    for name in ("reused", "whole"):
        if name == "whole":
            monkeypatch.setattr("advalign.engine.views.reuse_prefix", lambda network, adversary, forward: forward)
        itself = Counter()
        handle = perturb.layer("layer:0", net.backbone).register_forward_hook(itself)
        runs[name] = update(learner(net), terms, rows, adversaries)
        handle.remove()
        runs[name] += (itself.number,)
    assert torch.equal(runs["reused"][0], runs["whole"][0])
    assert (runs["reused"][2], runs["whole"][2]) == (1, 4)  # as itself: the final pass, and once per pass before
    assert "forward" not in perturb.layer("layer:0", net.backbone).__dict__


def test_rows_are_attacked_with_the_probability_given_whatever_the_split():
    net = network()
    rows = {"chat": demos(net)}
    half = {"adv": Noise(radius=0.5, probability=0.5)}
    whole, _ = update(learner(net), ROBUST, rows, half)
    split, _ = update(learner(net), ROBUST, rows, half, budget=24)
    torch.testing.assert_close(split, whole, rtol=0, atol=EXACT)
    clean, _ = update(learner(net), {"a": SFT(source="chat")}, rows)
    never, _ = update(learner(net), ROBUST, rows, {"adv": Noise(radius=0.5, probability=0.0)})
    always, _ = update(learner(net), ROBUST, rows, {"adv": Noise(radius=0.5)})
    assert torch.equal(never, clean)
    assert not torch.allclose(whole, clean)
    assert not torch.allclose(whole, always)
    with pytest.raises(ConfigError, match=r"adversaries\.noise\.probability: 1\.5 given"):
        update(learner(net), ROBUST, rows, {"adv": Noise(radius=0.5, probability=1.5)})


def test_special_tokens_stay_where_they_may_not_move():
    net = network("classifier")
    rows = labels(net)
    moved = {}

    class Watch(Noise):
        def start(self, context):
            moved[self.special] = context.allowed
            return super().start(context)

    for special in (True, False):
        update(learner(net), {"c": Classify(source="s", view="adv")}, {"s": rows}, {"adv": Watch(radius=0.1, special=special)})
    adversaries = torch.isin(rows.tokens.ids, torch.tensor(sorted(net.encoder.special_ids)))
    assert torch.equal(moved[True], rows.tokens.mask)
    assert torch.equal(moved[False], rows.tokens.mask & ~adversaries)
    assert (rows.tokens.mask & adversaries).any()


def test_dropout_that_is_off_stays_off_when_a_checkpoint_recomputes():
    """The backward comes after dropout is on again: without the modes of then, the recomputation would draw masks."""
    gradients_of = []
    for checkpointing in (False, True):
        net = network("classifier", options={"dropout": 0.5, "gradient_checkpointing": checkpointing})
        terms = {"c": Classify(source="s", view="adv")}
        gradients_of.append(update(learner(net), terms, {"s": labels(net)}, {"adv": PGD(radius=0.3, steps=2, dropout="off")})[0])
    torch.testing.assert_close(gradients_of[1], gradients_of[0], rtol=0, atol=EXACT)


def test_the_mean_embedding_norm_follows_the_matrix():
    net = network()
    table = net.model.get_input_embeddings().weight
    assert net.mean_embedding_norm() == pytest.approx(table.norm(dim=1).mean().item(), rel=1e-12)
    with torch.no_grad():
        table.mul_(2)
    assert net.mean_embedding_norm() == pytest.approx(table.norm(dim=1).mean().item(), rel=1e-12)


def test_an_inner_objective_that_its_adversary_cannot_move_is_refused():
    """Read clean, its gradient with respect to the deltas is zero: the attack would do nothing, and say nothing."""
    with pytest.raises(ConfigError, match=r"adversaries\.adv\.inner: it reads clean .* set view: adv"):
        plan("policy", ROBUST, {"adv": PGD(radius=0.1, inner=SFT(source="chat"))}, [])
    assert plan("policy", ROBUST, {"adv": PGD(radius=0.1, inner=SFT(source="chat", view="adv"))}, []).adversaries


def test_an_inner_loop_reads_the_true_states_below_its_edit():
    # The edit is at the output of block 2; what blocks 0 and 1 give does not depend on it, in no pass.
    net = network(model="scratch:tiny-gpt2?n_embd=32&n_layer=4").eval()
    tokens = demos(net).tokens
    sites = frozenset({"hidden:layer:0", "hidden:layer:1", "hidden:layer:2"})
    want = {need: x.detach() for need, x in net(tokens, sites).hidden.items()}
    prefix = perturb.SharedPrefix(net.backbone, ("layer:2",))
    for number in range(3):
        delta = torch.full((*tokens.ids.shape, 32), 0.1 * number, dtype=torch.float64)
        with prefix.reused():
            hidden = net(tokens, sites, {"layer:2": Edit(add=delta)}).hidden
        edited = {**want, "layer:2": want["layer:2"] + delta}
        for site in want:
            torch.testing.assert_close(hidden[site][tokens.mask], edited[site][tokens.mask], rtol=0, atol=EXACT)

"""What methods cost, in forwards of the model on the batch, counted as floating-point operations. A plain step is 3: one forward,
and two of its size back. An ascent step is 2, because no gradient of a parameter is computed. (Attention multiplies two
activations, so its share of an ascent step is 3; the models here are wide and the rows short, which keeps that below 2 %.)"""

import pytest
from helpers.networks import TEXTS, learner, update
from torch.utils.flop_counter import FlopCounterMode

from advalign.adversaries.freelb import FreeLB
from advalign.adversaries.noise import Noise
from advalign.adversaries.pgd import PGD
from advalign.engine.plan import plan
from advalign.models import load
from advalign.models.sharing import frozen_copy
from advalign.objectives.classify import Classify
from advalign.objectives.consistency import Consistency
from advalign.objectives.sft import SFT
from advalign.types import DemoRows, LabelRows

import torch  # isort: skip

PGD3 = {"adv": PGD(radius=0.1, steps=3)}
ROBUST = {"robust": Classify(source="s", view="adv")}
CLEAN = {"clean": Classify(source="s")}
AGREE = {"agree": Consistency(source="s", view="adv")}


def classifier(**options):
    return load(
        "scratch:encoder-tiny?hidden_size=128&intermediate_size=512&num_hidden_layers=4",
        head="classifier", tokenizer={"kind": "words"}, texts=TEXTS, max_length=32, options=options,
    )  # fmt: skip


def rows(net):
    tokens = net.encoder.classify(["a b c d e f", "g h i j k a"])
    return {"s": LabelRows(tokens=tokens, labels=torch.tensor([0, 1]))}


def forward(net):
    """Operations of one forward of all rows."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(rows(net)["s"].tokens, {"class_logits"})
    return counter.get_total_flops()


def cost(net, objectives, adversaries=None, copies=()):
    """Operations of one update, in forwards."""
    runtime = learner(net)
    teachers = {name: frozen_copy(net) for name in copies}
    chosen = plan("policy", objectives, adversaries or {}, teachers)
    with FlopCounterMode(display=False) as counter:
        runtime.update(chosen, rows(net), teachers, budget=10_000, key=("update",))
    return counter.get_total_flops() / forward(net)


@pytest.mark.parametrize(
    ("name", "objectives", "adversaries", "units"),
    [
        ("plain", CLEAN, {}, 3),
        ("NEFTune: noise costs nothing", ROBUST, {"adv": Noise(radius=0.1)}, 3),
        ("one ascent step is 2, not 3", ROBUST, {"adv": PGD(radius=0.1, steps=1)}, 2 + 3),
        ("PGD-3, adversarial only", ROBUST, PGD3, 3 * 2 + 3),
        ("PGD-3 with the clean term", ROBUST | CLEAN, PGD3, 3 + 3 * 2 + 3),
        ("FreeLB-3: every pass trains", ROBUST, {"adv": FreeLB(steps=3)}, 3 * 3),
        ("R3F", CLEAN | AGREE, {"adv": Noise(radius=1e-5)}, 3 + 3),
        ("SMART without its teacher", CLEAN | AGREE, {"adv": PGD(radius=0.1, steps=1)}, 3 + 2 + 3),
    ],
)
def test_a_step_costs(name, objectives, adversaries, units):
    assert cost(classifier(), objectives, adversaries) == pytest.approx(units, rel=0.03), name


def test_the_bregman_term_of_smart_is_one_forward_of_the_teacher():
    objectives = CLEAN | AGREE | {"near": Consistency(source="s", view="clean", against="teacher")}
    assert cost(classifier(), objectives, {"adv": PGD(radius=0.1, steps=1)}, ["teacher"]) == pytest.approx(3 + 2 + 3 + 1, rel=0.03)


def test_ascent_above_the_first_perturbed_block_skips_what_lies_below():
    """Four blocks, perturbed at the output of the third: two passes of 1/4 forward and 1/4 backward each, 3/4 once, and the final 3."""
    adversaries = {"adv": PGD(radius=0.1, steps=2, sites=("layer:2",), relative_to="absolute")}
    assert cost(classifier(), ROBUST, adversaries) == pytest.approx(3 / 4 + 2 * (1 / 4 + 1 / 4) + 3, rel=0.03)
    everywhere = {"adv": PGD(radius=0.1, steps=2)}
    assert cost(classifier(), ROBUST, everywhere) == pytest.approx(2 * 2 + 3, rel=0.03)


def test_checkpointing_adds_a_forward_to_every_backward():
    """Plain 3 -> 4; an ascent step 2 -> 3."""
    net = classifier(gradient_checkpointing=True)
    assert cost(net, CLEAN) == pytest.approx(4, rel=0.03)
    assert cost(net, ROBUST, PGD3) == pytest.approx(3 * 3 + 4, rel=0.03)


def test_with_an_adapter_plain_and_ascent_cost_about_the_same():
    """The base has no gradient: a plain step is about 2, and so is an ascent step; PGD-3 is therefore four plain steps, not three."""
    pytest.importorskip("peft")
    net = classifier(lora={"r": 2, "target_modules": "all-linear"})
    plain = cost(net, CLEAN)
    assert plain == pytest.approx(2, rel=0.15)
    assert cost(net, ROBUST, PGD3) / plain == pytest.approx(4, rel=0.15)


def test_a_language_model_costs_the_same():
    net = load("scratch:tiny?hidden_size=128&intermediate_size=512", head="policy", tokenizer={"kind": "words"}, texts=TEXTS, max_length=32)
    demos = DemoRows(tokens=net.encoder.demos(["a b c", "d e f"], ["g h i", "j k a"]))

    def units(objectives, adversaries):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(demos.tokens, {"logprobs"})
        one = counter.get_total_flops()
        with FlopCounterMode(display=False) as counter:
            update(learner(net), objectives, {"s": demos}, adversaries)
        return counter.get_total_flops() / one

    assert units({"a": SFT(source="s")}, {}) == pytest.approx(3, rel=0.05)
    assert units({"a": SFT(source="s", view="adv")}, PGD3) == pytest.approx(9, rel=0.05)
    assert units({"a": SFT(source="s"), "b": SFT(source="s", view="adv")}, PGD3) == pytest.approx(12, rel=0.05)

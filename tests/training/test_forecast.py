"""What `advalign show` says a step will cost, against what it does cost: operations counted, tensors kept, parameters held."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from advalign import Frozen, Learner, Sampling, Trainer, TrainingArguments
from advalign import advantages as A
from advalign import adversaries as adv
from advalign import objectives as obj
from advalign import rewards as rw
from advalign import sources as src
from advalign.models import load
from advalign.models.model_cost import model_cost
from advalign.training.forecast import forecast
from advalign.types import Tokens

WORDS = [f"w{i}" for i in range(200)]
DATA = [{"prompt": " ".join(WORDS[i : i + 20]), "response": " ".join(WORDS[i + 20 : i + 40])} for i in range(64)]
MODEL = "scratch:tiny?hidden_size=128&intermediate_size=512&num_hidden_layers=3"
POLICY = Learner(model=MODEL, tokenizer={"kind": "words", "data": DATA}, max_length=64)


def half(completions):
    return [len(text) % 2 for text in completions]


def trainer(objectives, *, adversaries=None, learner=POLICY, frozen=None):
    write = src.Prompts(
        data=DATA, rewards=[rw.Function(fn=half)], advantage=A.Group(), group_size=4, batch_size=4, sampling=Sampling(max_new_tokens=16),
    )  # fmt: skip
    return Trainer(
        learners={"policy": learner}, sources={"write": write, "demos": src.Demos(data=DATA, batch_size=16)}, objectives=objectives,
        adversaries=adversaries, frozen=frozen, args=TrainingArguments(max_steps=2),
    )  # fmt: skip


RUNS = {
    "imitation": ({"a": obj.SFT(source="demos")}, {}),
    "under attack": ({"a": obj.SFT(source="demos", view="pgd")}, {"adversaries": {"pgd": adv.PGD(radius=0.1, steps=3)}}),
    "mixed": (
        {"a": obj.GRPO(source="write"), "b": obj.SFT(source="demos", view="pgd"), "c": obj.KL(source="write", coef=0.1)},
        {"adversaries": {"pgd": adv.PGD(radius=0.1, steps=2)}, "frozen": {"reference": Frozen()}},
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_the_operations_of_a_step_are_those_counted(name):
    """Prompts are counted in every row of an update, though that of a group is run once (`models/padding_free.py`)."""
    objectives, sections = RUNS[name]
    run = trainer(objectives, **sections)
    run.start()
    run.model._packs = False
    for copy in run.frozen.values():
        copy._packs = False
    # Every response is as long as it may be.
    run.model.encoder.tokenizer.eos_token = run.model.model.generation_config.eos_token_id = None
    with FlopCounterMode(display=False) as counter:
        run.training_step()
    assert sum(forecast(trainer(objectives, **sections))[0].operations.values()) == pytest.approx(counter.get_total_flops(), rel=0.1)


def test_packed_rows_cost_less_than_was_said():
    objectives, sections = RUNS["mixed"]
    run = trainer(objectives, **sections)
    run.start()
    with FlopCounterMode(display=False) as counter:
        run.training_step()
    assert counter.get_total_flops() < sum(forecast(trainer(objectives, **sections))[0].operations.values())


@pytest.mark.parametrize("model", [MODEL, "scratch:tiny-gpt2?n_embd=128&n_layer=3&n_head=4"])
def test_what_a_token_keeps_for_the_way_back(model):
    """Every tensor that autograd saves, each once, weights apart."""
    net = load(model, head="policy", tokenizer={"kind": "words"}, texts=WORDS, max_length=64)
    ids = torch.randint(3, 200, (8, 40), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids, dtype=torch.bool)
    few = mask & (torch.arange(40) == 39)  # logits at one token of each row: the head keeps almost nothing
    tokens = Tokens(ids=ids, mask=mask, target=few, group=torch.arange(8), key=torch.arange(8))
    saved = {}
    weights = {p.untyped_storage().data_ptr() for p in net.parameters()}

    def keep(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights and x.is_floating_point():
            saved[storage.data_ptr()] = (storage.nbytes(), x)  # held, so that an address is not given twice
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        net(tokens, {"logprobs"}).logprobs.sum()
    forecast_bytes = model_cost(net.model, head="policy", dtype=torch.float32).activation_bytes * ids.numel()
    assert sum(size for size, _ in saved.values()) == pytest.approx(forecast_bytes, rel=0.3)


def test_what_stands_in_memory_is_counted_exactly():
    """Weights, gradients, two moments and one frozen copy, 4 bytes each."""
    objectives, sections = RUNS["mixed"]
    run = trainer(objectives, **sections)
    run.start()
    run.training_step()
    parameters = sum(p.numel() for p in run.model.parameters())
    cost = forecast(trainer(objectives, **sections))[0]
    assert cost.memory["weights"] == cost.memory["gradients"] == cost.memory["copies"] == 4 * parameters
    assert cost.memory["optimizer"] == 8 * parameters
    moments = sum(x.numel() * 4 for s in run.learners["policy"].optimizer.state.values() for k, x in s.items() if k != "step")
    assert moments == 8 * parameters


def test_a_blueprint_has_the_shape_of_the_model_and_no_weights():
    from advalign.models.load import meta_network

    drawn = meta_network(POLICY, WORDS)
    real = load(MODEL, head="policy", tokenizer={"kind": "words"}, texts=WORDS, max_length=64)
    assert next(drawn.parameters()).device.type == "meta"
    assert [p.shape for p in drawn.parameters()] == [p.shape for p in real.parameters()]


def test_experts_that_a_token_does_not_visit_cost_nothing():
    """Two of eight experts: a quarter of their parameters count."""
    net = load("scratch:tiny-moe", head="policy", tokenizer={"kind": "words"}, texts=WORDS, max_length=64)
    shape = model_cost(net.model, head="policy", dtype=torch.float32)
    experts = sum(p.numel() for n, p in net.model.named_parameters() if ".experts." in n)
    embedding = net.model.get_input_embeddings().weight.numel()
    assert experts > 0
    assert shape.blocks == shape.parameters - embedding - 3 * experts // 4


def test_the_meter_counts_what_a_step_did(tmp_path):
    """Tokens exactly; operations as counted, prompts of a group once more per response than they were run."""
    run = trainer(RUNS["mixed"][0], **RUNS["mixed"][1])
    run.start()
    run.model._packs = False
    with run.meter.step(), FlopCounterMode(display=False) as counter:
        logs = run.training_step()
    numbers = run.meter.steps[0]
    assert numbers["sampled_tokens"] == round(logs["write/completions/mean_length"] * 16)
    # Prompts, and demonstrations with their end.
    assert numbers["trained_tokens"] == numbers["sampled_tokens"] + 16 * 20 + 16 * (20 + 20 + 1)
    # One pass of the reference over the rollouts, which belongs to the draw and to no update, is left out.
    assert numbers["operations"] == pytest.approx(counter.get_total_flops(), rel=0.15)
    assert numbers["tokens_per_second"] == pytest.approx((numbers["sampled_tokens"] + numbers["trained_tokens"]) / numbers["seconds"])
    assert 0 < numbers["mfu"] < 3


def test_speed_is_logged_apart_and_goes_on_after_a_resume(tmp_path):
    objectives, sections = RUNS["imitation"]

    def run(steps):
        resumed = trainer(objectives, **sections)
        args = TrainingArguments(max_steps=steps, output_dir=str(tmp_path), save_steps=1)
        return Trainer(**resumed.config, args=args)

    run(2).train(progress=False)
    resumed = run(3)
    resumed.train(resume=True, progress=False)
    lines = [json.loads(line) for line in (tmp_path / "speed.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(line["trained_tokens"] == 16 * 41 for line in lines)
    assert "speed" not in (tmp_path / "log.jsonl").read_text()
    assert "a step took" in resumed.meter.summary()

"""Compiled blocks give what plain blocks give; where a hook or a second derivative needs them, they run as they are."""

import shutil

import pytest
import torch
from helpers.networks import demos, labels, learner, network, rollouts, update
from helpers.runs import discriminator, game, policy

from advalign import TrainingArguments
from advalign.adversaries.pgd import PGD
from advalign.errors import ConfigError
from advalign.models import load
from advalign.models.sharing import frozen_copy
from advalign.objectives.classify import Classify
from advalign.objectives.grpo import GRPO
from advalign.objectives.sft import SFT
from advalign.rollout.hf import HF
from advalign.types import Edit, Example, Sampling

pytestmark = pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
MODEL = "scratch:tiny-gpt2?n_embd=32"


@pytest.fixture(autouse=True)
def traced_only(request, monkeypatch):
    """All but the first case leave the code to be generated out: what is traced, and when, is what they are about."""
    if not request.node.name.endswith("every_length[False]"):
        compile = torch.compile
        monkeypatch.setattr(torch, "compile", lambda f, dynamic, backend="eager": compile(f, dynamic=dynamic, backend=backend))


@pytest.fixture
def fast():
    return network(model=MODEL, options={"compile": True})


@pytest.fixture(scope="module")
def plain():
    return network(model=MODEL)


def values_and_slopes(net, tokens, edits=None, needs=("logprobs", "entropy")):
    net.zero_grad()
    outputs = net(tokens, set(needs), edits)
    (outputs.logprobs.sum() + outputs.entropy.square().sum()).backward()
    return outputs, torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


@pytest.mark.parametrize("packs", [False, True])
def test_values_and_gradients_are_those_of_plain_blocks_at_every_length(fast, plain, packs):
    for make in (demos, rollouts):
        fast._packs = plain._packs = packs
        tokens = make(plain).tokens
        (a, slope_a), (b, slope_b) = (values_and_slopes(net, tokens) for net in (fast, plain))
        torch.testing.assert_close(a.logprobs, b.logprobs, rtol=0, atol=1e-12)
        torch.testing.assert_close(slope_a, slope_b, rtol=0, atol=1e-10)


def entered(net, monkeypatch):
    """How often blocks were compiled from here on."""
    times = []
    inside = net.compiled.on
    monkeypatch.setattr(net.compiled, "on", lambda backbone: (times.append(1), inside(backbone))[1])
    return times


def test_an_edit_or_a_look_inside_runs_the_blocks_as_they_are(fast, plain, monkeypatch):
    """A hook after compilation would be passed over in silence."""
    times = entered(fast, monkeypatch)
    tokens = demos(plain).tokens
    edit = {"layer:0": Edit(add=torch.randn(*tokens.ids.shape, 32, dtype=torch.float64))}
    fast._packs = plain._packs = False
    values_and_slopes(fast, tokens)  # compiled before there is a hook
    assert len(times) == 1
    (a, slope_a), (b, slope_b) = (values_and_slopes(net, tokens, edit, ("logprobs", "entropy", "hidden:layer:1")) for net in (fast, plain))
    assert len(times) == 1
    torch.testing.assert_close(a.hidden["layer:1"], b.hidden["layer:1"], rtol=0, atol=1e-12)
    torch.testing.assert_close(slope_a, slope_b, rtol=0, atol=1e-10)
    assert not torch.allclose(a.logprobs, fast(tokens, {"logprobs"}).logprobs)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_update_under_attack_is_the_same(checkpointing):
    """GRPO and adversarial SFT in one step, an inner loop included; and with non-reentrant checkpoints, whose recomputation comes after
    the forward is over."""
    gradients = []
    for compile in (True, False):
        net = network(model=MODEL, options={"compile": compile, "gradient_checkpointing": checkpointing})
        objectives = {"rl": GRPO(source="w"), "robust": SFT(source="d", view="pgd")}
        rows = {"w": rollouts(net), "d": demos(net)}
        gradients.append(update(learner(net), objectives, rows, {"pgd": PGD(radius=0.1, steps=2, random_start=False)})[0])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-9)


def test_an_encoder_and_a_second_derivative(plain):
    gradients = []
    for compile in (True, False):
        net = network("classifier", options={"num_labels": 2, "compile": compile})
        objectives = {"clean": Classify(source="l"), "robust": Classify(source="l", view="pgd")}
        gradients.append(update(learner(net), objectives, {"l": labels(net)}, {"pgd": PGD(radius=0.1, steps=2, random_start=False)})[0])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-9)
    input_gradients = []
    for compile in (True, False):
        net = network("score", model="scratch:encoder-tiny?hidden_size=32", options={"compile": compile})
        outputs = net(net.encoder.classify(["a b c", "d"]), {"scores", "score_gradients"})
        outputs.score_gradients.square().sum().backward()
        input_gradients.append(torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]))
    torch.testing.assert_close(input_gradients[0], input_gradients[1], rtol=0, atol=1e-10)


def test_a_frozen_copy_compiles_its_own_blocks(fast):
    tokens = demos(fast).tokens
    fast._packs = False
    before = fast(tokens, {"logprobs"}).logprobs.detach()
    copy = frozen_copy(fast)
    with torch.no_grad():
        for p in fast.parameters():
            p.add_(0.01)
    moved = fast(tokens, {"logprobs"}).logprobs
    torch.testing.assert_close(copy(tokens, {"logprobs"}).logprobs, before, rtol=0, atol=1e-12)
    assert copy.compiled is not fast.compiled
    assert not torch.allclose(moved, before)
    with torch.no_grad():
        for p in fast.parameters():
            p.sub_(0.01)


def test_adapters_on_one_base():
    """The adapter trains, its frozen twin on the same base keeps what it was, and neither sees the other's weights."""
    results = []
    for compile in (True, False):
        net = network(model=MODEL, options={"compile": compile, "lora": {"r": 2, "target_modules": "all-linear"}})
        with torch.no_grad():
            for i, p in enumerate(p for name, p in net.named_parameters() if "lora_B" in name):
                p.add_(torch.linspace(-1, 1, p.numel(), dtype=p.dtype).view_as(p) * (i + 1) * 0.1)
        reference, tokens = frozen_copy(net), demos(net).tokens
        before = reference(tokens, {"logprobs"}).logprobs
        outputs, slope = values_and_slopes(net, tokens)
        with torch.no_grad():
            for name, p in net.named_parameters():
                if "lora_A" in name:
                    p.mul_(2)
        after = net(tokens, {"logprobs"}).logprobs
        assert not torch.allclose(after, outputs.logprobs)
        torch.testing.assert_close(reference(tokens, {"logprobs"}).logprobs, before, rtol=0, atol=0)
        results.append((outputs.logprobs, slope, after))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_compiled_training_ends_where_plain_training_ends(tmp_path):
    """Sampling, rewards, an attack, two learners: weights after a step."""
    ends = []
    for compile in (True, False):
        options = {"compile": compile}
        learners = {"policy": policy(options=options), "discriminator": discriminator()}
        trainer = game(learners=learners, args=TrainingArguments(max_steps=1, output_dir=str(tmp_path / str(compile))))
        trainer.train(progress=False)
        ends.append(torch.cat([p.detach().flatten() for p in trainer.learners["policy"].network.parameters()]))
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-8)


def test_without_a_compiler_the_error_says_what_to_leave_out(monkeypatch):
    net = network(model="scratch:tiny-gpt2?n_embd=16", options={"compile": True})

    def broken(graph, inputs):
        raise RuntimeError("No working C++ compiler found.\nmore")

    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, dynamic: compile(f, dynamic=dynamic, backend=broken))
    with pytest.raises(ConfigError, match=r"compile: torch.compile failed: .*No working C\+\+ compiler found.* to false"):
        net(demos(net).tokens, {"logprobs"})
    assert all(block._compiled_call_impl is None for block in net.model.base_model.h)


def test_compilation_is_an_option_like_others():
    with pytest.raises(ConfigError, match="compile"):
        load(MODEL, tokenizer={"kind": "words"}, texts=["a"], options={"compiled": True})


def test_a_model_without_a_stack_of_blocks_is_refused(monkeypatch):
    monkeypatch.setattr("advalign.models.architecture.block_stack", lambda backbone: None)
    with pytest.raises(ConfigError, match=r"compile: .* has no stack of blocks to compile; leave it out"):
        network(model=MODEL, options={"compile": True})


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_sampling_compiled_gives_the_same_responses_and_does_not_compile_at_every_token(fast, temperature):
    """Prompts of unlike lengths, in a cache that grows."""
    examples = [Example(prompt=text) for text in ("a b :", "c d e f g :", "h :")]
    sampling = Sampling(max_new_tokens=12, temperature=temperature)
    torch._dynamo.reset()
    graphs = torch._dynamo.utils.counters["stats"]
    before, responses = graphs["unique_graphs"], []
    for engine in (HF(), HF(compile=True)):
        groups = engine.generate(fast, examples, 3, sampling, torch.Generator().manual_seed(0))
        responses.append([(r.response_ids, r.finished, torch.tensor(r.sampler_logprobs)) for g in groups for r in g.rollouts])
    for (ids, end, scores), (wanted_ids, wanted_end, wanted_scores) in zip(*responses, strict=True):
        assert (ids, end) == (wanted_ids, wanted_end)
        torch.testing.assert_close(scores, wanted_scores, rtol=0, atol=1e-6)
    assert 0 < graphs["unique_graphs"] - before <= 8
    assert all(block._compiled_call_impl is None for block in fast.model.base_model.h)


def test_sampling_compiled_needs_compiled_blocks(plain):
    with pytest.raises(ConfigError, match=r"rollout\.compile: true given, but the policy is not compiled"):
        HF(compile=True).generate(plain, [Example(prompt="a :")], 1, Sampling(max_new_tokens=2), torch.Generator())

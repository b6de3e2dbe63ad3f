"""vLLM inside this process, against transformers.generate and the trainer's own forward pass."""

import itertools

import pytest
import torch

pytest.importorskip("vllm", reason="the package vllm is not installed: make test-vllm runs these in an environment of its own")

from helpers.vllm_models import OPTIONS, move, qwen
from scipy import stats

from advalign.errors import BudgetError, ConfigError, RolloutError
from advalign.models import load
from advalign.rollout.vllm import HALF, VLLM
from advalign.tasks.constraints import Constraints
from advalign.types import Example, Sampling

PROMPTS = ["length 3 with red without blue :", "length 7 :", "red", "length 5 with gold without pink with gray :"]
VERSIONS = itertools.count(1)
GREEDY = Sampling(max_new_tokens=8, temperature=0.0)


def generate(running, sampling, n=1, prompts=PROMPTS, seed=0, version=None):
    network, engine = running
    engine.sync(network, next(VERSIONS) if version is None else version)
    return engine.generate(network, [Example(prompt=p) for p in prompts], n, sampling, torch.Generator().manual_seed(seed))


def ids(groups):
    return [[r.response_ids for r in g.rollouts] for g in groups]


def trainer_logprobs(network, groups, temperature):
    tokens = network.encoder.rollouts(groups)
    with torch.no_grad():
        logprobs = network(tokens, {"logprobs"}, None, torch.full((len(tokens.ids),), temperature)).logprobs
    return [row[target].tolist() for row, target in zip(logprobs, tokens.target, strict=True)]


def transformers_greedy(network, prompt):
    ends = {"pad_token_id": network.encoder.pad_id, "eos_token_id": network.encoder.eos_id}
    inputs = {"input_ids": torch.tensor([prompt]), "attention_mask": torch.ones(1, len(prompt), dtype=torch.long)}
    return network.model.generate(**inputs, max_new_tokens=8, do_sample=False, **ends)[0].tolist()[len(prompt) :]


def test_greedy_is_transformers_own(running):
    groups = generate(running, GREEDY, n=2)
    for group in groups:
        first, second = group.rollouts
        assert first.response_ids == second.response_ids == transformers_greedy(running[0], group.prompt_ids)
        assert first is not second
    assert len({tuple(r) for (r, _) in ids(groups)}) > 1


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.9), (1.3, 0.5), (0.0, 1.0)])
def test_log_probabilities_are_the_trainer_s_at_the_temperature_before_the_nucleus(running, temperature, top_p):
    network, engine = running
    groups = generate(running, Sampling(max_new_tokens=8, temperature=temperature, top_p=top_p), n=4)
    rollouts = [r for g in groups for r in g.rollouts]
    for rollout, expected in zip(rollouts, trainer_logprobs(network, groups, temperature or 1.0), strict=True):
        assert rollout.sampler_logprobs == pytest.approx(expected, abs=1e-4)
    assert 0 < engine.logs["logprob_gap_mean"] < 1e-4
    assert engine.logs["logprob_gap_mean"] <= engine.logs["logprob_gap_max"] < 1e-4


@pytest.mark.parametrize("sampling", [Sampling(max_new_tokens=1), Sampling(max_new_tokens=1, temperature=0.7, top_p=0.9)])
def test_frequencies_are_those_of_the_model(running, sampling):
    """The first token of 3000 responses, chi-square over all tokens expected five times or more, the rest as one."""
    network, _ = running
    (group,) = generate(running, sampling, n=3000, prompts=PROMPTS[:1])
    with torch.no_grad():
        logits = network.model(torch.tensor([group.prompt_ids])).logits[0, -1].double() / sampling.temperature
    p, order = logits.softmax(-1).sort(descending=True)
    p[(p.cumsum(0) - p) >= sampling.top_p] = 0.0  # a token stays while the mass before it is below top_p
    expected = torch.zeros_like(p).scatter(0, order, p / p.sum()) * 3000
    counts = torch.bincount(torch.tensor([r.response_ids[0] for r in group.rollouts]), minlength=len(p)).double()
    assert not counts[expected == 0].any()
    often = expected >= 5
    assert int(often.sum()) > 2
    observed, wanted = (torch.cat([x[often], x[~often].sum()[None]]) for x in (counts, expected))
    possible = wanted > 0
    assert stats.chisquare(observed[possible].numpy(), wanted[possible].numpy()).pvalue > 1e-4


def test_samples_are_a_function_of_the_generator(running):
    first, again, other = (ids(generate(running, Sampling(max_new_tokens=8), n=3, seed=s, version=0)) for s in (1, 1, 2))
    assert first == again != other
    assert len({tuple(r) for g in first for r in g}) > 6  # responses have draws of their own
    twice = ids(generate(running, Sampling(max_new_tokens=8), n=3, seed=1, version=0, prompts=[PROMPTS[0]] * 2))
    assert twice[0] != twice[1]  # and so have equal prompts


def test_sync_moves_the_weights_and_only_sync_does(running):
    network, _ = running
    version = next(VERSIONS)
    before = ids(generate(running, GREEDY, version=version))
    move(network, seed=version)
    assert ids(generate(running, GREEDY, version=version)) == before  # it holds weights of its own, and the version has not moved
    after = generate(running, GREEDY)
    assert ids(after) != before
    assert ids(after) == [[transformers_greedy(network, g.prompt_ids)] for g in after]


def test_cached_prompts_are_forgotten(running):
    """Greedy answers to prompts of 24 tokens (a block of the cache is 16 or more) right after the weights moved."""
    network, _ = running
    prompts = ["length 3 with red without blue with gold without pink with gray without red with blue without gold with pink :"]
    generate(running, Sampling(max_new_tokens=4), prompts=prompts)
    move(network, seed=next(VERSIONS))
    (group,) = generate(running, Sampling(max_new_tokens=4), n=4, prompts=prompts)
    for rollout, expected in zip(group.rollouts, trainer_logprobs(network, [group], 1.0), strict=True):
        assert rollout.sampler_logprobs == pytest.approx(expected, abs=1e-4)


def test_a_sync_that_does_nothing_is_caught(running, monkeypatch):
    network, engine = running
    generate(running, GREEDY)
    monkeypatch.setattr(engine.state.backend, "push", lambda network: None)
    move(network, seed=next(VERSIONS))
    with pytest.raises(
        RolloutError, match=r"^rollout: vLLM's log-probabilities are \S+ from the trainer's on average .* tolerance is 0\.002: "
    ):
        generate(running, GREEDY)
    relaxed = VLLM(on_gap="warn")
    object.__setattr__(relaxed, "state", engine.state)
    with pytest.warns(UserWarning, match="weights were not synced"):
        generate((network, relaxed), GREEDY)
    assert relaxed.logs["logprob_gap_max"] > relaxed.logs["logprob_gap_mean"] > 0.002
    monkeypatch.undo()
    generate(running, GREEDY)
    assert engine.logs["logprob_gap_max"] < 1e-4


def test_half_precision_stays_within_its_own_tolerance():
    network = qwen().to(torch.bfloat16)
    engine = VLLM(options=OPTIONS)
    generate((network, engine), Sampling(max_new_tokens=8), n=2)
    assert 0.002 < engine.logs["logprob_gap_mean"] < HALF


def test_a_response_ends_with_its_end_token_or_where_the_context_does(running):
    network, _ = running
    groups = generate(running, Sampling(max_new_tokens=64, temperature=1.5), n=8)
    end = network.encoder.eos_id
    for group in groups:
        for r in group.rollouts:
            assert r.finished == (r.response_ids[-1] == end)
            assert end not in r.response_ids[:-1]
            assert r.finished or len(group.prompt_ids) + len(r.response_ids) == 32
            assert len(r.response_ids) == len(r.sampler_logprobs)
            assert "<eos>" not in r.text
    assert {r.finished for g in groups for r in g.rollouts} == {True, False}
    with pytest.raises(BudgetError, match=r"^rollout: a prompt of 33 tokens leaves no room in the model's context of 32 tokens\.$"):
        generate(running, Sampling(), prompts=["red " * 33])


def test_rollouts_are_extended_from_where_they_are(running):
    network, engine = running
    groups = generate(running, Sampling(max_new_tokens=4))
    for group in groups:
        group.prompt_ids += group.rollouts[0].response_ids[:2]
    engine.extend(network, groups, 1, GREEDY, torch.Generator())
    for group in groups:
        assert len(group.rollouts) == 2
        assert group.rollouts[1].response_ids == transformers_greedy(network, group.prompt_ids)


def test_the_learner_s_mode_and_its_random_numbers_stay(running):
    running[0].train()
    torch.manual_seed(3)
    expected = torch.rand(1).item()
    torch.manual_seed(3)
    engine = running[1]
    engine.sync(running[0], next(VERSIONS))
    assert torch.rand(1).item() == expected
    generate(running, GREEDY)
    assert running[0].training


def test_another_shape_is_refused(running):
    other = load("scratch:tiny?hidden_size=64", tokenizer={"kind": "words"}, texts=Constraints().vocabulary(), max_length=32)
    generate(running, GREEDY)
    with pytest.raises(
        ConfigError, match=r"^rollout: this vLLM holds a model of another shape than the learner that now samples; use kind hf"
    ):
        running[1].sync(other, 0)

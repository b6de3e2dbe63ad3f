"""Dropout: never in rollouts and in old and reference log-probabilities; in the update where nothing is compared with those."""

import math
from dataclasses import replace

import pytest
import torch
from helpers.networks import demos, learner, network, pairs, rollouts, update
from transformers import AutoModelForCausalLM, OPTConfig

from advalign.errors import ConfigError
from advalign.models import Network, load
from advalign.models.inference import batched_forward, batches_in_order
from advalign.models.perturb import recompute_context, without_dropout
from advalign.models.specification import dropout_rate
from advalign.objectives.dpo import DPO
from advalign.objectives.grpo import GRPO
from advalign.objectives.ipo import IPO
from advalign.objectives.kl import KL
from advalign.objectives.reinforce import REINFORCE
from advalign.objectives.sft import SFT
from advalign.objectives.simpo import SimPO
from advalign.rollout.hf import HF
from advalign.types import Example, Sampling

RATE = 0.1
COMPARING = {"grpo": GRPO(source="math"), "reinforce": REINFORCE(source="math"), "kl": KL(source="math")}
PAIRS = {"dpo": DPO(source="taste"), "ipo": IPO(source="taste")}


def same_weights(**options):
    """A network with dropout and its copy without, from one seed."""
    return network(options={"dropout": RATE, **options}), network(options={"dropout": 0.0, **options})


def rows_of(net):
    return {"math": rollouts(net), "chat": demos(net), "taste": pairs(net)}


def test_no_dropout_in_rollouts_and_in_what_they_are_compared_with():
    net, plain = (n.train() for n in same_weights())
    examples = [Example(prompt=p) for p in ("a b :", "c d e :")]
    sampled = [HF().generate(n, examples, 4, Sampling(max_new_tokens=6), torch.Generator().manual_seed(0)) for n in (net, plain)]
    assert sampled[0] == sampled[1]
    tokens = net.encoder.rollouts(sampled[0])
    columns = batched_forward(net, tokens, {"logprobs"}, batches=batches_in_order(8, 3))["logprobs"]  # old and reference log-probabilities
    for row, target, rollout in zip(columns, tokens.target, [r for g in sampled[0] for r in g.rollouts], strict=True):
        assert row[target].tolist() == pytest.approx(rollout.sampler_logprobs, abs=1e-12)
    assert net.draws_dropout
    with torch.no_grad():  # the check can fail: in training mode the same forward gives other numbers
        assert not torch.allclose(net(tokens, {"logprobs"}).logprobs, columns)


@pytest.mark.parametrize("name", [*COMPARING, *PAIRS])
def test_by_default_an_update_that_compares_log_probabilities_has_none(name):
    net, plain = same_weights()
    terms = {"term": {**COMPARING, **PAIRS}[name]}
    rows = {terms["term"].source: rows_of(plain)[terms["term"].source]}
    expected, logs = update(learner(plain), terms, rows)
    ours, ours_logs = update(learner(net), terms, rows)
    assert torch.equal(ours, expected)
    assert ours_logs == logs
    for option in ("on", True, RATE):
        assert not torch.allclose(update(learner(net, options={"dropout": option}), terms, rows)[0], expected)
    assert net.draws_dropout  # afterwards the modes are those of before


def without(net, tokens):
    """log p of the tokens, as annotations take it."""
    return batched_forward(net, tokens, {"logprobs"}, batches=batches_in_order(len(tokens.ids), 2))["logprobs"]


def test_the_ratio_of_unchanged_weights_is_one_without_dropout_and_noise_with_it():
    net, _ = same_weights()
    rows = rows_of(net)
    math_rows = replace(rows["math"], old_logprobs=without(net, rows["math"].tokens))
    read = {"math": math_rows, "taste": replace(rows["taste"], ref_logprobs=without(net, rows["taste"].tokens))}
    terms = {"grpo": GRPO(source="math"), "dpo": DPO(source="taste")}
    # With every ratio 1 the loss of a response is minus the mean of its tokens' advantages.
    target = math_rows.tokens.target
    surrogate = -((math_rows.advantages * target).sum(1) / target.sum(1)).mean().item()
    _, logs = update(learner(net), terms, read)
    assert logs["dpo/loss"] == pytest.approx(math.log(2), abs=1e-12)
    assert logs["grpo/loss"] == pytest.approx(surrogate, abs=1e-12)
    _, logs = update(learner(net, options={"dropout": RATE}), terms, read)
    assert abs(logs["dpo/loss"] - math.log(2)) > 1e-4
    assert abs(logs["grpo/loss"] - surrogate) > 1e-4


@pytest.mark.parametrize("term", [SFT(source="chat"), SimPO(source="taste")])
def test_an_update_that_compares_nothing_keeps_dropout(term):
    net, plain = same_weights()
    rows = {term.source: rows_of(plain)[term.source]}
    assert not torch.allclose(update(learner(net), {"term": term}, rows)[0], update(learner(plain), {"term": term}, rows)[0])


def test_one_objective_that_compares_decides_for_the_learner():
    net, plain = same_weights()
    terms, rows = {"imitate": SFT(source="chat"), "prefer": DPO(source="taste")}, rows_of(plain)
    rows = {name: rows[name] for name in ("chat", "taste")}
    assert torch.equal(update(learner(net), terms, rows)[0], update(learner(plain), terms, rows)[0])


def test_a_rate_that_is_given_to_lora_stays():
    options = {"lora": {"r": 4, "lora_dropout": 0.5, "init_lora_weights": False}}
    net, plain = same_weights(**options)
    terms = {"prefer": DPO(source="taste")}
    rows = {"taste": pairs(plain)}
    gradients = [update(learner(n, options=options), terms, rows)[0] for n in (net, plain)]
    assert torch.equal(*gradients)  # the base has none
    assert not torch.allclose(gradients[0], update(learner(plain, options={"lora": {"r": 4}}), terms, rows)[0])  # the adapter has


def opt(checkpointing):
    """OPT applies dropout inside its blocks, without a module for it."""
    like = network()
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=len(like.encoder.tokenizer), hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, dropout=0.5,
        word_embed_proj_dim=32, max_position_embeddings=64, attention_dropout=0.3, pad_token_id=0, eos_token_id=2, bos_token_id=None,
    )  # fmt: skip
    net = Network(AutoModelForCausalLM.from_config(config).double(), like.encoder, "policy")
    if checkpointing:
        kwargs = {"use_reentrant": False, "context_fn": lambda: recompute_context(net)}
        net.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)
    return net


def test_checkpointed_blocks_that_apply_dropout_themselves_have_none_either():
    terms = {"prefer": DPO(source="taste")}
    nets = [opt(checkpointing) for checkpointing in (False, True)]
    rows = {"taste": pairs(nets[0])}
    plain, checkpointed = (update(learner(net), terms, rows)[0] for net in nets)
    torch.testing.assert_close(checkpointed, plain, rtol=0, atol=1e-12)
    # A backward that comes after dropout is on again recomputes as the forward was.
    sums = []
    for net in nets:
        net.train().zero_grad()
        with without_dropout(net):
            total = net(rows["taste"].tokens, {"logprobs"}).logprobs.sum()
        total.backward()
        sums.append(net.model.model.decoder.layers[0].fc1.weight.grad)
    torch.testing.assert_close(sums[1], sums[0], rtol=0, atol=1e-10)
    assert nets[1].model.model.decoder.layers[0].dropout == 0.5


@pytest.mark.parametrize(("value", "rate"), [("off", 0.0), (False, 0.0), (0, 0.0), (0.2, 0.2), ("on", None), (True, None), (None, None)])
def test_what_the_option_may_be(value, rate):
    assert dropout_rate({"dropout": value}) == rate


@pytest.mark.parametrize("value", ["none", 1, -0.1, float("nan"), [0.1]])
def test_other_values_are_refused(value):
    with pytest.raises(ConfigError, match=r"^model\.options\.dropout: got .*; give off, on \(the model's own rates\) or a rate"):
        load("scratch:tiny", tokenizer={"kind": "words"}, texts=["a"], options={"dropout": value})

"""Scalar heads: a score per token, dropout and spectral normalisation of the head, and that both outlive files and copies."""

import copy

import pytest
import torch
from helpers.networks import network

from advalign.errors import ConfigError
from advalign.models import ModelSpec, load, perturb
from advalign.models.sharing import frozen_copy, share_base
from advalign.types import Edit

GPT2, BERT = "scratch:tiny-gpt2?n_embd=32", "scratch:encoder-tiny?hidden_size=32"
LORA = {"r": 2, "lora_alpha": 4, "target_modules": ["c_attn"]}
ROWS = (["a b :", "c :", "d e :"], ["d e", "f g h i j k", "k"], [True, False, True])


def scorer(model=GPT2, **options):
    net = network("score", model=model, options=options)
    for p in net.parameters():
        if p.requires_grad:
            p.data.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()), dtype=p.dtype) * 0.1)
    return net.eval()


def rows(net):
    return net.encoder.scored_pairs(*ROWS)


def scores(net):
    return net(rows(net), {"scores"}).scores.detach()


# ------------------------------------------------------------------------------------------------------ per token


@pytest.mark.parametrize("model", [GPT2, BERT])
@pytest.mark.parametrize("pooling", ["last", "mean", "first"])
def test_the_score_of_a_row_is_made_of_those_of_its_tokens(model, pooling):
    net = scorer(model, pooling=pooling)
    tokens = rows(net)
    out = net(tokens, {"scores", "token_scores"})
    assert bool((out.token_scores[~tokens.mask] == 0).all())
    assert bool((out.token_scores[tokens.mask] != 0).all())
    for row, n in enumerate(tokens.lengths.tolist()):
        token_scores = out.token_scores[row, :n]
        want = {"mean": token_scores.mean(), "last": token_scores[n - 1], "first": token_scores[0]}[pooling]
        torch.testing.assert_close(out.scores[row], want, rtol=0, atol=1e-14)


def test_in_a_decoder_a_token_s_score_is_that_of_the_text_so_far():
    net = scorer()
    tokens = rows(net)
    token_scores = net(tokens, {"token_scores"}).token_scores.detach()
    for row, n in enumerate(tokens.lengths.tolist()):
        for t in range(n):
            begun = tokens.index(torch.tensor([row])).fit(t + 1)
            assert float(net(begun, {"scores"}).scores.detach()) == pytest.approx(float(token_scores[row, t]), abs=1e-13)


# ------------------------------------------------------------------------------------------------ input_gradients of a score


@pytest.mark.parametrize("model", [GPT2, BERT])
def test_the_gradient_of_a_score_is_its_slope_along_any_change_of_embeddings(model):
    net = scorer(model)
    tokens = rows(net)
    input_gradients = net(tokens, {"score_gradients"}).score_gradients.detach()
    assert float(input_gradients[~tokens.mask].abs().max()) == 0.0  # nobody reads padding
    direction = torch.randn(input_gradients.shape, generator=torch.Generator().manual_seed(2), dtype=input_gradients.dtype)

    def moved(step):
        return net(tokens, {"scores"}, {"embedding": Edit(step * direction)}).scores.detach()

    measured = (moved(1e-5) - moved(-1e-5)) / 2e-5
    torch.testing.assert_close(measured, (input_gradients * direction).sum((1, 2)), rtol=1e-6, atol=1e-8)
    # At an edit it is the slope there.
    there = net(tokens, {"score_gradients"}, {"embedding": Edit(direction)}).score_gradients.detach()
    measured = (moved(1 + 1e-5) - moved(1 - 1e-5)) / 2e-5
    torch.testing.assert_close(measured, (there * direction).sum((1, 2)), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("options", [{}, {"lora": LORA}])
def test_slopes_need_no_trained_embeddings_and_neither_move_scores_nor_care_for_padding(options):
    net = scorer(**options)
    tokens = rows(net)
    out = net(tokens, {"scores", "score_gradients"})
    torch.testing.assert_close(out.scores, net(tokens, {"scores"}).scores, rtol=0, atol=1e-13)  # fused attention against plain
    wide = net(tokens.fit(tokens.ids.shape[1] + 4), {"score_gradients"}).score_gradients
    torch.testing.assert_close(wide[:, :-4], out.score_gradients, rtol=0, atol=1e-14)
    assert not bool(wide[:, -4:].any())


@pytest.mark.parametrize("model", [GPT2, BERT])
def test_gradient_checkpointing_changes_no_bit_of_a_second_derivative(model):
    gradients = []
    for checkpointing in (False, True):
        net = scorer(model, gradient_checkpointing=checkpointing).train()
        out = net(rows(net), {"scores", "score_gradients"})
        (out.score_gradients.square().sum() + out.scores.sum()).backward()
        gradients.append([p.grad for p in net.parameters() if p.grad is not None])
    assert len(gradients[0]) > 10
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


# -------------------------------------------------------------------------------------------------- head options


def test_spectral_norm_is_that_of_torch_and_forgets_the_scale_of_the_weight():
    plain, normed = scorer(), scorer(spectral_norm=True)
    normed.scalar.parametrizations.weight.original.data.copy_(plain.scalar.weight.data)
    normed.scalar.bias.data.copy_(plain.scalar.bias.data)
    public = torch.nn.utils.parametrizations.spectral_norm(copy.deepcopy(plain.scalar), n_power_iterations=20)
    torch.testing.assert_close(normed.scalar.weight, public.weight, rtol=0, atol=1e-14)
    before = scores(normed)
    normed.scalar.parametrizations.weight.original.data.mul_(7)
    torch.testing.assert_close(scores(normed), before, rtol=0, atol=1e-13)
    assert (scores(plain) - before).abs().max() > 1e-3


def test_head_dropout_drops_in_training_only_and_where_no_adversary_has_switched_it_off():
    plain, dropped = scorer(), scorer(head_dropout=0.5)
    dropped.load_state_dict(plain.state_dict())
    assert torch.equal(scores(dropped), scores(plain))
    dropped.train()
    assert not torch.equal(scores(dropped), scores(dropped))
    with perturb.without_dropout(dropped):
        assert torch.equal(scores(dropped), scores(plain))


@pytest.mark.parametrize("lora", [None, LORA])
def test_options_of_the_head_outlive_a_folder_and_a_copy(lora, tmp_path):
    options = {"spectral_norm": True, "head_dropout": 0.25} | ({"lora": lora} if lora else {})
    net = scorer(**options)
    net.save_pretrained(tmp_path)
    again = load(str(tmp_path), dtype="float64").eval()
    copied = frozen_copy(net)
    for other in (again, copied):
        assert torch.equal(scores(other), scores(net))
        assert (other.spectral_norm, other.dropout.p) == (True, 0.25)
    before = scores(net)
    with torch.no_grad():
        net.scalar.parametrizations.weight.original.add_(1.0)
    assert (scores(net) - before).abs().max() > 1e-3
    assert torch.equal(scores(copied), before)  # a copy does not follow
    with torch.no_grad():  # unless it is told to, as an average is
        for weight, current in zip(copied.parameters(), net.parameters(), strict=True):
            weight.copy_(current)
    assert torch.equal(scores(copied), scores(net))


def test_a_borrowed_head_has_options_too_and_a_folder_of_one_remembers_them(tmp_path):
    policy = network("policy", options={"lora": LORA}).eval()
    spec = ModelSpec(model="learner:policy", head="score", options={"lora": LORA, "spectral_norm": True})
    discriminator = share_base(policy, spec, "learners.discriminator").eval()
    assert float(discriminator.scalar.weight.detach().norm()) == pytest.approx(1.0, abs=1e-14)
    discriminator.save_pretrained(tmp_path)
    again = share_base(
        policy, ModelSpec(model="learner:policy", head="score", options={"adapter": str(tmp_path)}), "learners.discriminator"
    ).eval()
    assert torch.equal(scores(again), scores(discriminator))


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"model\.options\.spectral_norm: .*head is 'policy'"):
        network("policy", options={"spectral_norm": True})
    with pytest.raises(ConfigError, match=r"model\.options\.head_dropout: 1 given"):
        network("score", model=GPT2, options={"head_dropout": 1.0})
    scorer(spectral_norm=True).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"model\.options\.spectral_norm: False given, but the head .* the other way"):
        load(str(tmp_path), options={"spectral_norm": False})

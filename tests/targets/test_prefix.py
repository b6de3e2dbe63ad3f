"""Rows behind a shared prefix: the numbers of whole rows, in every family; the cache stays as it was; the meter."""

import copy

import pytest
import torch
import transformers
from helpers import victims
from transformers import AutoConfig, AutoModelForCausalLM

from advalign.models import Network, load
from advalign.targets import CachedPrefix, GeneratorTarget
from advalign.targets import prefix as _prefix
from advalign.types import Example

WORDS = ["one two three four five six plus minus times over ="]
FAMILIES = ["llama", "gpt2", "moe", "window"]


def network(family, dtype="float32", **options):
    """Two layers, random weights scaled up so that no two rows agree by accident."""
    presets = {"llama": "scratch:tiny", "gpt2": "scratch:tiny-gpt2", "moe": "scratch:tiny-moe"}
    network = load(presets.get(family, "scratch:tiny"), head="policy", tokenizer={"kind": "words"}, texts=WORDS, max_length=64, dtype=dtype)
    if family in ("window", "state"):
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": len(network.encoder.tokenizer), "pad_token_id": 0}
        kind = {"window": "mistral", "state": "mamba"}[family]
        heads = (
            {"intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 6} if family == "window" else {}
        )
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes, **heads))
        network = Network(model.to(next(network.parameters()).dtype), network.encoder, "policy")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in network.parameters():
            if p.ndim == 2:
                p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p) * p.shape[1] ** -0.5)
    return network.eval()


def rows(net, number=5, length=4):
    """A prefix of ten tokens, random tails of `length`, a response of three."""
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randint(5, len(net.encoder.tokenizer), shape, generator=generator).tolist()  # noqa: E731
    response = draw(3)
    return draw(10), [[*tail, *response] for tail in draw(number, length)], response


def nll_of(response):
    ids = torch.tensor(response)
    return lambda logits: -logits.log_softmax(-1).gather(2, ids.expand(len(logits), -1)[..., None]).squeeze(2).mean(1)


def whole(net, prefix, tails, response):
    """Every row by itself, by transformers' own forward."""
    losses = []
    for tail in tails:
        logits = net.model(input_ids=torch.tensor([[*prefix, *tail]])).logits[0].log_softmax(-1)
        losses.append(-sum(logits[t - 1 - len(response), y] for t, y in enumerate(response, len(prefix) + len(tail))) / len(response))
    return torch.stack(losses)


# In a float64 model transformers keeps RMSNorm and rotations in float32, and has no grouped product for experts.
EXACT = [("gpt2", "float64", 1e-10), ("llama", "float64", 1e-6), ("window", "float64", 1e-6)]


@pytest.mark.parametrize(("family", "dtype", "error"), [*[(f, "float32", 1e-5) for f in FAMILIES], *EXACT])
def test_losses_are_those_of_whole_rows(family, dtype, error):
    net = network(family, dtype)
    prefix, tails, response = rows(net)
    shared = CachedPrefix(GeneratorTarget(net, batch_tokens=40), prefix)  # two rows per batch
    with torch.no_grad():
        expected = whole(net, prefix, tails, response)
    assert shared.note == ""
    for _ in range(2):
        torch.testing.assert_close(shared.read(tails, 3, nll_of(response)).to(expected), expected, rtol=0, atol=error)
    assert shared.cache is not None
    assert expected.std() > 0.01


@pytest.mark.parametrize("family", ["llama", "gpt2", "window"])
def test_gradients_are_those_of_whole_rows(family):
    net = network(family, "float64")
    prefix, tails, response = rows(net, number=1)
    results = [
        CachedPrefix(GeneratorTarget(net), prefix, cached=c).input_gradients(tails[0], slice(1, 3), 3, nll_of(response))
        for c in (True, False)
    ]
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-6)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-5, atol=1e-6 if family != "gpt2" else 1e-10)
    # The slope towards a word is what one-hot rows have: linear in the embedding, so differences are those of directional derivatives.
    matrix = net.model.get_input_embeddings().weight.detach()
    ids, step = torch.tensor([[*prefix, *tails[0]]]), 1e-4
    place, word = len(prefix) + 1, 7
    losses = []
    for sign in (1, -1):
        embeddings = matrix[ids].clone()
        embeddings[0, place] += sign * step * matrix[word]
        with torch.no_grad():
            logits = net.model(inputs_embeds=embeddings).logits[:, -4:-1]
        losses.append(float(nll_of(response)(logits.double())))
    tolerance = 1e-6 if family == "gpt2" else 0.02
    assert float(results[0][1][0, word]) == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=tolerance, abs=tolerance)


@pytest.mark.skipif(transformers.__version__ < "5", reason="Mamba takes no position ids before transformers 5")
def test_a_model_that_keeps_a_state_instead_is_computed_whole_and_says_so():
    net = network("state")
    prefix, tails, response = rows(net)
    shared = CachedPrefix(GeneratorTarget(net), prefix)
    with torch.no_grad():
        expected = whole(net, prefix, tails, response)
    torch.testing.assert_close(shared.read(tails, 3, nll_of(response)), expected, rtol=0, atol=1e-5)
    assert shared.cache is None
    assert shared.note.startswith("no prefix cache: ")


def test_a_cache_that_gives_other_numbers_is_given_up(monkeypatch):
    net = network("llama")
    prefix, tails, response = rows(net)
    good = _prefix._wide

    def spoiled(cache, number):
        wide = good(cache, number)
        wide.layers[0].values = wide.layers[0].values + 1
        return wide

    monkeypatch.setattr(_prefix, "_wide", spoiled)
    shared = CachedPrefix(GeneratorTarget(net), prefix)
    with torch.no_grad():
        expected = whole(net, prefix, tails, response)
    torch.testing.assert_close(shared.read(tails, 3, nll_of(response)), expected, rtol=0, atol=1e-5)
    assert "log-probabilities differ by" in shared.note


def test_the_meter_counts_the_prefix_once_and_every_tail():
    """Ten prompt ids: nine are cached (9 tokens); tails carry the tenth. The first row is checked: 8 + 17 tokens; five rows of 8."""
    net = network("llama")
    prefix, tails, response = rows(net)
    target = GeneratorTarget(net)
    shared = CachedPrefix(target, prefix)
    shared.read(tails, 3, nll_of(response))
    assert (target.num_queries, target.num_forwards, target.num_tokens) == (5, 4, 9 + 8 + 17 + 40)
    shared.read(tails, 3, nll_of(response))
    assert (target.num_queries, target.num_forwards, target.num_tokens) == (10, 5, 9 + 8 + 17 + 80)


def test_losses_are_the_target_s_own_and_dropout_is_off():
    net = copy.deepcopy(victims.generator_model()).train()
    target = GeneratorTarget(net)
    examples = victims.sums()[:4]
    for example in examples:
        prompt, response = net.encoder.prompt(example.prompt), net.encoder.response(example.answer)
        loss = target.prefix(prompt).read([response], len(response), nll_of(response))
        torch.testing.assert_close(loss, target.nll([Example(prompt=example.prompt, answer=example.answer)]), rtol=0, atol=1e-5)
    assert net.training

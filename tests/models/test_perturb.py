"""Perturbation sites: an edit is an addition where it says, everywhere else the model is as it was."""

from dataclasses import replace

import pytest
import torch

from advalign.errors import ConfigError
from advalign.models import load, perturb
from advalign.types import Edit

TEXTS = ["a b c d e f g h i j k :"]
MODELS = {
    "llama": ("scratch:tiny?hidden_size=32", "policy"),
    "gpt2": ("scratch:tiny-gpt2?n_embd=32", "policy"),
    "bert": ("scratch:encoder-tiny?hidden_size=32", "classifier"),
}


def make(name, **options):
    model, head = MODELS[name]
    network = load(model, head=head, tokenizer={"kind": "words"}, texts=TEXTS, max_length=32, dtype="float64", options=options).eval()
    tokens = network.encoder.classify(["a b c d", "e f"]) if head == "classifier" else network.encoder.demos(["a b", "c"], ["d e f", "g"])
    return network, tokens, "class_logits" if head == "classifier" else "logprobs"


def states(network, tokens, edits):
    """What every block computes, and the output. These hooks are older than the edit's, so they see its block before it."""
    seen = {}

    def watch(k):
        def hook(module, inputs, output):
            seen[k] = (output[0] if isinstance(output, tuple) else output).detach().clone()

        return hook

    need = "class_logits" if network.head == "classifier" else "logprobs"
    handles = [block.register_forward_hook(watch(k)) for k, block in enumerate(perturb.blocks(network.backbone))]
    out = getattr(network(tokens, {need}, edits), need)
    for handle in handles:
        handle.remove()
    return seen, out.detach()


@pytest.mark.parametrize("name", MODELS)
def test_an_edit_of_a_layer_reaches_later_blocks_alone(name):
    network, tokens, _ = make(name)
    add = torch.randn(*tokens.ids.shape, 32, dtype=torch.float64) * tokens.mask[..., None]
    clean, before = states(network, tokens, {})
    first, after = states(network, tokens, {"layer:0": Edit(add)})
    assert torch.equal(first[0], clean[0])
    assert not torch.allclose(first[1], clean[1])
    assert not torch.allclose(after, before)
    _, again = states(network, tokens, {})
    assert torch.equal(again, before)  # the hook is gone


@pytest.mark.parametrize("name", MODELS)
def test_an_edit_at_the_embedding_is_an_addition_to_the_table(name):
    # Adding e(b) - e(a) where the token is a, is the model reading b there.
    network, tokens, need = make(name)
    table = network.model.get_input_embeddings().weight.detach()
    vocabulary = network.encoder.tokenizer.get_vocab()
    a, place = int(tokens.ids[0, 1]), (0, 1)
    b = vocabulary["k"]
    add = torch.zeros(*tokens.ids.shape, 32, dtype=torch.float64)
    add[place] = table[b] - table[a]
    swapped = tokens.ids.clone()
    swapped[place] = b
    edited = getattr(network(tokens, {need}, {"embedding": Edit(add)}), need)
    read = getattr(network(replace(tokens, ids=swapped), {need}), need)
    # The log-probability of the swapped token itself asks for another token.
    keep = torch.ones_like(edited, dtype=torch.bool)
    if need == "logprobs":
        keep[place] = False
    assert torch.allclose(edited[keep], read[keep], rtol=0, atol=1e-12)


@pytest.mark.parametrize("site", ["embedding", "layer:0", "layer:1", "layer:-1", "layer:-2"])
@pytest.mark.parametrize("name", MODELS)
def test_zero_changes_nothing_and_gradients_reach_the_edit(name, site):
    network, tokens, need = make(name)
    zero = torch.zeros(*tokens.ids.shape, 32, dtype=torch.float64, requires_grad=True)
    clean, still = (getattr(network(tokens, {need}, edits), need) for edits in (None, {site: Edit(zero)}))
    assert torch.equal(clean, still)
    (gradient,) = torch.autograd.grad(still.square().sum(), zero)
    assert gradient[tokens.mask].abs().sum() > 0
    # Against a central difference in a random direction.
    direction = torch.randn_like(gradient) * tokens.mask[..., None]
    values = [
        float(getattr(network(tokens, {need}, {site: Edit(sign * 1e-5 * direction)}), need).detach().square().sum()) for sign in (1, -1)
    ]
    assert float((gradient * direction).sum()) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-3 if name == "llama" else 1e-6)


def test_negative_layers_count_from_the_end():
    network, tokens, _ = make("gpt2")
    assert perturb.layer("layer:-1", network.backbone) is perturb.layer("layer:1", network.backbone)
    assert perturb.layer("layer:-2", network.backbone) is perturb.layer("layer:0", network.backbone)


@pytest.mark.parametrize(
    ("site", "sentence"),
    [
        ("layer:2", r"sites: 'layer:2' is outside the 2 blocks of this model \(layer:0 to layer:1\)."),
        ("layer:-3", r"sites: 'layer:-3' is outside the 2 blocks"),
        ("layer:x", r"sites: no site 'layer:x'. Known: embedding, layer:k with k from 0 to 1."),
        ("attention", r"sites: no site 'attention'."),
    ],
)
def test_a_site_that_is_not_there_is_a_sentence(site, sentence):
    network, tokens, need = make("llama")
    with pytest.raises(ConfigError, match=rf"^{sentence}"):
        network(tokens, {need}, {site: Edit(torch.zeros(*tokens.ids.shape, 32, dtype=torch.float64))})


def test_a_model_without_blocks_is_a_sentence():
    with pytest.raises(ConfigError, match=r"^sites: no stack of blocks found in Linear; only the site 'embedding' can be used with it.$"):
        perturb.blocks(torch.nn.Linear(2, 2))


def test_dropout_is_switched_off_and_on_again_module_by_module():
    network, tokens, need = make("bert", dropout=0.5)
    network.train()
    still = next(m for m in network.modules() if isinstance(m, torch.nn.Dropout))
    still.eval()  # somebody froze this one
    modes = [m.training for m in network.modules()]
    with perturb.without_dropout(network):
        first, second = (network(tokens, {need}).class_logits for _ in range(2))
    assert torch.equal(first, second)
    assert [m.training for m in network.modules()] == modes
    assert not torch.equal(*(network(tokens, {need}).class_logits for _ in range(2)))


def test_the_random_state_is_given_back():
    torch.manual_seed(1)
    with perturb.same_random_state():
        inside = torch.rand(2)
    assert torch.equal(torch.rand(2), inside)


class Backbone(torch.nn.Module):
    """Two blocks that add 1, in three manners that transformers has."""

    def __init__(self, manner):
        super().__init__()
        self.manner, self.layers = manner, torch.nn.ModuleList([Block(manner), Block(manner)])

    def forward(self, hidden):
        for block in self.layers:
            output = block.forward(hidden) if self.manner == "past hooks" else block(hidden)
            hidden = output[0] if isinstance(output, list) else output
        return hidden


class Block(torch.nn.Module):
    def __init__(self, manner):
        super().__init__()
        self.manner = manner

    def forward(self, hidden):
        if self.manner == "longer" and hidden.shape[1] == 3:
            hidden = torch.nn.functional.pad(hidden, (0, 0, 0, 1))
        return [hidden + 1, None] if self.manner == "list" else hidden + 1


@pytest.mark.parametrize("manner", ["list", "longer"])
def test_blocks_that_return_lists_and_blocks_that_lengthen_their_rows(manner):
    """OpenAI GPT returns lists; Longformer pads its rows to whole windows."""
    add = torch.arange(6.0).view(1, 3, 2)
    backbone = Backbone(manner)
    with perturb.edited(backbone, {"layer:0": Edit(add=add)}):
        hidden = backbone(torch.zeros(1, 3, 2))
    assert torch.equal(hidden[:, :3], add + 2)  # 1 of each block
    assert (hidden[:, 3:] == 2).all()


def test_blocks_that_run_past_their_hooks_are_refused_instead_of_left_as_they_are():
    """SqueezeBERT calls `forward` of its blocks: an edit would change nothing."""
    backbone = Backbone("past hooks")
    sentence = r"^sites: 'layer:1' is out of reach in Backbone, whose forward runs its blocks past their hooks; only the site 'embedding'"
    with pytest.raises(ConfigError, match=sentence), perturb.edited(backbone, {"layer:1": Edit(add=torch.ones(1, 3, 2))}):
        backbone(torch.zeros(1, 3, 2))
    with pytest.raises(ConfigError, match=sentence), perturb.captured(backbone, ["embedding", "layer:1"]):
        backbone(torch.zeros(1, 3, 2))

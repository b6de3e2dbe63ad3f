"""A model is compared with its own forward when it is loaded, and what differs is refused by the name of its part."""

import pytest
import torch
from architectures.build import Subject
from architectures.causal import CAUSAL

from advalign.errors import ConfigError
from advalign.models import forward, self_check


@pytest.fixture
def llama(tmp_path):
    return Subject("llama", CAUSAL["llama"], "policy", tmp_path).net


def test_a_model_that_is_right_passes_and_nothing_is_counted_or_drawn(llama):
    net = llama
    state = torch.random.get_rng_state()
    self_check.check(net)
    assert (net.num_forwards, net.num_rows) == (0, 0)
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_head_that_differs_is_named(llama):
    net = llama
    hook = net.model.register_forward_hook(lambda module, inputs, output: setattr(output, "logits", output.logits * 2))
    net._head_form = forward.own_head.HeadForm()
    with pytest.raises(ConfigError, match=r"^model: LlamaForCausalLM \(llama\) is not computed right here: .* \(head\); "):
        self_check.check(net)
    hook.remove()
    self_check.check(net)


def test_an_embedding_that_needs_ids_is_named(llama):
    """A backbone that adds something of its own to what the ids stand for."""
    net = llama
    inner = net.backbone.forward

    def changed(input_ids=None, inputs_embeds=None, **options):
        embeddings = net.model.get_input_embeddings()(input_ids) + 1.0 if inputs_embeds is None else inputs_embeds
        return inner(inputs_embeds=embeddings, **options)

    net.backbone.forward = changed
    with pytest.raises(ConfigError, match=r"\(embedding\); it needs token ids beside embeddings"):
        self_check.check(net)


def changed_backbone(net, change):
    """The backbone, with `change(hidden states, mask)` behind it."""
    inner = net.backbone.forward

    def forward(**options):
        output = inner(**options)
        output.last_hidden_state = change(output.last_hidden_state, options.get("attention_mask"))
        return output

    net.backbone.forward = forward
    net._packs = False


def test_a_row_that_changes_with_padding_beside_it_is_named(llama):
    net = llama
    changed_backbone(net, lambda hidden, mask: hidden if mask is None or bool(mask.all()) else hidden + 1.0)
    with pytest.raises(ConfigError, match=r"\(mask\); rows of it change with their padding"):
        self_check.check(net)


def test_a_model_that_reads_both_ways_is_no_policy(llama):
    """A backbone that mixes all positions of a row."""
    net = llama
    changed_backbone(net, lambda hidden, mask: hidden + hidden.mean(1, keepdim=True))
    with pytest.raises(ConfigError, match=r"^model: LlamaForCausalLM \(llama\) is not causal: logits at a token change with the tokens"):
        self_check.check(net)


def test_a_model_without_finite_numbers_is_refused(llama):
    net = llama
    with torch.no_grad():
        net.model.lm_head.weight[0] = torch.nan
    with pytest.raises(ConfigError, match=r"LlamaForCausalLM \(llama\) gives no finite numbers: its outputs for ordinary words are nan"):
        self_check.check(net)


@pytest.mark.parametrize("head", ["classifier", "score", "value"])
def test_every_head_is_refused_whose_model_gives_nan(head, tmp_path):
    from advalign.models import load

    model = "scratch:tiny?hidden_size=32"
    saved = load(model, head=head, tokenizer={"kind": "words"}, texts=["a b c"], max_length=16)
    with torch.no_grad():
        next(p for name, p in saved.model.named_parameters() if name.endswith("down_proj.weight"))[0, 0] = torch.nan
    saved.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"^model: .* gives no finite numbers: its outputs for ordinary words are nan; its weights are"):
        load(str(tmp_path), max_length=16)


def test_weights_that_are_not_finite_are_named(llama):
    with torch.no_grad():
        llama.model.model.layers[1].mlp.up_proj.weight[3, 2] = -torch.inf
    with pytest.raises(
        ConfigError, match=r"gives no finite numbers: 1 of \d+ numbers in .*layers\.1\.mlp\.up_proj\.weight are nan or infinite"
    ):
        self_check.check_numbers(llama)

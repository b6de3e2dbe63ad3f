"""Rows without padding and with common beginnings once give what padded rows give: values, gradients, edits, every architecture."""

import json

import pytest
import torch
import transformers
from helpers.networks import demos, learner, network, pairs, rollouts, update
from tokenizers import Tokenizer, models
from torch.utils.flop_counter import FlopCounterMode

from advalign.adversaries.noise import Noise
from advalign.adversaries.pgd import PGD
from advalign.engine import micro as mb
from advalign.models import Network, padding_free
from advalign.models.encode import Encoder
from advalign.objectives.grpo import GRPO
from advalign.objectives.sft import SFT
from advalign.objectives.simpo import SimPO
from advalign.types import DemoRows, Edit, Tokens

SMALL = {
    "vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip
GPT2 = {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 1, "eos_token_id": 1}
OPT = {"vocab_size": 50, "hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "word_embed_proj_dim": 16}
PACKED = {
    "Llama": SMALL, "Qwen2": SMALL, "Qwen3": SMALL | {"head_dim": 4}, "Mistral": SMALL | {"sliding_window": 3}, "GPTNeoX": SMALL,
    "Gemma2": SMALL | {"head_dim": 4, "sliding_window": 3}, "Phi3": SMALL, "GPT2": GPT2, "OPT": OPT | {"max_position_embeddings": 64},
}  # fmt: skip
# Its blocks mix tokens in a convolution, its states are recurrent, and its attention has no seam.
PADDED = {
    "Lfm2": SMALL | {"layer_types": ["conv", "full_attention"]},
    "Mamba": {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2},
    "Bloom": {"vocab_size": 50, "hidden_size": 16, "n_layer": 2, "n_head": 4},
}


def built(name, options) -> Network:
    config = getattr(transformers, f"{name}Config")(**options)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(50)}, unk_token="w2"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w1", unk_token="w2")
    return Network(model.eval(), Encoder(tokenizer, max_length=64, bidirectional=False), "policy").double()


def ragged() -> Tokens:
    """Groups of three, one and two rows; the beginnings that they share have 4, no and 2 tokens (a row keeps one of its own)."""
    rows = [[5, 6, 7, 8, 9, 10, 11, 12], [5, 6, 7, 8, 20, 21], [5, 6, 7, 8, 9], [30, 31], [40, 41, 42], [40, 41, 42, 43, 44, 45, 46]]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = ids != 0
    target = mask & (torch.arange(width) >= 1)
    return Tokens(ids=ids, mask=mask, target=target, group=torch.tensor([0, 0, 0, 1, 2, 2]), key=torch.arange(6))


def packed_and_padded(net, tokens, needs, edits=None):
    """[(outputs, gradient of all parameters)] packed and padded."""
    results = []
    for packs in (True, False):
        net._packs = packs
        net.zero_grad()
        outputs = net(tokens, needs, edits)
        (outputs.logprobs.sum() + outputs.entropy.square().sum()).backward()
        results.append((outputs, torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])))
    return results


def test_the_layout_of_a_small_example_by_hand():
    """Shared: 4 + (4 + 2 + 1) tokens; alone: 2; shared: 2 + (1 + 5). In all 21 of 31 tokens, of 48 places with padding."""
    tokens = ragged()
    layout = padding_free.build_layout(tokens, share=True)
    assert len(layout.source) == 21
    assert layout.place[1, :4].tolist() == layout.place[0, :4].tolist()
    assert layout.place[5, :2].tolist() == layout.place[4, :2].tolist()
    assert len(set(layout.place[tokens.mask].tolist())) == 21
    assert tokens.ids.flatten()[layout.source][layout.place][tokens.mask].tolist() == tokens.ids[tokens.mask].tolist()
    assert layout.positions[layout.place][tokens.mask].tolist() == torch.arange(8).expand(6, 8)[tokens.mask].tolist()
    assert len(padding_free.build_layout(tokens, share=False).source) == 31
    # A row that is wholly a beginning of its group keeps its last token: the third row has 5 tokens, all of them those of the first.
    assert layout.place[2, 4] != layout.place[0, 4]


def test_what_saves_too_little_stays_as_it_is():
    ids = torch.arange(1, 21).view(2, 10)
    full = torch.ones_like(ids, dtype=torch.bool)
    tokens = Tokens(ids=ids, mask=full, target=full, group=torch.arange(2), key=torch.arange(2))
    assert padding_free.build_layout(tokens, share=True) is None


@pytest.mark.parametrize("name", PACKED)
def test_packed_rows_give_what_padded_rows_give(name):
    net, tokens = built(name, PACKED[name]), ragged()
    assert net.packs
    (packed, gradient), (padded, want) = packed_and_padded(net, tokens, {"logprobs", "entropy"})
    # Norms of these models compute in float32 whatever the model's precision.
    torch.testing.assert_close(packed.logprobs, padded.logprobs, rtol=0, atol=1e-6)
    torch.testing.assert_close(packed.entropy, padded.entropy, rtol=0, atol=1e-6)
    torch.testing.assert_close(gradient, want, rtol=0, atol=1e-6 * float(want.abs().max()))


def test_in_float64_they_are_equal_to_rounding():
    net, tokens = built("GPT2", GPT2), ragged()  # a LayerNorm keeps float64
    (packed, gradient), (padded, want) = packed_and_padded(net, tokens, {"logprobs", "entropy"})
    torch.testing.assert_close(packed.logprobs, padded.logprobs, rtol=0, atol=1e-13)
    torch.testing.assert_close(gradient, want, rtol=0, atol=1e-12 * float(want.abs().max()))


@pytest.mark.parametrize("name", PADDED)
def test_models_that_mix_tokens_elsewhere_are_padded(name):
    net = built(name, PADDED[name])
    assert not net.packs
    if name == "Mamba" and transformers.__version__ < "5":
        pytest.skip("Mamba takes no position ids before transformers 5")
    assert net(ragged(), {"logprobs"}).logprobs.isfinite().all()


def test_a_model_whose_configuration_hides_what_it_does_is_found_out():
    """Every block adds the token before: nothing says so, but packed rows differ."""
    net = built("Llama", SMALL)

    class Mixing(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x, *args, **kwargs):
            x = self.inner(x, *args, **kwargs)
            return x + torch.nn.functional.pad(x, (0, 0, 1, 0))[:, :-1]

    assert net.packs
    net.model.model.layers[0].mlp = Mixing(net.model.model.layers[0].mlp)
    net._packs = None
    assert not net.packs


def test_a_model_too_small_to_be_tried_is_padded():
    """Positions for four tokens: the trial has rows of six."""
    net = built("GPT2", GPT2 | {"n_positions": 4})
    assert not net.packs


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("site", ["embedding", "layer:0"])
def test_edits_and_hidden_states_are_in_rows(site, checkpointing):
    net, tokens = built("GPT2", GPT2), ragged()
    if checkpointing:
        net.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        net.train()
        for module in net.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    add = torch.randn(*tokens.ids.shape, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * tokens.mask[..., None]
    deltas = []
    for packs in (True, False):
        net._packs = packs
        delta = add.clone().requires_grad_()
        out = net(tokens, {"logprobs", "hidden:layer:0", "hidden:layer:1"}, {site: Edit(add=delta)})
        assert out.hidden["layer:0"].shape == (6, 8, 16)
        assert not packs or not out.hidden["layer:0"][~tokens.mask].any()
        total = out.logprobs.sum() + (out.hidden["layer:1"] * tokens.mask[..., None]).square().sum()
        deltas.append((torch.autograd.grad(total, delta)[0], out.hidden["layer:0"][tokens.mask]))
    torch.testing.assert_close(deltas[0][0], deltas[1][0], rtol=0, atol=1e-12 * float(deltas[1][0].abs().max()))
    torch.testing.assert_close(deltas[0][1], deltas[1][1], rtol=0, atol=1e-12)


def test_rows_with_edits_of_their_own_share_nothing():
    """Two equal beginnings with unlike edits must not be one."""
    net, tokens = built("GPT2", GPT2), ragged()
    add = torch.zeros(*tokens.ids.shape, 16, dtype=torch.float64)
    add[1, 0, 0] = 1.0  # not all of a token: its mean is normalised away
    (packed, _), (padded, _) = packed_and_padded(net, tokens, {"logprobs", "entropy"}, {"embedding": Edit(add=add)})
    torch.testing.assert_close(packed.logprobs, padded.logprobs, rtol=0, atol=1e-12)
    assert (packed.logprobs[1, 4] - net(tokens, {"logprobs"}).logprobs[1, 4]).abs() > 1e-6


@pytest.mark.parametrize("site", ["embedding", "layer:0"])
def test_rows_whose_group_has_one_delta_share_their_beginning(site):
    """One delta per group on its first two tokens: values, the gradient of all parameters and that of the deltas are those of padded rows,
    and 21 of 31 tokens run. What is run once receives the gradient of all rows."""
    net, tokens = built("GPT2", GPT2), ragged()
    torch.manual_seed(1)
    start = torch.randn(3, 8, 16, dtype=torch.float64) * (torch.arange(8) < 2)[None, :, None]
    layouts, results = [], []
    for packs in (True, False):
        net._packs = packs
        net.zero_grad()
        deltas = start.clone().requires_grad_()
        hook = net.model.transformer.h[1].register_forward_hook(lambda module, inputs, output: layouts.append(inputs[0].shape))
        outputs = net(tokens, {"logprobs", "entropy"}, {site: Edit(add=deltas[tokens.group], common=True)})
        hook.remove()
        (outputs.logprobs.sum() + outputs.entropy.square().sum()).backward()
        parameters = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
        results.append((outputs.logprobs, parameters, deltas.grad))
    assert layouts == [(1, 21, 16), (6, 8, 16)]
    for packed, padded in zip(*results, strict=True):
        torch.testing.assert_close(packed, padded, rtol=0, atol=1e-12 * max(1.0, float(padded.detach().abs().max())))


def test_with_dropout_equal_beginnings_draw_masks_of_their_own():
    net, tokens = built("GPT2", GPT2 | {"resid_pdrop": 0.5, "embd_pdrop": 0.0, "attn_pdrop": 0.0}), ragged()
    net.packs  # noqa: B018
    net.train()
    torch.manual_seed(0)
    hidden = net(tokens, {"hidden:layer:0", "logprobs"}).hidden["layer:0"]
    assert not torch.allclose(hidden[0, :4], hidden[1, :4])
    net.eval()
    hidden = net(tokens, {"hidden:layer:0", "logprobs"}).hidden["layer:0"]
    assert torch.equal(hidden[0, :4], hidden[1, :4])


UPDATES = {
    "grpo": ({"a": GRPO(source="s")}, {}, rollouts),
    "sft under attack": ({"a": SFT(source="s"), "b": SFT(source="s", view="adv")}, {"adv": PGD(radius=0.3, steps=2)}, demos),
    "noise at a block": ({"b": SFT(source="s", view="adv")}, {"adv": Noise(radius=0.3, sites=("layer:0",), relative_to="absolute")}, demos),
    "pairs": ({"a": SimPO(source="s")}, {}, pairs),
}


@pytest.mark.parametrize("budget", [10_000, 24])
@pytest.mark.parametrize("name", UPDATES)
def test_an_update_is_the_same_packed_and_padded(name, budget):
    objectives, adversaries, rows = UPDATES[name]
    results = {}
    for packs in (True, False):
        net = network(model="scratch:tiny-gpt2?n_embd=32&n_layer=2")
        net._packs = packs
        results[packs], _ = update(learner(net), objectives, {"s": rows(net)}, adversaries, budget=budget)
    torch.testing.assert_close(results[True], results[False], rtol=0, atol=1e-12 * float(results[False].abs().max()))


def test_micro_batches_of_packed_rows_hold_real_tokens_and_whole_groups():
    """Rows of 8 6 5 | 2 | 3 7 tokens. Packed, without sharing: 19, 2 and 10 of them; a budget of 21 holds the first and the second."""
    rows = {"s": DemoRows(tokens=ragged())}
    assert [m["s"].tolist() for m in mb.pack(rows, 21, layout=mb.BatchLayout(True))] == [[0, 1, 2], [3, 4, 5]]
    # Prompts of one token (the first target is the second), counted once per group: 17, 2 and 9.
    assert [m["s"].tolist() for m in mb.pack(rows, 17, layout=mb.BatchLayout(True, frozenset("s")))] == [[0, 1, 2], [3, 4, 5]]
    # A group over the budget is split row by row rather than refused: 8 6 5 of the first.
    assert sorted(i for m in mb.pack(rows, 10, layout=mb.BatchLayout(True)) for i in m["s"].tolist()) == list(range(6))


def test_the_prompt_of_a_group_is_computed_once():
    """Eight responses of 4 tokens to a prompt of 40: 8 x 44 tokens become 40 + 8 x 4; attention apart, a fifth of the operations."""
    net = built("GPT2", GPT2)
    ids = torch.cat([torch.arange(2, 42).expand(8, 40), torch.randint(2, 50, (8, 4), generator=torch.Generator().manual_seed(0))], 1)
    mask = torch.ones_like(ids, dtype=torch.bool)
    tokens = Tokens(ids=ids, mask=mask, target=mask & (torch.arange(44) >= 40), group=torch.zeros(8, dtype=torch.long), key=torch.arange(8))
    counted = []
    for packs in (True, False):
        net._packs = packs
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(tokens, {"logprobs"})
        counted.append(counter.get_total_flops())
    assert counted[0] / counted[1] < 0.35


def test_a_saved_model_does_not_name_our_attention(tmp_path):
    net = built("Llama", SMALL)
    net.model.save_pretrained(tmp_path)
    assert padding_free.NAME not in json.dumps(json.loads((tmp_path / "config.json").read_text()))

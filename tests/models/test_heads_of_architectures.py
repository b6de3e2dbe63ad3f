"""Architectures of transformers as it builds them: log-probabilities, gradients and edits are those of the model's own forward."""

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models

from advalign.models import Network, architecture
from advalign.models.encode import Encoder
from advalign.types import Edit, Tokens

SIZES = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip
PLAIN = {name: SIZES[name] for name in SIZES if name != "num_key_value_heads"}
MOE = SIZES | {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}
LLAMA4 = SIZES | {"intermediate_size_mlp": 48, "num_local_experts": 2, "head_dim": 8}
OPT = {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0}
FAMILIES = {
    "Llama": SIZES, "Mistral": SIZES | {"sliding_window": 3}, "Qwen3": SIZES | {"head_dim": 8}, "Qwen3Moe": MOE, "Phi": PLAIN,
    "Cohere": SIZES | {"logit_scale": 0.3}, "Cohere2": SIZES | {"logit_scale": 0.3}, "Granite": SIZES | {"logits_scaling": 4.0},
    "Gemma2": SIZES | {"head_dim": 8, "final_logit_softcapping": 0.5}, "GPTNeoX": PLAIN, "ModernBertDecoder": PLAIN,
    "Falcon": {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "bos_token_id": 1, "eos_token_id": 1},
    "Bloom": {"vocab_size": 50, "hidden_size": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 1},
    "OPT": PLAIN | OPT, "Bart": PLAIN | {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48},
    "Llama4Text": LLAMA4, "FalconH1": SIZES | {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "lm_head_multiplier": 0.5},
}  # fmt: skip
FLOAT32_INSIDE = ("Cohere", "Cohere2", "Gemma2", "Llama4Text", "FalconH1")
"""transformers computes their norms in float32 also in a float64 model, so padding moves the last bits of that precision."""
ROWS = [[5, 6, 7, 8, 9, 10, 11], [5, 6, 7, 20], [30, 31, 32]]


def build(family) -> Network:
    config = getattr(transformers, f"{family}Config")(**FAMILIES[family])
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, experts_implementation="eager").double()
    for p in model.parameters():  # biases are zero in a fresh model, and one that is ignored would not show
        torch.nn.init.normal_(p, std=0.2)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(50)}, unk_token="w2"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w1", unk_token="w2")
    return Network(model.eval(), Encoder(tokenizer, max_length=64), "policy")


def rows() -> Tokens:
    width = max(map(len, ROWS))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in ROWS])
    mask = ids != 0
    return Tokens(ids=ids, mask=mask, target=mask & (torch.arange(width) >= 1), group=torch.arange(3), key=torch.arange(3))


def logits(net, row) -> torch.Tensor:
    """The model's own, of one row without padding, at the positions that predict its tokens."""
    return net.model(input_ids=torch.tensor([row]), use_cache=False).logits[0, :-1]


def expected(net, temperature=1.0) -> torch.Tensor:
    """log_softmax(model(ids).logits / temperature) at the next token, row after row."""
    parts = [(logits(net, row) / temperature).log_softmax(-1).gather(1, torch.tensor(row[1:])[:, None])[:, 0] for row in ROWS]
    return torch.cat(parts)


def gradients(net, value) -> list[torch.Tensor]:
    parameters = [p for p in net.parameters() if p.requires_grad]
    slopes = torch.autograd.grad(value, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, slopes, strict=True)]


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_and_gradients_are_those_of_the_model(family):
    net, tokens = build(family), rows()
    for temperature in (None, 0.7):
        divisors = None if temperature is None else torch.full((3,), temperature, dtype=torch.float64)
        ours, right = net(tokens, {"logprobs"}, None, divisors).logprobs[tokens.target], expected(net, temperature or 1.0)
        torch.testing.assert_close(ours, right, rtol=0, atol=1e-7 if family in FLOAT32_INSIDE else 1e-10)
        weights = torch.randn(right.shape, dtype=right.dtype, generator=torch.Generator().manual_seed(1))
        mine, theirs = (torch.cat([g.flatten() for g in gradients(net, value @ weights)]) for value in (ours, right))
        torch.testing.assert_close(mine, theirs, rtol=0, atol=float(theirs.abs().max()) * (1e-6 if family in FLOAT32_INSIDE else 1e-10))


@pytest.mark.parametrize("family", FAMILIES)
def test_entropy_and_distribution_have_the_temperature(family):
    net, tokens = build(family), rows()
    outputs = net(tokens, {"entropy", "distribution"}, None, torch.full((3,), 0.7, dtype=torch.float64))
    right = torch.cat([logits(net, row) / 0.7 for row in ROWS])
    entropy = torch.distributions.Categorical(logits=right).entropy()
    tolerance = 1e-7 if family in FLOAT32_INSIDE else 1e-10
    torch.testing.assert_close(outputs.entropy[tokens.target], entropy, rtol=0, atol=tolerance)
    ours = outputs.distribution.head(outputs.distribution.hidden[tokens.target])
    torch.testing.assert_close(ours.log_softmax(-1), right.log_softmax(-1), rtol=0, atol=tolerance)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_edit_at_a_block_is_an_edit_of_that_block_alone(family):
    """The second of two blocks, known by its name and its class: whatever is added to its output, the hook of plain torch adds."""
    net, tokens = build(family), rows()
    add = torch.randn(*tokens.ids.shape, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * tokens.mask[..., None]
    ours = net(tokens, {"logprobs"}, {"layer:1": Edit(add=add)}).logprobs[tokens.target]
    second = [module for name, module in net.model.named_modules() if name.rpartition(".")[2] == "1"]
    (block,) = [module for module in second if type(module).__name__.endswith(("Layer", "Block"))]
    parts = []
    for b, row in enumerate(ROWS):
        change = add[b : b + 1, : len(row)]
        hook = block.register_forward_hook(lambda m, i, out, c=change: (out[0] + c, *out[1:]) if isinstance(out, tuple) else out + c)
        parts.append(logits(net, row).log_softmax(-1).gather(1, torch.tensor(row[1:])[:, None])[:, 0])
        hook.remove()
    torch.testing.assert_close(ours, torch.cat(parts), rtol=0, atol=1e-7 if family in FLOAT32_INSIDE else 1e-10)


@pytest.mark.parametrize("family", ["ModernBertDecoder", "Granite", "Cohere", "Gemma2"])
def test_next_token_logits_are_the_models_own(family):
    """What rollouts sample from."""
    net = build(family)
    hidden = net.backbone(input_ids=torch.tensor([ROWS[0]]), use_cache=False).last_hidden_state[0, :-1]
    torch.testing.assert_close(net.next_token_logits(hidden), logits(net, ROWS[0]), rtol=0, atol=1e-10)


DROPOUTS = {
    "OPT": ("dropout", "attention_dropout", "layerdrop"), "GPTNeoX": ("hidden_dropout", "attention_dropout"),
    "Falcon": ("hidden_dropout", "attention_dropout"), "Bloom": ("hidden_dropout", "attention_dropout"),
    "DistilBert": ("dropout", "attention_dropout", "seq_classif_dropout"), "Albert": ("hidden_dropout_prob", "classifier_dropout_prob"),
    "ModernBert": ("embedding_dropout", "mlp_dropout", "classifier_dropout"), "Electra": ("hidden_dropout_prob", "summary_last_dropout"),
    "Phi": ("resid_pdrop", "embd_pdrop", "attention_dropout"), "GPT2": ("resid_pdrop", "attn_pdrop", "summary_first_dropout"),
    "ModernBertDecoder": ("embedding_dropout", "attention_dropout"), "Bart": ("activation_dropout", "decoder_layerdrop"),
}  # fmt: skip


@pytest.mark.parametrize("family", DROPOUTS)
def test_dropout_zero_reaches_every_rate(family):
    config = getattr(transformers, f"{family}Config")(**dict.fromkeys(DROPOUTS[family], 0.1))
    architecture.set_dropout(config, 0.0)
    assert [getattr(config, name) for name in DROPOUTS[family]] == [0.0] * len(DROPOUTS[family])
    architecture.set_dropout(config, 0.3)
    layers = [name for name in DROPOUTS[family] if "layerdrop" in name]
    assert all(getattr(config, name) == (0.0 if name in layers else 0.3) for name in DROPOUTS[family])


@pytest.mark.parametrize("family", ["OPT", "Falcon", "Bloom", "GPTNeoX", "ModernBertDecoder"])
def test_without_dropout_training_mode_changes_nothing(family):
    config = getattr(transformers, f"{family}Config")(**FAMILIES[family] | dict.fromkeys(DROPOUTS[family], 0.1))
    architecture.set_dropout(config, 0.0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    ids = torch.tensor([ROWS[0]])
    assert torch.equal(model.train()(input_ids=ids).logits, model.eval()(input_ids=ids).logits)


@pytest.mark.parametrize(
    ("family", "options", "both_ways"),
    [
        ("Gemma", {}, False), ("Cohere", {}, False), ("Llama", {}, False), ("ModernBertDecoder", {}, False), ("GPT2", {}, False),
        ("Bert", {}, True), ("Bert", {"is_decoder": True}, False), ("Bert", {"architectures": ["BertForSequenceClassification"]}, True),
        ("Roberta", {}, True), ("ModernBert", {}, True), ("DistilBert", {}, True), ("Albert", {}, True), ("Electra", {}, True),
        ("DebertaV2", {}, True), ("Qwen3", {"architectures": ["Qwen3ForSequenceClassification"]}, False),
    ],
)  # fmt: skip
def test_direction_is_that_of_the_model_class(family, options, both_ways):
    assert architecture.reads_both_ways(getattr(transformers, f"{family}Config")(**options)) is both_ways

"""What transformers' models and configurations say about themselves: dropout rates, direction, blocks."""

import pytest
import torch
import transformers
from architectures.causal import CAUSAL

from advalign.errors import ConfigError
from advalign.models import architecture

DROPOUTS = {
    "opt": ("dropout", "attention_dropout", "layerdrop"), "gpt_neox": ("hidden_dropout", "attention_dropout"),
    "falcon": ("hidden_dropout", "attention_dropout"), "bloom": ("hidden_dropout", "attention_dropout"),
    "distilbert": ("dropout", "attention_dropout", "seq_classif_dropout"), "albert": ("hidden_dropout_prob", "classifier_dropout_prob"),
    "modernbert": ("embedding_dropout", "mlp_dropout", "classifier_dropout"), "electra": ("hidden_dropout_prob", "summary_last_dropout"),
    "phi": ("resid_pdrop", "embd_pdrop", "attention_dropout"), "gpt2": ("resid_pdrop", "attn_pdrop", "summary_first_dropout"),
    "modernbert-decoder": ("embedding_dropout", "attention_dropout"), "bart": ("activation_dropout", "decoder_layerdrop"),
}  # fmt: skip


@pytest.mark.parametrize("family", DROPOUTS)
def test_dropout_zero_reaches_every_rate(family):
    config = transformers.AutoConfig.for_model(family, **dict.fromkeys(DROPOUTS[family], 0.1))
    architecture.set_dropout(config, 0.0)
    assert [getattr(config, name) for name in DROPOUTS[family]] == [0.0] * len(DROPOUTS[family])
    architecture.set_dropout(config, 0.3)
    layers = [name for name in DROPOUTS[family] if "layerdrop" in name]
    assert all(getattr(config, name) == (0.0 if name in layers else 0.3) for name in DROPOUTS[family])


@pytest.mark.parametrize("family", ["opt", "falcon", "bloom", "gpt_neox", "modernbert-decoder"])
def test_without_dropout_training_mode_changes_nothing(family):
    config = transformers.AutoConfig.for_model(family, **CAUSAL[family].options | dict.fromkeys(DROPOUTS[family], 0.1))
    architecture.set_dropout(config, 0.0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11]])
    assert torch.equal(model.train()(input_ids=ids).logits, model.eval()(input_ids=ids).logits)


def test_a_rate_that_takes_whole_numbers_alone_is_set_to_zero_and_to_nothing_else():
    config = transformers.AutoConfig.for_model("mpt").attn_config
    architecture.set_dropout(config, 0.0)
    assert config.attn_pdrop == 0
    with pytest.raises(ConfigError, match=r"^model.options.dropout: 0.1 given, but MptAttentionConfig.attn_pdrop takes whole numbers; "):
        architecture.set_dropout(config, 0.1)


@pytest.mark.parametrize(
    ("family", "options", "both_ways"),
    [
        ("gemma", {}, False), ("cohere", {}, False), ("llama", {}, False), ("modernbert-decoder", {}, False), ("gpt2", {}, False),
        ("bert", {}, True), ("bert", {"is_decoder": True}, False), ("bert", {"architectures": ["BertForSequenceClassification"]}, True),
        ("roberta", {}, True), ("modernbert", {}, True), ("distilbert", {}, True), ("albert", {}, True), ("electra", {}, True),
        ("deberta-v2", {}, True), ("qwen3", {"architectures": ["Qwen3ForSequenceClassification"]}, False),
    ],
)  # fmt: skip
def test_direction_is_that_of_the_model_class(family, options, both_ways):
    assert architecture.reads_both_ways(transformers.AutoConfig.for_model(family, **options)) is both_ways


@pytest.mark.parametrize("family", ["xlm", "hrm_text"])
def test_several_lists_of_as_many_modules_are_no_stack_of_blocks(family):
    """XLM has a list of attentions, one of norms and one of feed-forward networks."""
    model = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(family, **CAUSAL[family].options))
    assert architecture.block_stack(model) is None

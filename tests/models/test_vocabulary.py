"""A tokenizer with more ids than the embedding has rows is refused or gets rows, as transformers adds them; one with fewer is fine."""

import copy

import pytest
import torch
from helpers.tokenizer_kinds import words
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from advalign.errors import ConfigError
from advalign.models.vocabulary import count_ids, fit_vocabulary


def model(vocabulary, tied=False):
    torch.manual_seed(0)
    options = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=vocabulary, tie_word_embeddings=tied, **options)
    return AutoModelForCausalLM.from_config(config)


def test_too_many_ids_are_refused_with_both_numbers():
    tokenizer = words()
    size = count_ids(tokenizer)
    tokenizer.add_tokens(["brand", "new"])
    assert count_ids(tokenizer) == size + 2 == len(tokenizer)
    network = model(size)
    sentence = (
        rf"^model: the tokenizer has {size + 2} ids and the embedding of 'mine' {size} rows; give the model's own tokenizer, or "
        r"options: \{resize_token_embeddings: true\} to add rows\.$"
    )
    for option in ({}, {"resize_token_embeddings": False}):
        with pytest.raises(ConfigError, match=sentence):
            fit_vocabulary(network, tokenizer, option, "mine")


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "arguments", [{}, {"mean_resizing": False}, {"pad_to_multiple_of": 8}, {"mean_resizing": True, "pad_to_multiple_of": 16}]
)
def test_rows_are_added_as_transformers_adds_them(arguments, tied):
    tokenizer = words()
    size = count_ids(tokenizer)
    tokenizer.add_tokens(["brand", "new"])
    network = model(size, tied)
    expected = copy.deepcopy(network)
    torch.manual_seed(7)
    expected.resize_token_embeddings(len(tokenizer), **arguments)
    torch.manual_seed(7)
    fit_vocabulary(network, tokenizer, {"resize_token_embeddings": arguments or True}, "mine")
    assert network.config.vocab_size == expected.config.vocab_size >= size + 2
    for (name, mine), (_, theirs) in zip(network.state_dict().items(), expected.state_dict().items(), strict=True):
        assert torch.equal(mine, theirs), name
    new = tokenizer("brand new", add_special_tokens=False)["input_ids"]
    assert network(input_ids=torch.tensor([new])).logits.shape[-1] == network.config.vocab_size


@pytest.mark.parametrize("option", [None, True, {"pad_to_multiple_of": 64}])
def test_a_padded_vocabulary_stays(option):
    tokenizer = words()
    network = model(count_ids(tokenizer) + 10)
    before = copy.deepcopy(network.state_dict())
    fit_vocabulary(network, tokenizer, {"resize_token_embeddings": option}, "mine")
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_ids_with_holes_need_the_rows_of_the_largest():
    tokenizer = words(special=["<pad>", "<unk>", "<s>", "</s>"])
    tokenizer.add_tokens(["brand"])
    holes = copy.deepcopy(tokenizer)
    holes.get_vocab = lambda: {"a": 0, "b": 9}
    assert count_ids(holes) == 10


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        (
            "yes",
            r"^model\.options\.resize_token_embeddings: got 'yes'; give true, false, or its arguments \(pad_to_mul.*, mean_resizing\)\.$",
        ),
        ({"mean_resize": True}, r"^model\.options\.resize_token_embeddings: no argument 'mean_resize'\..*Did you mean 'mean_resizing'\?$"),
    ],
)
def test_bad_options(option, sentence):
    with pytest.raises(ConfigError, match=sentence):
        fit_vocabulary(model(10), words(), {"resize_token_embeddings": option}, "mine")


@pytest.mark.parametrize("adapter", [{"lora": {"r": 2}}, {"adapter": "folder"}])
def test_an_adapter_s_folder_would_not_hold_new_rows(adapter):
    with pytest.raises(
        ConfigError, match=r"^model\.options\.resize_token_embeddings: an adapter leaves the base as it is.* 2 new rows; save"
    ):
        fit_vocabulary(model(count_ids(words()) - 2), words(), {"resize_token_embeddings": True} | adapter, "mine")


def test_gpt2_is_resized_too():
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=10, n_embd=16, n_layer=1, n_head=2, n_positions=16))
    fit_vocabulary(network, words(), {"resize_token_embeddings": {"mean_resizing": False}}, "mine")
    assert network.get_output_embeddings().weight is network.get_input_embeddings().weight
    assert len(network.get_input_embeddings().weight) == count_ids(words())

"""How long a row may be: by trying, for every kind of positions that there is."""

import pytest
import torch
import transformers

from advalign.models.positions import position_limit, row_bound

COMMON = {
    "vocab_size": 60, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "max_position_embeddings": 34, "pad_token_id": 1,
}  # fmt: skip
GPT = {"vocab_size": 60, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 34}
OPT = {"vocab_size": 60, "hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "word_embed_proj_dim": 16}
LIMITED = {
    "Bert": (COMMON, 34),
    "Electra": (COMMON, 34),
    "DistilBert": ({"vocab_size": 60, "dim": 16, "hidden_dim": 32, "n_layers": 1, "n_heads": 2, "max_position_embeddings": 34}, 34),
    "Roberta": (COMMON, 32),
    "XLMRoberta": (COMMON | {"pad_token_id": 3}, 30),
    "MPNet": (COMMON, 32),
    "Deberta": (COMMON, 34),
    "RoFormer": (COMMON, 34),
    "GPT2": (GPT, 34),
    "GPTJ": (GPT | {"rotary_dim": 4}, 34),
    "OpenAIGPT": (GPT, 34),
    "OPT": (OPT | {"max_position_embeddings": 34}, 34),
    "Mpt": ({"vocab_size": 60, "d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 34}, 34),
}
UNLIMITED = {"Llama": COMMON, "GPTNeoX": COMMON, "ModernBert": COMMON, "Bloom": {"vocab_size": 60, "hidden_size": 16, "n_layer": 1}}


def built(name, options):
    torch.manual_seed(0)
    return transformers.AutoModel.from_config(getattr(transformers, f"{name}Config")(**options)).eval()


def runs(model, length):
    """Whether plain transformers can run a row of this length."""
    embeddings = model.get_input_embeddings()(torch.full((1, length), 5))
    try:
        with torch.no_grad():
            model(inputs_embeds=embeddings, attention_mask=torch.ones(1, length, dtype=torch.long))
    except (RuntimeError, IndexError):
        return False
    return True


@pytest.mark.parametrize("name", LIMITED)
def test_the_limit_is_the_longest_row_that_runs(name):
    options, limit = LIMITED[name]
    model = built(name, options)
    assert runs(model, limit)
    assert not runs(model, limit + 1)
    assert position_limit(model) == limit


@pytest.mark.parametrize("name", UNLIMITED)
def test_rotary_and_relative_positions_have_no_limit(name):
    model = built(name, UNLIMITED[name])
    assert runs(model, 100)
    assert position_limit(model) is None


def test_the_bound_of_a_sampled_row():
    llama, bloom, roberta = (built(n, o) for n, o in (("Llama", COMMON), ("Bloom", UNLIMITED["Bloom"]), ("Roberta", COMMON)))
    assert row_bound(llama, None) == (34, "the model's context of 34 tokens")
    assert row_bound(llama, 40) == (34, "the model's context of 34 tokens")
    assert row_bound(llama, 20) == (20, "max_length 20")
    assert row_bound(roberta, None)[0] == 32
    assert row_bound(bloom, None)[0] is None
    assert row_bound(bloom, 20) == (20, "max_length 20")

"""Recurrent and hybrid models: what is sampled has the log-probabilities of one forward over the whole row, with and without a cache."""

import warnings

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GenerationConfig
from transformers.cache_utils import DynamicLayer

from advalign.errors import ConfigError, RolloutError
from advalign.models import Encoder, Network, generation, self_check
from advalign.rollout.hf import HF
from advalign.targets import GeneratorTarget
from advalign.targets.prefix import CachedPrefix
from advalign.types import Example, Sampling

PLAIN = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
HEADS = {"intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
SIZES = PLAIN | HEADS
MAMBA2 = {
    "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_expand": 2, "mamba_chunk_size": 4,
}  # fmt: skip
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
MIXED = {"layer_types": ["linear_attention", "full_attention"], "head_dim": 8}
FAMILIES = {
    "Mamba": PLAIN | {"state_size": 8, "time_step_rank": 4},
    "FalconMamba": PLAIN | {"state_size": 8, "time_step_rank": 4},
    "Mamba2": PLAIN | {"state_size": 8, "num_heads": 4, "head_dim": 16, "expand": 2, "n_groups": 1, "chunk_size": 4},
    "Rwkv": PLAIN | {"attention_hidden_size": 32, "intermediate_size": 48, "context_length": 64},
    "FalconH1": SIZES | {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 4},
    "RecurrentGemma": SIZES | {"num_hidden_layers": 3, "num_key_value_heads": 1, "lru_width": 32, "attention_window_size": 4},
    "Qwen3Next": SIZES | LINEAR | MOE | MIXED,
    "Lfm2": SIZES | {"layer_types": ["conv", "full_attention"]},
    "Jamba": SIZES | {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "mamba_dt_rank": 4, "use_mamba_kernels": False},
    "Bamba": SIZES | MAMBA2 | {"attn_layer_indices": [1]},
    "Zamba2": SIZES | {"num_hidden_layers": 3, "mamba_d_state": 8, "mamba_headdim": 16, "mamba_ngroups": 1, "n_mamba_heads": 4,
                       "chunk_size": 4, "layers_block_type": ["mamba", "hybrid", "mamba"], "num_mem_blocks": 1, "use_mem_rope": True},
    "MiniMax": SIZES | MIXED | {"block_size": 4, "num_local_experts": 2, "num_experts_per_tok": 1},
    "Llama": SIZES,
}  # fmt: skip
WHOLE_ROWS = ("Rwkv", "RecurrentGemma", "MiniMax")
"""States that know no padding, or that are kept outside a cache of transformers: every token reads its whole row."""
EXACT = ("Rwkv", "RecurrentGemma", "MiniMax", "Lfm2", "Llama")
"""Others compute norms or states in float32 also in a float64 model: a batch of another shape moves the last bits of that precision."""
PROMPTS = ["w5 w6 w7 w8 w9 w10 w11", "w20 w21", "w30 w31 w32 w33", "w40"]


def build(family, dtype=torch.float64) -> Network:
    config = getattr(transformers, f"{family}Config")(**FAMILIES[family])
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, experts_implementation="eager").to(dtype)
    for parameter in model.parameters():
        if parameter.dim() > 1:  # an untrained model is nearly uniform
            parameter.data.mul_(3)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(50)}, unk_token="w2"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w1", unk_token="w2")
    return Network(model.eval(), Encoder(tokenizer, max_length=64), "policy")


def generate(network, prompts, n=1, number=12, **sampling):
    examples, generator = [Example(prompt=p) for p in prompts], torch.Generator().manual_seed(0)
    return HF().generate(network, examples, n, Sampling(max_new_tokens=number, **sampling), generator)


@torch.no_grad()
def logprobs(network, group, rollout, temperature):
    """Of the model's own forward over this row alone, without padding."""
    row = torch.tensor([group.prompt_ids + rollout.response_ids])
    values = (network.model(input_ids=row, use_cache=False).logits[0] / temperature).log_softmax(-1)
    return values[len(group.prompt_ids) - 1 : -1].gather(1, torch.tensor(rollout.response_ids)[:, None])[:, 0].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_sampled_has_the_log_probabilities_of_whole_rows(family):
    network = build(family)
    network.model.generation_config = GenerationConfig(eos_token_id=[1, *range(30, 40)])  # so that rows leave early
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        self_check.check(network)
        groups = generate(network, PROMPTS, n=3, temperature=0.7, top_p=0.95)
    slow = [str(w.message) for w in caught if str(w.message).startswith("decoding:")]
    assert len(slow) == (family in WHOLE_ROWS)  # said once
    assert network.caches == (family not in WHOLE_ROWS)
    rollouts = [(g, r) for g in groups for r in g.rollouts]
    assert len({len(r.response_ids) for _, r in rollouts}) > 1
    for group, rollout in rollouts:
        expected = logprobs(network, group, rollout, 0.7)
        assert rollout.sampler_logprobs == pytest.approx(expected, abs=1e-10 if family in EXACT else 1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_the_model_s_own_generate(family):
    network = build(family)
    # generate of RecurrentGemma takes a prompt of one token for a continuation, and differs from its own forward.
    prompts = PROMPTS[:3] if family == "RecurrentGemma" else PROMPTS
    for group in generate(network, prompts, number=6, temperature=0.0):
        ids = torch.tensor([group.prompt_ids])
        options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": 1}
        row = network.model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        assert row[0].tolist() == group.prompt_ids + group.rollouts[0].response_ids


@pytest.mark.parametrize("family", ["Mamba", "FalconH1", "Llama"])
def test_rows_that_leave_change_nothing(family):
    """An end that some rows reach early: those that go on have the tokens they have when every row goes on."""
    network = build(family)
    free = generate(network, PROMPTS, n=4)
    network.model.generation_config = GenerationConfig(eos_token_id=list(range(1, 20)))
    stopped = generate(network, PROMPTS, n=4)
    lengths = set()
    for long, short in zip(free, stopped, strict=True):
        for one, two in zip(long.rollouts, short.rollouts, strict=True):
            end = next((t for t, token in enumerate(one.response_ids) if 1 <= token < 20), 11) + 1
            assert two.response_ids == one.response_ids[:end]
            lengths.add(end)
    assert len(lengths) > 2


def test_a_cache_that_gives_other_numbers_is_given_up_and_the_model_refused(monkeypatch):
    """Keys that forget their last token: the model's own generate is wrong too, and its forward over whole rows is not."""
    network = build("Llama")
    update = DynamicLayer.update

    def forgetful(self, keys, values, *args, **kwargs):
        keys, values = update(self, keys, values, *args, **kwargs)
        return keys, values.roll(1, 0) if keys.shape[-2] == 1 else values * (1 if keys.shape[-2] < 4 else -1)

    monkeypatch.setattr(DynamicLayer, "update", forgetful)
    with pytest.raises(
        ConfigError, match=r"^model: generate of LlamaForCausalLM \(llama\) gives other tokens than its own forward .* \(cache\)"
    ):
        self_check.check(network)


def test_a_prefix_is_not_shared_by_layers_that_overwrite_their_state():
    """Falcon-H1 has keys beside a state: a view of the keys alone would leave the state of the last reader behind."""
    target = GeneratorTarget(build("FalconH1"))
    prefix = CachedPrefix(target, list(range(5, 11)))
    assert prefix.note.startswith("no prefix cache")
    tails = [[20, 21, 22], [23, 24, 25]]
    results = prefix.read(tails, 2, lambda logits: logits.log_softmax(-1))
    for tail, result in zip(tails, results, strict=True):
        row = torch.tensor([[*range(5, 11), *tail]])
        with torch.no_grad():
            expected = target.network.model(input_ids=row, use_cache=False).logits[0, -3:-1].log_softmax(-1)
        torch.testing.assert_close(result.double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("damage", ["weights", "head", "infinite"])
def test_a_model_without_finite_numbers_gives_no_rollouts(damage):
    network = build("Llama")
    if damage == "weights":
        network.model.model.layers[0].mlp.up_proj.weight.data[0, 0] = torch.nan
    elif damage == "head":
        network.model.lm_head.weight.data[7] = torch.nan
    else:
        network.model.lm_head.weight.data[7] = torch.inf
    with pytest.raises(
        RolloutError, match=r"^rollout: the model gives no finite numbers \(token 0 of a response has log-probability nan\)"
    ):
        generate(network, PROMPTS, n=2)


SETTINGS = {
    "top_k": 20, "min_p": 0.1, "typical_p": 0.9, "repetition_penalty": 1.1, "no_repeat_ngram_size": 2, "suppress_tokens": [5, 6],
    "bad_words_ids": [[7]], "begin_suppress_tokens": [8], "forced_eos_token_id": 1, "temperature": 0.6, "top_p": 0.8, "min_new_tokens": 3,
}  # fmt: skip


def test_what_a_generation_config_asks_for_is_left_out_and_said_once():
    network, plain = build("Llama"), build("Llama")
    network.model.generation_config = GenerationConfig(do_sample=True, eos_token_id=1, **SETTINGS)
    generation._say.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rollouts = [generate(network, PROMPTS, n=2), generate(network, PROMPTS, n=2)]
    said = [str(w.message) for w in caught if str(w.message).startswith("sampling:")]
    assert len(said) == 1
    assert all(f"{name} {value}" in said[0] for name, value in SETTINGS.items())
    for groups in rollouts:
        assert [r.response_ids for g in groups for r in g.rollouts] == [
            r.response_ids for g in generate(plain, PROMPTS, n=2) for r in g.rollouts
        ]


@pytest.mark.parametrize("config", [None, GenerationConfig(), GenerationConfig(eos_token_id=[1, 2], do_sample=True, top_k=0, top_p=1.0)])
def test_a_generation_config_that_changes_nothing_is_not_mentioned(config):
    network = build("Llama")
    network.model.generation_config = config
    assert generation.settings_left_out(network.model) == {}
    assert generate(network, PROMPTS[:1])[0].rollouts


def test_the_check_leaves_model_configuration_and_random_state_alone():
    network = build("Llama", torch.float32).train()
    config = network.model.generation_config = GenerationConfig(top_k=3, eos_token_id=1)
    state, weights = torch.get_rng_state(), {n: p.clone() for n, p in network.named_parameters()}
    self_check.check(network)
    assert torch.equal(torch.get_rng_state(), state)
    assert network.model.generation_config is config
    assert all(m.training for m in network.modules())
    assert all(torch.equal(p, weights[n]) for n, p in network.named_parameters())
    assert (network.num_forwards, network.num_rows) == (0, 0)

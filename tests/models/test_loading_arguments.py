"""Options of a model that transformers' `from_pretrained` is given: they reach it, and what cannot be is a sentence."""

import importlib.util
import re

import pytest
import torch
from helpers import hub_folders
from helpers.hub_folders import LLAMA

from advalign.errors import ConfigError
from advalign.models import load, loading_arguments

FOUR_BITS = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "float32"}
HAS_BITSANDBYTES = importlib.util.find_spec("bitsandbytes") is not None


@pytest.fixture
def folder(tmp_path):
    hub_folders.write(tmp_path / "model", LLAMA, "causal")
    return tmp_path / "model"


def logprobs(network):
    tokens = network.encoder.demos(["the cat"], ["sat on the mat"])
    with torch.no_grad():
        return network.eval()(tokens, {"logprobs"}).logprobs


def test_an_attention_implementation_reaches_the_model(folder):
    networks = [load(str(folder), dtype="float64", options={"attn_implementation": name}) for name in ("eager", "sdpa")]
    assert [network.packs for network in networks] == [False, True]
    assert networks[0].model.config._attn_implementation == "eager"
    # The softmax of "eager" is in float32 inside transformers.
    torch.testing.assert_close(*(logprobs(network) for network in networks), rtol=0, atol=1e-6)
    scratch = {"tokenizer": {"kind": "words"}, "texts": ["a b c d"], "options": {"attn_implementation": "eager"}}
    assert load("scratch:tiny?hidden_size=32", **scratch).model.config._attn_implementation == "eager"


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}])
def test_a_device_map_of_one_device(folder, device_map):
    network = load(str(folder), dtype="float64", options={"device_map": device_map})
    assert network.device.type == "cpu"
    assert torch.equal(logprobs(network), logprobs(load(str(folder), dtype="float64")))


def test_a_model_on_two_devices_is_refused(folder):
    spread = {"": "cpu", "model.layers.1": "meta"}
    spec = loading_arguments.ModelSpec(model=str(folder), options={"device_map": spread})
    body = hub_folders.build(LLAMA, "causal")
    loading_arguments.check_body(body, spec)
    body.model.layers[1].to("meta")
    with pytest.raises(
        ConfigError, match=r"^model.options.device_map: \{.*\} spreads '.*' over cpu, meta, and a network is on one device;"
    ):
        loading_arguments.check_body(body, spec)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"attn_implementation": "sdap"}, r"model.options.attn_implementation: no implementation 'sdap'. .* Did you mean 'sdpa'\?"),
        ({"attn_implementation": "flash_attention_2"}, r"model.options.attn_implementation: flash_attention_2 computes in 16 bits, and"),
        ({"revision": "main"}, r"model.options.revision: it belongs to a model of the hub, and '.*' is a folder; leave it out\.$"),
        ({"quantization_config": "4bit"}, r"model.options.quantization_config: got '4bit'; give fields of transformers' configuration\.$"),
        (
            {"quantization_config": {"load_in_4bits": True}},
            r"model.options.quantization_config: The model's quantization config .*no `quant",
        ),
        ({"quantization_config": {"quant_method": "gptk"}}, r"model.options.quantization_config: Unknown quantization type, got gptk"),
        ({"device_map": "gpu"}, r"model: '.*' cannot be loaded: "),
    ],
)
def test_mistakes_are_sentences(folder, options, sentence):
    with pytest.raises(ConfigError, match=rf"^{sentence}"):
        load(str(folder), options=options)


@pytest.mark.parametrize("name", ["revision", "device_map", "quantization_config"])
def test_a_model_from_scratch_has_none_of_them(name):
    with pytest.raises(ConfigError, match=rf"^model.options.{name}: it belongs to a saved model, and 'scratch:tiny' is from scratch;"):
        load("scratch:tiny", tokenizer={"kind": "words"}, texts=["a b"], options={name: "main"})


def test_a_misspelt_field_of_a_quantisation_is_not_left_out(folder):
    if not HAS_BITSANDBYTES:
        with pytest.raises(ConfigError, match=r"^model: '.*' cannot be loaded: .*bitsandbytes"):
            load(str(folder), options={"quantization_config": FOUR_BITS})
    with pytest.raises(ConfigError, match=r"no field 'bnb_4bit_qant_type'. .* Did you mean 'bnb_4bit_quant_type'\?"):
        load(str(folder), options={"quantization_config": {"load_in_4bit": True, "bnb_4bit_qant_type": "nf4"}})


def test_quantised_weights_do_not_train(folder):
    """By the mark that transformers leaves in a configuration."""
    network = load(str(folder))
    loading_arguments.check_trainable(network, "learners.policy")
    network.model.config.quantization_config = FOUR_BITS
    with pytest.raises(
        ConfigError, match=rf"^learners.policy: the weights of '{re.escape(str(folder))}' are quantised, so they cannot train;"
    ):
        loading_arguments.check_trainable(network, "learners.policy")
    adapted = load(str(folder), options={"lora": {"r": 2}})
    adapted.model.config.quantization_config = FOUR_BITS
    loading_arguments.check_trainable(adapted, "learners.policy")
    with pytest.raises(ConfigError, match=r"^save_pretrained: the base of this adapter, '.*', is quantised, so merging would round it;"):
        adapted.save_pretrained(folder / "merged", merged=True)


@pytest.mark.skipif(not HAS_BITSANDBYTES, reason="needs bitsandbytes")
def test_a_base_in_four_bits_trains_an_adapter(tmp_path):
    folder = tmp_path / "model"
    hub_folders.write(folder, LLAMA, "causal", hidden_size=64, intermediate_size=128)  # bits are packed in blocks of 64
    base = {"quantization_config": FOUR_BITS}
    network = load(str(folder), options=base | {"lora": {"r": 2, "target_modules": "all-linear"}})
    packed = {name: p.clone() for name, p in network.named_parameters() if p.dtype == torch.uint8}
    assert len(packed) == 14
    tokens = network.encoder.demos(["the cat"], ["sat on the mat"])
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(10):
        loss = -network.train()(tokens, {"logprobs"}).logprobs.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5
    assert all(torch.equal(p, packed[name]) for name, p in network.named_parameters() if name in packed)
    network.save_pretrained(tmp_path / "adapter")
    # On a processor bitsandbytes packs weights anew for inference, with scales in bfloat16.
    torch.testing.assert_close(logprobs(load(str(tmp_path / "adapter"), options=base)), logprobs(network), rtol=0, atol=0.05)
    # The adapter fits the base in full precision too.
    torch.testing.assert_close(logprobs(load(str(tmp_path / "adapter"))), logprobs(network), rtol=0, atol=0.5)
